"""The one thread that writes: what has queued up meanwhile is one transaction, so that many share one fsync."""

from __future__ import annotations

import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve.errors import Unavailable

T = TypeVar("T")

LARGEST_GROUP = 64
"""Jobs in one transaction at most, so that the first of them never waits long."""

UNWRITABLE = {
    sqlite3.SQLITE_FULL: "the disk is full; free some space",
    sqlite3.SQLITE_IOERR: "the disk fails; check it",
    sqlite3.SQLITE_READONLY: "the file is read-only; make it writable",
    sqlite3.SQLITE_CANTOPEN: "the file cannot be opened; check the folder and its permissions",
    sqlite3.SQLITE_BUSY: "another program holds the file; close it",
}


@dataclass
class _Job:
    work: Callable[[sqlite3.Connection], Any]
    alone: bool = False
    """Outside of any transaction."""
    future: Future[Any] = field(default_factory=Future)
    result: Any = None
    error: Exception | None = None


class Writer:
    """Runs jobs one after the other on one connection. A job that raises is undone by itself; its neighbours stand."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._gate = threading.Lock()
        self._closed = False
        self.commits = 0
        """Transactions so far."""
        self._thread = threading.Thread(target=self._run, name="feedback-writer", daemon=True)
        self._thread.start()

    def write(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` in a transaction and return its result once that is committed. Never call this from within `work`.

        Raises what `work` raises; Unavailable when the record is closed or the disk does not take it.
        """
        result: T = self._wait_for(_Job(work))
        return result

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file and empty it, unless a long read still needs it."""
        self._wait_for(_Job(_checkpoint, alone=True))

    def close(self) -> None:
        """Finish what is queued, move the write-ahead log into the file and end the thread. Idempotent."""
        with self._gate:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _wait_for(self, job: _Job) -> Any:
        with self._gate:
            if self._closed:
                raise Unavailable("the record is closed; the server is stopping")
            self._jobs.put(job)
        return job.future.result()

    def _run(self) -> None:
        stopping = False
        while not stopping:
            group = [self._jobs.get()]
            while len(group) < LARGEST_GROUP and not self._jobs.empty():
                group.append(self._jobs.get())
            stopping = None in group
            jobs = [job for job in group if job is not None]
            self._commit([job for job in jobs if not job.alone])
            for job in jobs:
                if job.alone:
                    try:
                        job.future.set_result(job.work(self._connection))
                    except sqlite3.Error as error:
                        job.future.set_exception(_readable(error))
        self._connection.close()  # the last connection to close also checkpoints

    def _commit(self, jobs: list[_Job]) -> None:
        if not jobs:
            return
        db = self._connection
        try:
            db.execute("BEGIN IMMEDIATE")
            for job in jobs:
                db.execute("SAVEPOINT job")
                try:
                    job.result = job.work(db)
                except Exception as error:
                    if not db.in_transaction:  # a full disk takes the whole transaction along
                        raise
                    db.execute("ROLLBACK TO job")
                    job.error = error
                db.execute("RELEASE job")
            db.execute("COMMIT")
            self.commits += 1
        except Exception as error:  # noqa: BLE001  every caller must hear of it, or it would wait for ever
            if db.in_transaction:
                db.execute("ROLLBACK")
            for job in jobs:
                job.error = error
        for job in jobs:
            if job.error is None:
                job.future.set_result(job.result)
            else:
                job.future.set_exception(_readable(job.error))


def _checkpoint(db: sqlite3.Connection) -> None:
    (patience,) = db.execute("PRAGMA busy_timeout").fetchone()
    db.execute("PRAGMA busy_timeout = 200")
    db.execute("PRAGMA wal_checkpoint(truncate)")
    db.execute(f"PRAGMA busy_timeout = {patience}")


def _readable(error: Exception) -> Exception:
    if isinstance(error, sqlite3.Error):
        fix = UNWRITABLE.get((error.sqlite_errorcode or 0) & 0xFF)
        if fix is not None:
            return Unavailable(f"the record cannot be written: {fix} ({error})")
    return error
