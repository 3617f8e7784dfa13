"""The schedule as operators change it while the server runs."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

from serve import schedule
from serve.errors import Conflict, InvalidInput
from serve.feedback.store import Store
from serve.settings import Schedule, Settings, interval_text, parse_interval


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hustings.toml is."""
    monkeypatch.chdir(tmp_path)


def test_every_setting_of_the_schedule_is_told_in_words_with_its_value(store: Store) -> None:
    found = {entry.name: entry.value for entry in schedule.entries(store, Settings.load())}
    assert found == {
        "min_new_votes": "50",
        "max_interval": "1d",
        "promotion": "auto",
        "compare_share": "0.2",
        "canary_share": "0.5",
        "canary_deadline": "7d",
    }
    assert set(found) == set(Schedule.model_fields)


@pytest.mark.parametrize(
    ("name", "bounds"),
    [
        ("min_new_votes", "1 or more"),
        ("max_interval", "90s, 15m, 24h, 7d"),
        ("promotion", "(auto)"),
        ("compare_share", "0 to 1"),
        ("canary_share", "0 to 1"),
        ("canary_deadline", "90s, 15m, 24h, 7d"),
    ],
)
def test_the_words_of_a_setting_say_what_it_may_be(name: str, bounds: str) -> None:
    assert bounds in schedule.WORDS[name]


def test_a_change_holds_for_every_process_and_is_logged(store: Store) -> None:
    settings = Settings.load()
    changed = schedule.change(
        store, settings, {"min_new_votes": " 20", "max_interval": "none", "compare_share": "0.2"}, who="anna"
    )
    assert [(entry.name, entry.value) for entry in changed] == [("min_new_votes", "20"), ("max_interval", "none")]
    held = schedule.current(store, Settings.load())
    assert (held.min_new_votes, held.max_interval, held.canary_deadline) == (20, None, timedelta(days=7))
    assert [(deed.who, deed.what) for deed in store.deeds()] == [
        ("anna", "set min_new_votes to 20, max_interval to none")
    ]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"min_new_votes": "0"},
            "new votes that start a run (min_new_votes) must be a whole number, 1 or more, not '0'",
        ),
        (
            {"max_interval": "soon"},
            "(max_interval) must be a span of time of at most ten years, written as 90s, 15m, 24h or 7d, or none, not",
        ),
        ({"max_interval": "9999999d"}, "(max_interval) must be a span of time of at most ten years"),
        ({"canary_deadline": "99999999999d"}, "(canary_deadline) must be a span of time of at most ten years"),
        ({"canary_deadline": "none"}, "(canary_deadline) must be a span of time"),
        ({"promotion": "never"}, "(promotion) must be auto, canary or manual, not 'never'"),
        ({"compare_share": "nan"}, "(compare_share) must be a number from 0 to 1, not 'nan'"),
        ({"port": "80"}, "the schedule has no setting 'port'; it has min_new_votes, max_interval,"),
    ],
)
def test_what_is_out_of_bounds_changes_nothing(store: Store, changes: dict[str, str], said: str) -> None:
    with pytest.raises(InvalidInput, match=re.escape(said)):
        schedule.change(store, Settings.load(), {"canary_share": "0.3", **changes}, who="anna")
    assert store.schedule() == {}


def test_what_the_start_has_set_stays_even_over_an_earlier_change(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedule.change(store, Settings.load(), {"min_new_votes": "20"}, who="anna")
    monkeypatch.setenv("HUSTINGS_MIN_NEW_VOTES", "70")
    settings = Settings.load()
    assert schedule.current(store, settings).min_new_votes == 70
    assert [entry.name for entry in schedule.entries(store, settings) if entry.fixed] == ["min_new_votes"]
    with pytest.raises(Conflict, match=r"min_new_votes was set when the server was started \(a flag, HUSTINGS_MIN_NEW"):
        schedule.change(store, settings, {"min_new_votes": "30", "canary_share": "0.1"}, who="anna")
    assert schedule.current(store, settings).canary_share == 0.5


@pytest.mark.parametrize("text", ["90s", "0.5s", "15m", "36h", "1d", "7d", "1000001s", "3653d"])
def test_a_span_of_time_is_written_as_it_is_read(text: str) -> None:
    assert interval_text(parse_interval(text)) == text
