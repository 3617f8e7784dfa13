"""feedback.db as a file: its lock, its one writer, its readers. What is stored is the business of the classes above."""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Self, TypeVar

from serve.errors import DatabaseBusy, InvalidInput, StartupError, Unavailable
from serve.feedback.schema import migrate
from serve.feedback.writer import Writer
from serve.folder import DataFolder

T = TypeVar("T")


def utc_now() -> datetime:
    """The time, aware, in UTC."""
    return datetime.now(UTC)


def stamp(moment: datetime) -> str:
    """RFC 3339 in UTC with microseconds: sorts as text."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def moment(text: str) -> datetime:
    """The inverse of `stamp`."""
    return datetime.fromisoformat(text)


def storable(what: str, text: str) -> str:
    """The text, if it can be stored. JSON can smuggle in halves of characters, which no file takes.

    Raises InvalidInput naming `what`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"{what} holds half of a surrogate pair; send whole characters") from error
    return text


class Database:
    """The open file. Thread-safe: reads run side by side, each in its own transaction; writes go through one thread."""

    def __init__(self, folder: DataFolder, lock: int, writer: Writer, clock: Callable[[], datetime]) -> None:
        self._folder = folder
        self._lock = lock
        self._writer = writer
        self._clock = clock
        self._idle: collections.deque[sqlite3.Connection] = collections.deque()
        self._closed = False

    @classmethod
    def open(cls, folder: DataFolder, *, clock: Callable[[], datetime] = utc_now) -> Self:
        """Take the lock, make the file if there is none, bring it to today's schema.

        Raises DatabaseBusy naming the holder's pid, StartupError where the file or its folder cannot be used.
        """
        try:
            folder.root.mkdir(parents=True, exist_ok=True)
            folder.db.touch(mode=0o600)
            lock = _take_lock(folder)
        except OSError as error:
            raise StartupError(f"{folder.root} cannot be used ({error.strerror}); name another with --db") from error
        try:
            writing = _connect(folder)
            try:
                migrate(writing)
                _end_what_a_crash_left_open(writing, clock())
            except Exception:
                writing.close()
                raise
        except sqlite3.DatabaseError as error:
            os.close(lock)
            raise StartupError(
                f"{folder.db} cannot be opened ({error}); move it away or name another with --db"
            ) from error
        except Exception:
            os.close(lock)
            raise
        return cls(folder, lock, Writer(writing), clock)

    def close(self) -> None:
        """Finish what is being written, checkpoint, release the lock. Idempotent."""
        if self._closed:
            return
        self._closed = True
        while self._idle:
            self._idle.pop().close()
        self._writer.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection that sees one moment of the record, however long it is held. Raises Unavailable once closed."""
        if self._closed:
            raise Unavailable("the record is closed; the server is stopping")
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = _connect(self._folder)
            connection.execute("PRAGMA query_only = on")
        connection.execute("BEGIN")
        try:
            yield connection
        finally:
            connection.execute("ROLLBACK")
            if self._closed:
                connection.close()
            else:
                self._idle.append(connection)

    def writing(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Run `work` on the writer thread; return its result once it is on disk. Never call this from within `work`."""
        return self._writer.write(work)

    @property
    def commits(self) -> int:
        """Transactions since it was opened: as long as that stays, so does the record."""
        return self._writer.commits

    def checkpoint(self) -> None:
        """Empty the write-ahead log into the file. Only the one writer does it: what SQLite is surest of."""
        self._writer.checkpoint()

    def _now(self) -> str:
        return stamp(self._clock())


def _take_lock(folder: DataFolder) -> int:
    descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.read(descriptor, 32).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise DatabaseBusy(
            f"{folder.db} is held by another server (pid {holder}); stop it or name another file with --db"
        ) from error
    os.truncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    return descriptor


def _connect(folder: DataFolder) -> sqlite3.Connection:
    connection = sqlite3.connect(folder.db, timeout=10, isolation_level=None, check_same_thread=False)
    connection.row_factory = sqlite3.Row
    connection.execute("PRAGMA journal_mode = wal")
    connection.execute("PRAGMA synchronous = full")
    connection.execute("PRAGMA foreign_keys = on")
    connection.execute("PRAGMA secure_delete = on")  # what is forgotten leaves the file, too
    connection.create_function("holds", 2, _holds, deterministic=True)  # LIKE knows the case of ASCII alone
    return connection


def _holds(text: str | None, words: str) -> bool:
    return words.casefold() in (text or "").casefold()


def _end_what_a_crash_left_open(connection: sqlite3.Connection, now: datetime) -> None:
    connection.execute(
        "UPDATE answers SET finish_reason = 'error', finished = ? WHERE finish_reason IS NULL", (stamp(now),)
    )
