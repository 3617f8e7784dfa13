"""The board: what votes say of versions, computed by hand where that is possible."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, date, datetime

import pytest

from serve.board import Board, board, connected, meetings, over_base, verdicts
from serve.feedback.entries import Ballot, BallotAnswer
from serve.feedback.statistics import Interval, win_rate
from serve.records import Version

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def ballot(
    number: int, versions: tuple[int, ...], groups: tuple[tuple[int, ...], ...] | None, *, voter: str = "anna",
    texts: tuple[str, ...] = ("long enough", "short", "third", "fourth"), evidence: bool = True,
    pair: int | None = None,
) -> Ballot:  # fmt: skip
    """A vote on answers of these versions; `groups` holds their places, best first."""
    answers = tuple(
        BallotAnswer(f"{number if pair is None else pair}-{i}", i, texts[i], (1,), v, "stop", 64, 0.8, partial=False)
        for i, v in enumerate(versions)
    )
    return Ballot(f"vote {number}", voter, (), answers, groups, None, None, evidence, False, NOW)


FIRST, SECOND, TIE = ((0,), (1,)), ((1,), (0,)), ((0, 1),)
VERSIONS = [
    Version(0, "retired", NOW),
    Version(1, "retired", NOW, parent=0),
    Version(2, "serving", NOW, parent=1, report={"gate": {"win_rate": {"value": 0.9, "low": 0.8, "high": 0.95}}}),
    Version(3, "staged", NOW, parent=2),
]


def votes(wins: int, losses: int, ties: int = 0, versions: tuple[int, int] = (1, 0), start: int = 0) -> list[Ballot]:
    said = [FIRST] * wins + [SECOND] * losses + [TIE] * ties
    return [ballot(start + i, versions, groups) for i, groups in enumerate(said)]


def test_only_blind_votes_between_versions_are_evidence() -> None:
    assert [(m.first, m.second, m.won) for m in meetings(ballot(1, (2, 0), SECOND))] == [(2, 0, 0.0)]
    assert meetings(ballot(1, (2, 2), FIRST)) == meetings(ballot(1, (2, 0), FIRST, evidence=False)) == []
    assert meetings(ballot(1, (2, 0), None)) == []
    four = meetings(ballot(1, (1, 0, 0, 2), ((1,), (0, 2), (3,))))
    assert [(m.first, m.second, m.won) for m in four] == [(1, 0, 0.0), (1, 2, 1.0), (0, 2, 1.0)], (
        "one a pair of versions"
    )


def test_with_two_versions_the_model_says_what_counting_says() -> None:
    met = [m for b in votes(30, 10, ties=20) for m in meetings(b)]
    found = over_base(met)[1]
    assert found.value == pytest.approx(30.5 / 41, abs=0.002), "half a win each way is known before any vote"
    expected = win_rate(30, 10)
    assert found.low == pytest.approx(expected.low, abs=0.05) and found.high == pytest.approx(expected.high, abs=0.05)
    few = over_base([m for b in votes(2, 0) for m in meetings(b)])[1]
    assert few.low < 0.45 and few.value == pytest.approx(2.5 / 3, abs=0.01), "two votes for it show nothing"


def test_a_version_is_compared_with_the_base_by_way_of_others() -> None:
    met = [m for b in [*votes(60, 20), *votes(60, 20, versions=(2, 1), start=100)] for m in meetings(b)]
    found = over_base(met)
    assert found[2].value == pytest.approx(0.9, abs=0.02), "odds of 3 to 1, twice: 9 to 1"
    assert found[2].low < found[2].value < found[2].high
    alone = [m for b in votes(5, 1, versions=(3, 4)) for m in meetings(b)]
    assert over_base(alone) == {} and connected(alone) == {0}


def test_a_version_that_won_thrice_is_not_sure_to_win() -> None:
    found = over_base([m for b in votes(3, 0) for m in meetings(b)])[1]
    assert 0.8 < found.value < 0.95


def made(ballots: list[Ballot], serving: int = 2) -> Board:
    return board(ballots, VERSIONS, serving)


def test_the_board_answers_at_a_glance() -> None:
    assert "nothing has been learned yet" in made([], serving=0).verdicts[0]
    assert "nobody knows" in made([]).verdicts[0]
    won = votes(40, 5, versions=(2, 0))
    (said,) = made(won).verdicts
    assert re.fullmatch(
        r"Version 2 is better than the base: it wins \d\d% of decided blind votes \(\d\d% to \d\d%\)\.", said
    )
    assert "Roll back." in made(votes(5, 40, versions=(2, 0))).verdicts[0]
    unsure = made(votes(6, 4, versions=(2, 0))).verdicts[0]
    assert "may still be chance" in unsure and "more votes would tell" in unsure


def test_a_promise_that_people_do_not_confirm_is_told() -> None:
    kept = made([*votes(9, 1, versions=(2, 1)), *votes(40, 5, start=50)])
    assert kept.rated[2].over_parent == win_rate(9, 1) and kept.rated[2].promised == Interval(0.9, 0.8, 0.95)
    assert kept.verdicts[1] == "Against version 1 the reward model promised 90%, and people find 90%, which fits."
    broken = made([*votes(10, 20, versions=(2, 1)), *votes(40, 5, start=50)])
    assert "learned to please the reward model" in broken.verdicts[1]
    assert verdicts(None) == made([], serving=0).verdicts


def test_a_version_of_which_no_reward_model_was_asked_has_no_promise() -> None:
    report = {"gate": {"win_rate": {"value": 0.5, "low": 0.0, "high": 1.0, "prompts": 0}}}
    alone = [VERSIONS[0], Version(1, "serving", NOW, parent=0, report=report)]
    found = board(votes(14, 6), alone, 1)
    assert found.rated[1].promised is None and len(found.verdicts) == 1


def test_biases_and_agreement_are_counted() -> None:
    cast = [
        ballot(1, (0, 0), FIRST, voter="anna", pair=1),
        ballot(2, (0, 0), FIRST, voter="ben", pair=1),
        ballot(3, (0, 0), SECOND, voter="anna", pair=2),
        ballot(4, (0, 0), TIE, voter="ben", pair=2),
        ballot(5, (0, 0), SECOND, voter="anna", pair=2),
    ]
    found = made(cast)
    assert found.agreement is not None and found.agreement.value == 0.5
    assert found.consistency is not None and found.consistency.value == 1.0
    assert found.first_won is not None and found.first_won.value == 0.5
    assert found.longer_won is not None and found.longer_won.value == 0.5
    assert found.votes_by_day == {date(2026, 11, 29): 5}
    assert made([replace(b, imported=True) for b in cast]).votes_by_day == {}
    assert made([]).agreement is made([]).first_won is None
