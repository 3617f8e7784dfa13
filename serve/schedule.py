"""What operators have changed of the schedule while the server ran, over the settings it was started with.

    schedule.current(store, settings)                                           →  what holds now
    schedule.change(store, settings, {"min_new_votes": "20"}, who="operator")

What a flag, the environment or `hustings.toml` sets stays as it is set there. Changes lie in the database, as text that
the environment could hold, so every process that opens it goes by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from pydantic import ValidationError

from serve.errors import Conflict, InvalidInput
from serve.feedback.store import Store
from serve.settings import Schedule, Settings, interval_text

WORDS = {
    "min_new_votes": "New rankings and ties that start a run: 1 or more.",
    "max_interval": "With any new vote, a run starts so long after the last (90s, 15m, 24h, 7d); none turns it off.",
    "promotion": "A version that passed serves at once (auto), is tried on blind votes (canary), or waits (manual).",
    "compare_share": "Share of comparisons against the version before or the base, 0 to 1: it measures progress.",
    "canary_share": "The same, while a version is tried: 0 to 1.",
    "canary_deadline": "A version that is tried and still undecided waits for you after so long (90s, 15m, 24h, 7d).",
}
"""Every setting of the schedule, and what it does."""
LABELS = {
    "min_new_votes": "New votes that start a run",
    "max_interval": "Longest time without a run",
    "promotion": "What a version does that passed",
    "compare_share": "Comparisons with an older version",
    "canary_share": "Comparisons with a version on trial",
    "canary_deadline": "Longest trial",
}
"""What the operator page calls them."""
_SPAN = "a span of time of at most ten years, written as 90s, 15m, 24h or 7d"
_ALLOWED = {
    "min_new_votes": "a whole number, 1 or more",
    "max_interval": f"{_SPAN}, or none",
    "promotion": "auto, canary or manual",
    "compare_share": "a number from 0 to 1",
    "canary_share": "a number from 0 to 1",
    "canary_deadline": _SPAN,
}
CANARY_ALPHA = 0.05
"""Chance that a canary no better or worse than the serving version is taken for one."""


@dataclass(frozen=True)
class Entry:
    """One setting as it holds now."""

    name: str
    value: str
    """As the environment would have it: 50, 24h, none, auto, 0.2."""
    fixed: bool
    """Set where the server was started, and only to be changed there."""
    words: str


def current(store: Store, settings: Settings) -> Schedule:
    """The schedule that holds."""
    return Schedule.model_validate({entry.name: entry.value for entry in entries(store, settings)})


def entries(store: Store, settings: Settings) -> list[Entry]:
    """Every setting of it, with its value."""
    changed = store.schedule()

    def entry(name: str, words: str) -> Entry:
        fixed = name in settings.model_fields_set
        started_with = _text(getattr(settings, name))
        return Entry(name, started_with if fixed else changed.get(name, started_with), fixed, words)

    return [entry(name, words) for name, words in WORDS.items()]


def change(store: Store, settings: Settings, changes: Mapping[str, str], *, who: str) -> list[Entry]:
    """Change some of it, all or nothing; the next tick and the next comparison go by it. Returns what has changed.

    Raises InvalidInput for what is unknown or out of bounds, and Conflict for what was set at the start.
    """
    before = {entry.name: entry for entry in entries(store, settings)}
    wanted = {entry.name: entry.value for entry in before.values()} | dict(changes)
    try:
        Schedule.model_validate(wanted)
    except ValidationError as error:
        wrong = (str(each["loc"][0]) for each in error.errors())
        raise InvalidInput("; ".join(_sentence(name, wanted[name]) for name in wrong)) from None
    new = {name: value for name, value in changes.items() if value.strip() != before[name].value}
    if fixed := [name for name in new if before[name].fixed]:
        raise Conflict(
            f"{', '.join(fixed)} was set when the server was started (a flag, HUSTINGS_{fixed[0].upper()} or "
            "hustings.toml); change it there"
        )
    store.change_schedule({name: value.strip() for name, value in new.items()}, who=who)
    return [entry for entry in entries(store, settings) if entry.name in new]


def _text(value: Any) -> str:
    if value is None:
        return "none"
    return interval_text(value) if isinstance(value, timedelta) else str(value)


def _sentence(name: str, value: str) -> str:
    if name not in WORDS:
        return f"the schedule has no setting {name!r}; it has {', '.join(WORDS)}"
    return f"{LABELS[name][0].lower()}{LABELS[name][1:]} ({name}) must be {_ALLOWED[name]}, not {value!r}"
