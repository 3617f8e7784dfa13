"""The log of who did what."""

from __future__ import annotations

import sqlite3
from datetime import timedelta

from serve.errors import InvalidInput
from serve.feedback.database import Database, moment, stamp, storable
from serve.feedback.entries import Deed

LONGEST_REMARK = 2000
FAILED_LOGIN = ("somebody", "tried to log in with a wrong token")
_FAILED_LOGINS_APART = timedelta(minutes=1)


class Deeds(Database):
    """Append-only. What changes the record logs it in its own transaction, by `log`."""

    def log_deed(self, who: str, what: str) -> None:
        """Append what changes nothing else in the record: a login, an export."""

        def work(db: sqlite3.Connection) -> None:
            log(db, who, what, self._now())

        self.writing(work)

    def log_failed_login(self) -> None:
        """Append that somebody came with a wrong token, once a minute: whoever tries many does not fill the log."""
        lately = stamp(self._clock() - _FAILED_LOGINS_APART)

        def told(db: sqlite3.Connection) -> bool:
            last = "SELECT created FROM deeds WHERE who = ? AND what = ? ORDER BY id DESC LIMIT 1"
            row = db.execute(last, FAILED_LOGIN).fetchone()
            return row is not None and row["created"] > lately

        def work(db: sqlite3.Connection) -> None:
            if not told(db):
                log(db, *FAILED_LOGIN, self._now())

        with self.reading() as db:
            if told(db):
                return
        self.writing(work)

    def deeds(self, limit: int = 200) -> list[Deed]:
        """The newest first: promotions and all else."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT who, what, created FROM deeds"
                " UNION ALL SELECT who, CASE rolled_back WHEN 1 THEN 'rolled back from version ' ELSE 'promoted over"
                " version ' END || from_version || ': version ' || to_version || ' serves (' || why || ')', created"
                " FROM promotions ORDER BY created DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Deed(row["who"], row["what"], moment(row["created"])) for row in rows]


def log(db: sqlite3.Connection, who: str, what: str, now: str) -> None:
    """Append to the log, within the transaction that does what is logged."""
    db.execute("INSERT INTO deeds (who, what, created) VALUES (?, ?, ?)", (who, what, now))


def check_remark(what: str, text: str) -> str:
    """What an operator wrote, as it is stored. Raises InvalidInput naming `what`."""
    text = storable(what, text).strip()
    if not 1 <= len(text) <= LONGEST_REMARK:
        raise InvalidInput(f"{what} has 1 to {LONGEST_REMARK} characters, not {len(text)}")
    return text
