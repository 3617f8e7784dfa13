"""What the vote page draws."""

from __future__ import annotations

import pytest

from serve.feedback.store import Store
from serve.records import Due, Judgement
from serve.web import vote_view
from tests.scenes import compare, ranking

DUE = Due(new_votes=43, min_new_votes=50, max_interval=None, next_by=None)


def test_a_prompt_says_how_many_answers_there_are(store: Store) -> None:
    comparison = compare(store, prompt="<What>?", texts=("One.", "Two.", "Three."))
    drawn = vote_view.prompt(comparison)
    assert f'data-comparison="{comparison.id}" data-answers="3"' in drawn
    assert "&lt;What&gt;?" in drawn


def test_progress_says_how_much_was_judged_how_much_is_left_and_when_it_learns() -> None:
    assert vote_view.progress(2, 3, 4, DUE) == (
        '<p class="soft"><b>2</b> judged within a day, <b>3</b> in all. <b>4</b> more wait for you.'
        " It learns after 7 more votes.</p>"
    )
    assert "1</b> more waits for you" in vote_view.progress(2, 3, 1, DUE)
    fresh = vote_view.progress(0, 0, 0, None)
    assert "Rank a few" in fresh and "wait" not in fresh and "It is learning" in fresh and "data-last" not in fresh


@pytest.mark.parametrize(
    ("texts", "groups", "kind"),
    [
        (("One.", "Two."), ([1], [0]), "ranking pair"),
        (("One.", "Two."), ([0, 1],), "ranking"),
        (("One.", "Two.", "Three."), ([1], [0, 2]), "ranking"),
        (("One.", "Two."), (), "verdict"),
    ],
)
def test_progress_names_what_kind_of_vote_can_be_undone(
    store: Store, texts: tuple[str, ...], groups: tuple[list[int], ...], kind: str
) -> None:
    comparison = compare(store, texts=texts)
    judgement = ranking(comparison, *groups) if groups else Judgement(verdict="both_bad")
    store.add_vote(comparison.id, "anna", judgement)
    drawn = vote_view.progress(1, 1, 0, DUE, store.comparison(comparison.id, "anna"))
    assert f'data-last="{kind}"' in drawn


@pytest.mark.parametrize(
    ("verdict", "words"),
    [("skip", "Skipped."), ("both_bad", "None was good. <b>A</b>: version 0 (base) · <b>B</b>: version 0 (base)")],
)
def test_a_skip_is_not_thanked_for_and_names_nobody(store: Store, verdict: str, words: str) -> None:
    comparison, judgement = compare(store), Judgement(verdict=verdict)  # type: ignore[arg-type]
    receipt = store.add_vote(comparison.id, "anna", judgement)
    assert vote_view.outcome(comparison, judgement, receipt) == words


def test_a_ranking_is_thanked_for_and_tells_who_wrote_what(store: Store) -> None:
    comparison = compare(store)
    judgement = ranking(comparison, [1], [0])
    receipt = store.add_vote(comparison.id, "anna", judgement)
    assert vote_view.outcome(comparison, judgement, receipt).startswith("Thank you. <b>A</b>: version 0")
