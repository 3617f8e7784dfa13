"""Votes and voters that operators flag, or exclude from all learning and counting."""

from __future__ import annotations

import sqlite3

from serve.errors import Conflict, InvalidInput, NotFound
from serve.feedback.conversations import new_id
from serve.feedback.database import Database, moment
from serve.feedback.deeds import check_remark, log
from serve.feedback.entries import KINDS, Exclusion, Kind

STANDING = """
SELECT exclusions.*, number, messages.content AS prompt
FROM exclusions
LEFT JOIN votes ON votes.id = vote_id
LEFT JOIN comparisons ON comparisons.id = comparison_id
LEFT JOIN messages ON messages.id = prompt_id
JOIN voter_numbers ON voter_numbers.voter_id = coalesce(exclusions.voter_id, votes.voter_id)
WHERE lifted IS NULL ORDER BY exclusions.rowid DESC
"""


class Exclusions(Database):
    """What is excluded is not learned from, counts in no win rate and in no export; what is flagged does."""

    def leave_out(
        self, *, voter: int | None = None, vote: str | None = None, kind: Kind, reason: str, who: str
    ) -> Exclusion:
        """Flag or exclude a vote by its id, or all votes of a voter by the pseudonym's number, and log that.

        Raises InvalidInput, also without a reason, NotFound, and Conflict where that is so already.
        """
        if kind not in KINDS or (voter is None) == (vote is None):
            raise InvalidInput("name either a voter or a vote, and whether to flag or to exclude")
        reason = check_remark("the reason", reason)

        def work(db: sqlite3.Connection) -> Exclusion:
            voter_id = None if voter is None else _voter_id(db, voter)
            if vote is not None and not db.execute("SELECT 1 FROM votes WHERE id = ?", (vote,)).fetchone():
                raise NotFound("there is no such vote")
            if db.execute(
                "SELECT 1 FROM exclusions WHERE lifted IS NULL AND kind = ? AND vote_id IS ? AND voter_id IS ?",
                (kind, vote, voter_id),
            ).fetchone():
                raise Conflict("that is so already; lift it first")
            key, now = new_id(), self._now()
            db.execute(
                "INSERT INTO exclusions (id, voter_id, vote_id, kind, reason, who, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (key, voter_id, vote, kind, reason, who, now),
            )
            made = next(e for e in _standing(db) if e.id == key)
            log(db, who, f"{'excluded' if kind == 'exclude' else 'flagged'} {_whom(made)}: {reason}", now)
            return made

        return self.writing(work)

    def lift(self, exclusion_id: str, *, who: str) -> None:
        """Let it count again, and log that. Raises NotFound."""

        def work(db: sqlite3.Connection) -> None:
            standing = next((e for e in _standing(db) if e.id == exclusion_id), None)
            if standing is None:
                raise NotFound("there is no such flag or exclusion")
            now = self._now()
            db.execute("UPDATE exclusions SET lifted = ? WHERE id = ?", (now, exclusion_id))
            kind = "exclusion" if standing.kind == "exclude" else "flag"
            log(db, who, f"lifted the {kind} of {_whom(standing)}", now)

        self.writing(work)

    def exclusions(self) -> list[Exclusion]:
        """Those that hold, newest first."""
        with self.reading() as db:
            return _standing(db)

    def touched(self) -> dict[int, int]:
        """Version → how many votes it learned from that are excluded now."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT version, count(*) AS votes FROM runs JOIN run_votes ON run_id = runs.id"
                " JOIN excluded_votes ON excluded_votes.id = vote_id WHERE version IS NOT NULL GROUP BY version"
            )
            return {row["version"]: row["votes"] for row in rows}


def _whom(made: Exclusion) -> str:
    """For the log, which outlives what people wrote: none of their words are in it."""
    return made.voter if made.vote is None else f"vote {made.vote} of {made.voter}"


def _standing(db: sqlite3.Connection) -> list[Exclusion]:
    return [
        Exclusion(
            row["id"],
            row["kind"],
            f"voter-{row['number']}",
            row["vote_id"],
            row["prompt"],
            row["reason"],
            row["who"],
            moment(row["created"]),
        )
        for row in db.execute(STANDING)
    ]


def _voter_id(db: sqlite3.Connection, number: int) -> str:
    found = db.execute("SELECT voter_id FROM voter_numbers WHERE number = ?", (number,)).fetchone()
    if found is None:
        raise NotFound(f"there is no voter-{number}")
    return str(found["voter_id"])
