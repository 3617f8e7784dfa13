"""The file: its lock, its writer, its readers, and what a crash leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from serve.errors import (
    DatabaseBusy,
    NotFound,
    StartupError,
    Unavailable,
)
from serve.feedback.store import Store
from serve.feedback.writer import Writer
from serve.folder import DataFolder
from tests.scenes import (
    compare,
    open_comparison,
    prefer,
    user,
)


def _texts(store: Store, conversation_id: str, voter: str = "anna") -> list[str]:
    return [turn.message.content for turn in store.conversation(conversation_id, voter)]


def test_opening_makes_the_folder_and_the_file(folder: DataFolder) -> None:
    Store.open(folder).close()
    assert folder.db.exists()
    assert folder.db.stat().st_mode & 0o077 == 0, "other users of the machine may not read it"


def test_a_second_server_is_refused_by_the_pid_of_the_first(store: Store, folder: DataFolder) -> None:
    with pytest.raises(DatabaseBusy, match=f"pid {os.getpid()}"):
        Store.open(folder)


def test_the_lock_is_released_on_close_and_when_opening_fails(folder: DataFolder) -> None:
    folder.root.mkdir(parents=True)
    folder.db.write_text("This is a diary, and it is long enough to be no header of anything at all." * 9)
    for _ in range(2):
        with pytest.raises(StartupError, match=r"feedback\.db cannot be opened .*--db"):
            Store.open(folder)
    folder.db.unlink()
    Store.open(folder).close()
    Store.open(folder).close()


def test_a_folder_that_is_a_file_is_a_startup_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StartupError, match="--db"):
        Store.open(DataFolder(tmp_path / "data" / "feedback.db"))


def test_a_closed_record_refuses_writes_and_closes_twice(folder: DataFolder) -> None:
    store = Store.open(folder)
    store.close()
    store.close()
    with pytest.raises(Unavailable):
        store.record_prompt("anna", [user("Hello?")])
    with pytest.raises(Unavailable):
        store.serving()


def test_what_was_written_is_there_after_a_restart(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        comparison = compare(store)
        prefer(store, comparison, 0)
    with Store.open(folder) as store:
        assert _texts(store, comparison.conversation_id) == ["Why is the sea blue?", "Light."]


def test_answers_that_a_crash_cut_off_are_marked_at_the_next_start(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        comparison = open_comparison(store)
    with Store.open(folder) as store:
        again = store.comparison(comparison.id, "anna")
        assert [c.answer.finish_reason for c in again.candidates] == ["error", "error"]


def test_every_acknowledged_write_survives_a_kill(folder: DataFolder) -> None:
    code = """
        import sys
        from pathlib import Path
        from serve.feedback.store import Store
        from serve.folder import DataFolder
        from serve.records import Message
        store = Store.open(DataFolder(Path(sys.argv[1])))
        while True:
            store.record_prompt("anna", [Message("user", "Hello?")])
            print("written", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder.db)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    for _ in range(20):
        assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    written = 20 + len(process.stdout.readlines())
    process.wait()
    process.stdout.close()
    with Store.open(folder) as store:
        assert written <= len(store.conversations("anna", limit=100_000)) <= written + 1


def test_many_threads_write_at_once_and_nothing_is_lost(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(lambda i: store.record_prompt(f"voter {i % 4}", [user(f"Question {i}?")]), range(100)))
    assert len({ref.conversation_id for ref in refs}) == 100
    assert sum(len(store.conversations(f"voter {i}")) for i in range(4)) == 100


def test_queued_writes_share_one_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = Writer._commit

    def counting(self: Writer, jobs: list[Any]) -> None:
        groups.append(len(jobs))
        commit(self, jobs)

    monkeypatch.setattr(Writer, "_commit", counting)
    held, release = threading.Event(), threading.Event()

    def hold(_: sqlite3.Connection) -> None:
        held.set()
        release.wait(10)

    with ThreadPoolExecutor(9) as pool:
        pool.submit(store.writing, hold)
        assert held.wait(10)
        writes = [pool.submit(store.record_prompt, "anna", [user(f"Question {i}?")]) for i in range(8)]
        deadline = time.monotonic() + 10
        while store._writer._jobs.qsize() < 8 and time.monotonic() < deadline:
            time.sleep(0.001)
        release.set()
        for write in writes:
            write.result(10)
    assert groups == [1, 8]


def test_a_write_that_fails_takes_no_other_along(store: Store) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        pool.submit(store.writing, lambda db: release.wait(10))
        good = pool.submit(store.record_prompt, "anna", [user("One?")])
        bad = pool.submit(store.record_prompt, "anna", [user("Two?")], conversation_id="nobody's")
        also_good = pool.submit(store.record_prompt, "anna", [user("Three?")])
        release.set()
        with pytest.raises(NotFound):
            bad.result()
        assert good.result() != also_good.result()
    assert len(store.conversations("anna")) == 2


def test_a_full_disk_is_told_and_the_record_goes_on(store: Store) -> None:
    store.record_prompt("anna", [user("Hello?")])
    store.writing(lambda db: None)
    pages = store.writing(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="disk is full"):
        store.record_prompt("anna", [user("x" * 100_000)])
    store._writer._connection.execute("PRAGMA max_page_count = 1000000")
    store.record_prompt("anna", [user("x" * 100_000)])
    assert len(store.conversations("anna")) == 2


def test_a_long_read_sees_one_moment(store: Store) -> None:
    with store.reading() as db:
        before = db.execute("SELECT count(*) FROM conversations").fetchone()[0]
        store.record_prompt("anna", [user("Hello?")])
        assert db.execute("SELECT count(*) FROM conversations").fetchone()[0] == before
    assert len(store.conversations("anna")) == before + 1


def test_readers_cannot_write(store: Store) -> None:
    with store.reading() as db, pytest.raises(sqlite3.OperationalError):
        db.execute("DELETE FROM versions")


def test_importing_the_record_loads_no_heavy_library() -> None:
    code = (
        "import sys, serve.feedback.store, serve.feedback.exchange;"
        "print({'torch', 'gradio', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    assert done.stdout.strip() == "set()"


def test_the_record_says_whether_something_was_written(store: Store) -> None:
    receipt = prefer(store, compare(store), 0)
    before, board = store.commits, store.votes_state()
    store.runs()
    assert store.commits == before
    store.note_vote(receipt.id, "anna", strength=3)
    assert store.commits == before + 1
    assert store.votes_state() == board, "the board asks neither how much better nor why"
