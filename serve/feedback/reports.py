"""What a run's report says of a version, read in one place: pages, board, card and *Yours* show the same figures."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from serve.feedback.statistics import Interval

Report = Mapping[str, Any]


def gate_win_rate(report: Report | None) -> Interval | None:
    """The fold models' verdict on a version against its parent; None where none was asked, as after SFT alone."""
    found = _part(report, "gate").get("win_rate") or {}
    return None if found.get("prompts") == 0 else _interval(found)


def gate_figures(report: Report | None) -> Mapping[str, float]:
    """What the gate measured of the new version: `kl` (nats an answer), `length` (tokens), `refusals` (a share) …"""
    return _part(report, "gate").get("new") or {}


def reward_accuracy(report: Report | None) -> Interval | None:
    """Share of unseen comparisons on which the reward model is right; None where none was trained or all were ties."""
    found = _part(report, "reward").get("accuracy") or {}
    return None if found.get("comparisons") == 0 else _interval(found)


def _part(report: Report | None, name: str) -> Report:
    return (report or {}).get(name) or {}


def _interval(found: Report) -> Interval | None:
    return Interval(found["value"], found["low"], found["high"]) if found else None
