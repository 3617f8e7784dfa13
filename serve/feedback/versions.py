"""Versions, and the pointer that says which of them serves."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from typing import Any

from serve.errors import Conflict, NotFound
from serve.feedback.database import Database, moment
from serve.feedback.deeds import check_remark, log
from serve.feedback.entries import Promotion
from serve.records import BASE_VERSION, Version, VersionStatus


class Versions(Database):
    """The promoted row is the truth; the engine follows it."""

    def add_version(
        self,
        *,
        run: int | None,
        parent: int | None,
        status: VersionStatus,
        report: Mapping[str, Any] | None,
        sha256: str | None,
    ) -> Version:
        """A new version with the next number; `sha256` is its manifest's. Only `set_serving` makes it serve."""

        def work(db: sqlite3.Connection) -> Version:
            number = _next_number(db)
            db.execute(
                "INSERT INTO versions (number, status, run_id, parent, report, sha256, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (number, status, run, parent, json.dumps(dict(report or {})), sha256, self._now()),
            )
            return _load(db, number)

        return self.writing(work)

    def next_version_number(self) -> int:
        """What `add_version` will give."""
        with self.reading() as db:
            return _next_number(db)

    def set_serving(self, number: int, *, who: str, why: str, rolled_back: bool = False) -> Version:
        """Flip the pointer in one transaction and log it. The version that served is retired, or rolled back.

        Raises NotFound for an unknown version, Conflict for one that the gate rejected.
        """

        def work(db: sqlite3.Connection) -> Version:
            version, serving = _load(db, number), _serving(db)
            if version.status == "rejected":
                raise Conflict(f"version {number} was rejected by the gate and cannot serve; promote another one")
            if number == serving:
                return version
            # The base is never held against itself: it stays what one can always return to.
            left = "rolled_back" if rolled_back and serving != BASE_VERSION else "retired"
            db.execute("UPDATE versions SET status = ? WHERE number = ?", (left, serving))
            db.execute("UPDATE versions SET status = 'serving' WHERE number = ?", (number,))
            db.execute(
                "INSERT INTO promotions (from_version, to_version, who, why, rolled_back, created)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (serving, number, who, why, rolled_back, self._now()),
            )
            return _load(db, number)

        return self.writing(work)

    def set_version_status(self, number: int, status: VersionStatus, *, who: str, why: str) -> None:
        """Stage, canary, retire or reject a version, and log it.

        Raises NotFound; Conflict where the pointer would move.
        """

        def work(db: sqlite3.Connection) -> None:
            if (_load(db, number).status == "serving") != (status == "serving"):
                raise Conflict("promote a version or roll back to change which one serves")
            db.execute("UPDATE versions SET status = ? WHERE number = ?", (status, number))
            log(db, who, f"set version {number} to {status.replace('_', ' ')}: {why}", self._now())

        self.writing(work)

    def note_version(self, number: int, note: str, *, who: str) -> None:
        """Write something beside a version, and log it; an empty text takes it away. Raises NotFound, InvalidInput."""
        note = note.strip() and check_remark("the note", note)

        def work(db: sqlite3.Connection) -> None:
            if not db.execute("UPDATE versions SET note = ? WHERE number = ?", (note or None, number)).rowcount:
                raise NotFound(f"there is no version {number}")
            log(db, who, f"noted of version {number}: {note or 'nothing any more'}", self._now())

        self.writing(work)

    def votes_of(self, number: int) -> int:
        """How many votes a version learned from."""
        with self.reading() as db:
            row = db.execute(
                "SELECT count(*) FROM run_votes JOIN versions USING (run_id) WHERE number = ?", (number,)
            ).fetchone()
            return int(row[0])

    def serving(self) -> int:
        """The version that serves."""
        with self.reading() as db:
            return _serving(db)

    def previous_serving(self) -> int | None:
        """What a rollback returns to: the last version that served before and was not rolled back itself."""
        with self.reading() as db:
            row = db.execute(
                "SELECT from_version FROM promotions JOIN versions ON number = from_version"
                " WHERE NOT rolled_back AND status = 'retired' ORDER BY id DESC LIMIT 1"
            ).fetchone()
            return row and int(row["from_version"])

    def version(self, number: int) -> Version:
        """Raises NotFound."""
        with self.reading() as db:
            return _load(db, number)

    def versions(self) -> list[Version]:
        """The newest first; the base is the last."""
        with self.reading() as db:
            return [_version_from(row) for row in db.execute("SELECT * FROM versions ORDER BY number DESC")]

    def promotions(self) -> list[Promotion]:
        """The audit log, the newest first."""
        with self.reading() as db:
            rows = db.execute("SELECT * FROM promotions ORDER BY id DESC").fetchall()
        return [
            Promotion(
                r["from_version"], r["to_version"], r["who"], r["why"], bool(r["rolled_back"]), moment(r["created"])
            )
            for r in rows
        ]


def _next_number(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT max(number) + 1 FROM versions").fetchone()[0])


def _serving(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT number FROM versions WHERE status = 'serving'").fetchone()["number"])


def _load(db: sqlite3.Connection, number: int) -> Version:
    row = db.execute("SELECT * FROM versions WHERE number = ?", (number,)).fetchone()
    if row is None:
        raise NotFound(f"there is no version {number}")
    return _version_from(row)


def _version_from(row: sqlite3.Row) -> Version:
    return Version(
        row["number"],
        row["status"],
        moment(row["created"]),
        row["run_id"],
        row["parent"],
        row["report"] and json.loads(row["report"]),
        row["sha256"],
        row["note"],
    )
