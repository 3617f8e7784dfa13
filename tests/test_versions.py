"""Versions and the pointer that says which serves."""

from __future__ import annotations

import pytest

from serve.errors import (
    Conflict,
    InvalidInput,
    NotFound,
)
from serve.feedback.store import Store
from serve.folder import DataFolder
from tests.scenes import (
    add_versions,
)


def test_the_base_serves_a_fresh_record(store: Store) -> None:
    assert store.serving() == 0
    assert store.previous_serving() is None
    assert store.next_version_number() == 1
    assert [v.status for v in store.versions()] == ["serving"]


def test_versions_are_numbered_from_one_and_know_their_run_and_parent(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    version = store.add_version(run=run.id, parent=0, status="staged", report={"gate": {"kl": 3.0}}, sha256="ab")
    assert (version.number, version.run, version.parent, version.report) == (1, run.id, 0, {"gate": {"kl": 3.0}})
    assert store.version(1) == version
    assert store.next_version_number() == 2
    with pytest.raises(NotFound):
        store.version(2)


def test_promoting_retires_what_served_and_logs_it(store: Store) -> None:
    add_versions(store, 2)
    store.set_serving(1, who="operator", why="passed the gate")
    store.set_serving(2, who="operator", why="better")
    assert store.serving() == 2
    assert [(v.number, v.status) for v in store.versions()] == [(2, "serving"), (1, "retired"), (0, "retired")]
    assert [(p.from_version, p.to_version, p.why) for p in store.promotions()] == [
        (1, 2, "better"),
        (0, 1, "passed the gate"),
    ]
    store.set_serving(2, who="operator", why="again")
    assert len(store.promotions()) == 2, "nothing moved, nothing to log"


def test_rolling_back_goes_down_step_by_step_to_the_base_and_no_further(store: Store) -> None:
    add_versions(store, 3)
    for number in (1, 2):
        store.set_serving(number, who="run", why="gate")
    for expected in (1, 0):
        previous = store.previous_serving()
        assert previous == expected
        store.set_serving(previous, who="operator", why="worse", rolled_back=True)
    assert store.previous_serving() is None
    assert [(v.number, v.status) for v in store.versions()] == [
        (3, "staged"),
        (2, "rolled_back"),
        (1, "rolled_back"),
        (0, "serving"),
    ]
    store.set_serving(3, who="run", why="gate")
    assert store.previous_serving() == 0


def test_a_rejected_version_never_serves(store: Store) -> None:
    store.add_version(run=None, parent=0, status="rejected", report={}, sha256=None)
    with pytest.raises(Conflict, match="rejected"):
        store.set_serving(1, who="operator", why="I like it")
    with pytest.raises(NotFound):
        store.set_serving(7, who="operator", why="typo")
    assert store.serving() == 0


def test_a_status_cannot_move_the_serving_pointer(store: Store) -> None:
    add_versions(store, 1)
    store.set_version_status(1, "canary", who="test", why="test")
    assert store.version(1).status == "canary"
    with pytest.raises(Conflict):
        store.set_version_status(1, "serving", who="test", why="test")
    with pytest.raises(Conflict):
        store.set_version_status(0, "retired", who="test", why="test")
    with pytest.raises(NotFound):
        store.set_version_status(5, "staged", who="test", why="test")


def test_versions_have_notes(store: Store) -> None:
    add_versions(store, 1)
    store.note_version(1, "kinder, but longer", who="ada")
    assert [version.note for version in store.versions()] == ["kinder, but longer", None]
    store.note_version(1, " ", who="ada")
    assert store.version(1).note is None
    with pytest.raises(NotFound):
        store.note_version(9, "?", who="ada")
    with pytest.raises(InvalidInput):
        store.note_version(1, "x" * 3000, who="ada")
    noted = [("ada", f"noted of version 1: {words}") for words in ("nothing any more", "kinder, but longer")]
    assert [(deed.who, deed.what) for deed in store.deeds()] == noted


def test_the_pointer_survives_a_restart(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        add_versions(store, 1)
        store.set_serving(1, who="run", why="gate")
    with Store.open(folder) as store:
        assert store.serving() == 1
