"""What the operator page draws of the record."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from serve.board import Board
from serve.feedback.entries import HeadToHead
from serve.feedback.statistics import Interval
from serve.records import Due, Run, Version
from serve.web import board_view
from serve.web import operator_view as view

NOW = datetime(2026, 11, 29, tzinfo=UTC)


def state(**changes: Any) -> view.State:
    """Version 1 serves; version 3 was refused, version 2 is whatever `changes` say."""
    return view.State(
        **{
            "serving": 1,
            "previous": 0,
            "due": Due(12, 50, timedelta(hours=24), NOW),
            "standing_votes": 62,
            "demonstrations": 3,
            "runs": (),
            "active": None,
            "versions": (
                Version(3, "rejected", NOW, parent=1),
                Version(2, "canary", NOW, parent=1),
                Version(1, "serving", NOW, parent=0),
                Version(0, "retired", NOW),
            ),
            "promotions": (),
            **changes,
        }
    )


def test_only_what_could_serve_and_does_not_is_offered_for_promotion() -> None:
    drawn = view.versions(state())
    assert [f'data-of="{number}"' in drawn for number in range(4)] == [True, False, True, False]


def test_a_button_names_the_run_or_version_that_it_is_about() -> None:
    run = Run(7, "running", "votes", ("reward",), NOW)
    assert view.cancel(state()) == ""
    assert 'data-of="7" data-sure="Really cancel run 7?"' in view.cancel(state(active=run))
    assert 'data-of="0" data-sure="Really roll back to version 0 (base)?"' in view.rollback(state())
    assert "disabled" in view.rollback(state(previous=None))


def test_a_canary_says_how_it_fares_and_what_would_decide() -> None:
    trial = view.Trial(2, HeadToHead(8, 0, 3), NOW + timedelta(days=7))
    drawn = view.versions(state(trial=trial))
    assert "On trial against version 1: 8 won, 0 lost. 0 more won in a row would promote it" in drawn
    assert "2026-12-06" in drawn
    assert drawn.count("On trial") == 1 and "On trial" not in view.versions(state())


def test_a_run_unfolds_to_what_it_was_made_with() -> None:
    told = {"ppo": {"updates": 12, "clip": "<b>"}, "rank": 8}
    run = Run(7, "failed", "operator", ("reward", "ppo"), NOW, settings=told, who="anna <i>", votes=61)
    drawn = view.runs(state(runs=(run,)))
    for words in ("anna &lt;i&gt;", "Reward model, Policy", "61", "ppo.updates = 12, ppo.clip = &lt;b&gt;, rank = 8"):
        assert words in drawn, words
    assert "the defaults" in view.runs(state(runs=(Run(7, "failed", "votes", ("ppo",), NOW),)))


def test_runs_that_are_left_out_are_somewhere() -> None:
    many = tuple(Run(number, "failed", "votes", ("ppo",), NOW) for number in range(view.RUNS, 0, -1))
    assert "/api/runs" in view.runs(state(runs=many))
    assert "/api/runs" not in view.runs(state(runs=many[1:]))


def test_a_board_without_votes_says_what_has_to_happen_first() -> None:
    empty = Board((), (), None, None, None, None)
    drawn = board_view.trust(empty, [])
    assert drawn.count("Nothing yet: ") == 5
    assert board_view.figures(empty, []) == [None] * len(board_view.PARTS)
    assert board_view.numbers(empty, []) == ""


def test_what_stands_in_figures_alone_stands_in_tables_too() -> None:
    report = {"reward": {"calibration": [{"said": 0.9, "right": 0.8, "pairs": 20}]}}
    found = Board((), (), Interval(0.7, 0.6, 0.8), None, None, None, {date(2026, 11, 29): 5})
    runs = [Run(1, "rejected", "votes", ("reward",), NOW, report=report)]
    drawn = board_view.numbers(found, runs)
    assert "<td>90%</td><td>80%</td><td>20</td>" in drawn and "<td>2026-11-29</td><td>5</td>" in drawn
    shown = [figure is not None for figure in board_view.figures(found, runs)]
    assert shown == [False, False, True, True]
    assert all(figure.layout.xaxis.title.text for figure in board_view.figures(found, runs) if figure)
