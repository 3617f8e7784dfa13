"""What was deleted leaves the copies that runs keep, too."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from serve.copies import MARK, settle
from tests.fakes import Web
from tests.scenes import compare, user


@pytest.fixture
def web(tmp_path: Path) -> Web:
    return Web(tmp_path)


def copies(web: Web, folder: str, *, age: float = 0) -> Path:
    """A run's folder with its copies, `age` seconds old."""
    run = web.folder.runs / folder
    run.mkdir(parents=True)
    for name in ("snapshot.db", "rollouts.jsonl", "report.json"):
        (run / name).write_bytes(b"what anna said")
        then = (run / name).stat().st_mtime - age
        os.utime(run / name, (then, then))
    return run


def left(run: Path) -> set[str]:
    return {file.name for file in run.iterdir()}


WHOLE = {"snapshot.db", "rollouts.jsonl", "report.json"}


def test_who_is_forgotten_leaves_every_copy_made_since_also_of_runs_moved_aside(web: Web) -> None:
    web.store.record_prompt("anna", [user("Hi.")])
    before, since, aside = copies(web, "0001", age=3600), copies(web, "0102"), copies(web, "0003.old")
    asyncio.run(web.service.forget("anna"))
    assert left(before) == WHOLE
    assert left(since) == left(aside) == {"report.json"}


def test_the_copies_of_a_run_that_is_on_go_when_it_ends(web: Web) -> None:
    talk = compare(web.store, "anna").conversation_id
    run = web.store.create_run("operator", ["reward", "ppo"], {})
    on = copies(web, f"{run.id:04d}")
    asyncio.run(web.service.delete("anna", talk))
    assert left(on) == {*WHOLE, MARK}
    settle(web.folder, None)
    assert left(on) == {"report.json"}


def test_a_snapshot_in_the_making_is_marked_too_and_a_mark_that_was_left_is_found_later(web: Web) -> None:
    web.store.record_prompt("anna", [user("Hi.")])
    compare(web.store, "ben")
    run = web.store.create_run("operator", ["reward", "ppo"], {})
    on = copies(web, f"{run.id:04d}")
    (on / "snapshot.db").rename(on / "snapshot.db.partial")
    asyncio.run(web.service.forget("anna"))
    (on / "snapshot.db.partial").rename(on / "snapshot.db")
    settle(web.folder, run.id)
    assert left(on) == {*WHOLE, MARK}
    settle(web.folder, None)
    assert left(on) == {"report.json"}


def test_a_snapshot_that_was_never_finished_goes_too(web: Web) -> None:
    web.store.record_prompt("anna", [user("Hi.")])
    before, since = copies(web, "0001", age=3600), copies(web, "0002")
    for run in (before, since):
        (run / "snapshot.db").rename(run / "snapshot.db.partial")
        (run / "snapshot.db.partial-journal").write_bytes(b"what anna said")
    then = (before / "snapshot.db.partial").stat().st_mtime
    os.utime(before / "snapshot.db.partial-journal", (then, then))
    asyncio.run(web.service.forget("anna"))
    assert "snapshot.db.partial" in left(before)
    assert left(since) == {"report.json"}


def test_a_run_in_which_nothing_was_deleted_keeps_its_copies(web: Web) -> None:
    on = copies(web, "0001")
    settle(web.folder, None)
    assert left(on) == WHOLE
