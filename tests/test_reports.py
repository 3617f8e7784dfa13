"""A report's figures, read."""

from __future__ import annotations

from serve.feedback.reports import gate_figures, gate_win_rate, reward_accuracy
from serve.feedback.statistics import Interval

SHARE = {"value": 0.75, "low": 0.6, "high": 0.9}


def test_a_report_is_read_where_it_says_something() -> None:
    report = {"gate": {"win_rate": {**SHARE, "prompts": 32}, "new": {"kl": 5.0}}, "reward": {"accuracy": SHARE}}
    assert gate_win_rate(report) == reward_accuracy(report) == Interval(0.75, 0.6, 0.9)
    assert gate_figures(report) == {"kl": 5.0}
    for nothing in (None, {}, {"gate": None, "reward": None}, {"status": "failed"}):
        assert gate_win_rate(nothing) is reward_accuracy(nothing) is None
        assert gate_figures(nothing) == {}


def test_a_run_that_asked_no_reward_model_promises_nothing() -> None:
    assert gate_win_rate({"gate": {"win_rate": {"value": 0.5, "low": 0.0, "high": 1.0, "prompts": 0}}}) is None
