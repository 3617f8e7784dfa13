"""The log of who did what: written with the deed, or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from serve.errors import Conflict, RunActive
from serve.feedback import ballots, exclusions, runs, versions
from serve.feedback.exchange import import_lines
from serve.feedback.store import Store
from tests.scenes import Clock, add_versions, compare, prefer

PAIR = json.dumps({"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."})


def told(store: Store) -> list[tuple[str, str]]:
    """The log, newest first."""
    return [(deed.who, deed.what) for deed in store.deeds()]


def test_the_log_tells_who_did_what_promotions_too(store: Store) -> None:
    add_versions(store, 1)
    store.log_deed("operator page", "exported trl")
    store.set_serving(1, who="scheduler", why="it passed the gate")
    assert told(store) == [
        ("scheduler", "promoted over version 0: version 1 serves (it passed the gate)"),
        ("operator page", "exported trl"),
    ]


def test_runs_canaries_and_imports_are_logged_by_who_did_it(store: Store) -> None:
    add_versions(store, 1)
    run = store.create_run("operator", ["reward"], {}, who="command line")
    store.update_run(run.id, progress=0.5)
    store.update_run(run.id, who="operator page", status="cancelled")
    store.update_run(store.create_run("votes", ["reward"], {}).id, status="failed")
    store.set_version_status(1, "canary", who="scheduler", why="run 1 passed the gate")
    store.set_version_status(1, "rolled_back", who="scheduler", why="0 wins and 9 losses")
    import_lines(store, PAIR, "trl", who="operator")
    assert told(store) == [
        ("operator", "imported trl (votes: 1, demonstrations: 0)"),
        ("scheduler", "set version 1 to rolled back: 0 wins and 9 losses"),
        ("scheduler", "set version 1 to canary: run 1 passed the gate"),
        ("scheduler", f"started run {run.id + 1} by votes"),
        ("operator page", f"cancelled run {run.id}"),
        ("command line", f"started run {run.id}"),
    ]


def test_what_is_refused_is_not_logged(store: Store) -> None:
    store.create_run("operator", ["reward"], {}, who="operator")
    import_lines(store, PAIR, "trl")
    before = told(store)
    with pytest.raises(RunActive):
        store.create_run("operator", ["reward"], {}, who="operator")
    with pytest.raises(Conflict):
        import_lines(store, PAIR, "trl")
    with pytest.raises(Conflict):
        store.set_version_status(0, "retired", who="operator", why="no reason")
    assert told(store) == before


def _start(store: Store) -> None:
    store.create_run("operator", ["reward"], {}, who="ada")


def _stage(store: Store) -> None:
    store.set_version_status(1, "canary", who="ada", why="it passed")


def _note(store: Store) -> None:
    store.note_version(1, "kinder", who="ada")


def _import(store: Store) -> None:
    import_lines(store, PAIR, "trl", who="ada")


def _exclude(store: Store) -> None:
    store.leave_out(voter=1, kind="exclude", reason="so", who="ada")


@pytest.mark.parametrize(
    ("place", "do"),
    [(runs, _start), (versions, _stage), (versions, _note), (ballots, _import), (exclusions, _exclude)],
)
def test_what_cannot_be_logged_is_not_done(
    store: Store, monkeypatch: pytest.MonkeyPatch, place: object, do: Callable[[Store], None]
) -> None:
    add_versions(store, 1)
    prefer(store, compare(store), 0)

    def refuse(*_: object) -> None:
        raise RuntimeError("the log is broken")

    def state() -> tuple[object, ...]:
        return store.runs(), store.versions(), store.standing_votes(), store.exclusions()

    before = state()
    monkeypatch.setattr(place, "log", refuse)
    with pytest.raises(RuntimeError):
        do(store)
    assert state() == before


def test_wrong_tokens_are_logged_once_a_minute(store: Store, clock: Clock) -> None:
    for _ in range(3):
        store.log_failed_login()
    clock.pass_by(minutes=1)
    store.log_failed_login()
    assert told(store) == [("somebody", "tried to log in with a wrong token")] * 2
