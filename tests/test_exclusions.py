"""Votes and voters that do not count, or are marked."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.errors import Conflict, InvalidInput, NotFound
from serve.feedback.browsing import Search
from serve.feedback.store import Store
from tests.scenes import compare, prefer, three_votes, user


@pytest.fixture
def votes(store: Store) -> list[str]:
    return three_votes(store)


def marked(store: Store, mark: str) -> list[bool]:
    """Whether the votes, newest first, are `excluded` or `flagged`."""
    return [row[mark] for row in store.find_votes(Search())[0]]


def left_out(store: Store) -> list[str]:
    """The prompts of the votes that are found to be marked."""
    return [row["prompt"] for row in store.find_votes(Search(left_out=True))[0]]


def test_what_is_excluded_teaches_nothing_and_counts_nowhere_until_it_is_lifted(
    store: Store, votes: list[str], tmp_path: Path
) -> None:
    run = store.create_run("votes", ["reward", "ppo"], {})
    store.snapshot(run.id, tmp_path / "before.db")
    version = store.add_version(run=run.id, parent=0, status="staged", report={}, sha256="00")
    store.update_run(run.id, status="succeeded", version=version.number)
    assert store.head_to_head(1, 0).losses == 1

    out = store.leave_out(voter=2, kind="exclude", reason="votes at random", who="ada")
    assert (out.voter, out.vote, out.prompt, out.reason, out.who) == (
        "voter-2",
        None,
        None,
        "votes at random",
        "ada",
    )
    assert store.standing_votes() == 1 and store.head_to_head(1, 0).losses == 0
    assert [ballot.vote_id for ballot in store.ballots()] == votes[:1]
    assert store.touched() == {version.number: 2}
    assert marked(store, "excluded") == [True, True, False]
    assert len(store.me("ben")["votes"]) == 2, "they still see what they gave"
    assert left_out(store) == ["And the sky?", "100% of what?"]

    store.lift(out.id, who="ada")
    assert store.standing_votes() == 3 and store.touched() == {} and store.exclusions() == []
    store.leave_out(vote=votes[0], kind="exclude", reason="a slip", who="ada")
    assert store.standing_votes() == 2


def test_a_vote_that_is_left_out_is_told_by_its_voter_and_prompt_and_in_the_log_without_words(
    store: Store, votes: list[str]
) -> None:
    store.leave_out(vote=votes[1], kind="exclude", reason="a slip", who="ada")
    (out,) = store.exclusions()
    assert (out.voter, out.vote, out.prompt) == ("voter-2", votes[1], "100% of what?")
    store.lift(out.id, who="ada")
    assert [deed.what for deed in store.deeds()] == [
        f"lifted the exclusion of vote {votes[1]} of voter-2",
        f"excluded vote {votes[1]} of voter-2: a slip",
    ]


def test_a_flag_marks_and_changes_nothing(store: Store, votes: list[str]) -> None:
    store.leave_out(vote=votes[2], kind="flag", reason="look again", who="ada")
    assert store.standing_votes() == 3
    assert marked(store, "flagged") == [True, False, False]


def test_leaving_out_needs_one_thing_that_exists_and_a_reason(store: Store, votes: list[str]) -> None:
    for wrong in ({}, {"voter": 1, "vote": votes[0]}, {"vote": votes[0], "reason": " "}):
        with pytest.raises(InvalidInput):
            store.leave_out(**{"kind": "exclude", "reason": "so", "who": "ada", **wrong})  # type: ignore[arg-type]
    for unknown in ({"voter": 9}, {"vote": "none"}):
        with pytest.raises(NotFound):
            store.leave_out(kind="exclude", reason="so", who="ada", **unknown)
    store.leave_out(vote=votes[0], kind="exclude", reason="so", who="ada")
    with pytest.raises(Conflict, match="already"):
        store.leave_out(vote=votes[0], kind="exclude", reason="so", who="ada")
    with pytest.raises(NotFound):
        store.lift("none", who="ada")


def test_a_forgotten_voter_takes_exclusions_along(store: Store, votes: list[str]) -> None:
    store.leave_out(voter=2, kind="exclude", reason="so", who="ada")
    store.leave_out(vote=votes[1], kind="flag", reason="so", who="ada")
    store.forget("ben")
    assert store.exclusions() == []


def test_an_excluded_voters_demonstrations_teach_nothing(store: Store, votes: list[str]) -> None:
    store.add_demonstration("ben", [user("Say it.")], "Buy now!")
    store.leave_out(voter=2, kind="exclude", reason="advertises", who="ada")
    assert store.demonstrations_count() == 0
    store.lift(store.exclusions()[0].id, who="ada")
    assert store.demonstrations_count() == 1


@pytest.mark.parametrize(("kind", "mark", "counted"), [("exclude", "excluded", 0), ("flag", "flagged", 1)])
def test_a_mark_goes_with_the_comparison_also_when_it_is_voted_on_anew(
    store: Store, kind: str, mark: str, counted: int
) -> None:
    comparison = compare(store)
    vote = prefer(store, comparison, 0).id
    store.leave_out(vote=vote, kind=kind, reason="a slip", who="ada")  # type: ignore[arg-type]
    store.withdraw_vote(vote, "anna")
    prefer(store, comparison, 1)
    assert store.standing_votes() == counted
    assert marked(store, mark) == [True]
    assert left_out(store) == ["Why is the sea blue?"], "and is shown among what is marked"
