"""What operators keep an eye on: votes and demonstrations found again, those that do not count, and who did what."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from serve.errors import Conflict, InvalidInput, NotFound
from serve.feedback.conversations import new_id, path_messages
from serve.feedback.database import Database, moment, stamp, storable
from serve.feedback.entries import Deed, Exclusion

Kind = Literal["flag", "exclude"]
KINDS: tuple[Kind, ...] = ("flag", "exclude")
LONGEST_NOTE = 2000
PAGE = 50
"""Votes or demonstrations found at a time."""

FOUND = """
WITH RECURSIVE said(id) AS (
    SELECT id FROM messages WHERE :search <> '' AND holds(content, :search)
    UNION
    SELECT messages.id FROM messages JOIN said ON parent_id = said.id
)
SELECT standing_votes.*, prompt_id, messages.content AS prompt, number,
    EXISTS (SELECT 1 FROM excluded_votes WHERE excluded_votes.id = standing_votes.id) AS excluded,
    EXISTS (SELECT 1 FROM exclusions WHERE lifted IS NULL AND kind = 'flag'
        AND (vote_id = standing_votes.id OR exclusions.voter_id = standing_votes.voter_id)) AS flagged
FROM standing_votes
JOIN comparisons ON comparisons.id = comparison_id
JOIN messages ON messages.id = prompt_id
JOIN voter_numbers ON voter_numbers.voter_id = standing_votes.voter_id
WHERE sequence < :before
    AND (:voter IS NULL OR number = :voter)
    AND (:verdict IS NULL OR verdict = :verdict)
    AND (:evidence IS NULL OR standing_votes.evidence = :evidence)
    AND (:since IS NULL OR standing_votes.created >= :since)
    AND (:until IS NULL OR standing_votes.created < :until)
    AND (:version IS NULL OR EXISTS (
        SELECT 1 FROM candidates JOIN answers ON answers.id = answer_id
        WHERE candidates.comparison_id = standing_votes.comparison_id AND version = :version))
    AND (:search = '' OR prompt_id IN (SELECT id FROM said) OR EXISTS (
        SELECT 1 FROM candidates JOIN answers ON answers.id = answer_id
        WHERE candidates.comparison_id = standing_votes.comparison_id AND holds(text, :search)))
    AND (NOT :left_out OR excluded OR flagged)
ORDER BY sequence DESC LIMIT :limit
"""

SHOWN = """
SELECT demonstrations.rowid AS sequence, demonstrations.*, number,
    EXISTS (SELECT 1 FROM exclusions WHERE lifted IS NULL AND kind = 'exclude'
        AND exclusions.voter_id = demonstrations.voter_id) AS excluded,
    EXISTS (SELECT 1 FROM exclusions WHERE lifted IS NULL AND kind = 'flag'
        AND exclusions.voter_id = demonstrations.voter_id) AS flagged
FROM demonstrations
JOIN voter_numbers ON voter_numbers.voter_id = demonstrations.voter_id
WHERE demonstrations.rowid < :before
ORDER BY sequence DESC LIMIT :limit
"""


@dataclass(frozen=True)
class Search:
    """Which votes to find; None asks for nothing."""

    voter: int | None = None
    """A pseudonym's number."""
    version: int | None = None
    verdict: str | None = None
    evidence: bool | None = None
    text: str = ""
    since: str | None = None
    """A date or a time, in UTC where it names no zone."""
    until: str | None = None
    left_out: bool = False
    """Only what is flagged or excluded."""


class Oversight(Database):
    """Browsing, leaving out, and the log."""

    def find_votes(
        self, search: Search, *, before: int | None = None, limit: int = PAGE
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Standing votes, newest first, and where the next page begins; voters by their pseudonyms.

        Raises InvalidInput for what is no date.
        """
        span = {name: _time(name, getattr(search, name)) for name in ("since", "until")}
        with self.reading() as db:
            rows = db.execute(
                FOUND,
                {
                    **vars(search),
                    **span,
                    "search": search.text.strip(),
                    "before": 2**62 if before is None else before,
                    "limit": limit + 1,
                },
            ).fetchall()
            found = [
                {
                    "id": row["id"],
                    "voter": f"voter-{row['number']}",
                    "verdict": row["verdict"],
                    "ranking": row["ranking"] and json.loads(row["ranking"]),
                    "strength": row["strength"],
                    "reasons": json.loads(row["reasons"]),
                    "evidence": bool(row["evidence"]),
                    "source": row["source"],
                    "created": row["created"],
                    "prompt": row["prompt"],
                    "messages": [{"role": m.role, "content": m.content} for m in path_messages(db, row["prompt_id"])],
                    "answers": _answers(db, row["comparison_id"]),
                    "excluded": bool(row["excluded"]),
                    "flagged": bool(row["flagged"]),
                }
                for row in rows[:limit]
            ]
        return found, rows[limit - 1]["sequence"] if len(rows) > limit else None

    def find_demonstrations(
        self, *, before: int | None = None, limit: int = PAGE
    ) -> tuple[list[dict[str, Any]], int | None]:
        """Demonstrations, newest first, and where the next page begins; voters by their pseudonyms."""
        with self.reading() as db:
            rows = db.execute(SHOWN, {"before": 2**62 if before is None else before, "limit": limit + 1}).fetchall()
        found = [
            {
                "id": row["id"],
                "voter": f"voter-{row['number']}",
                "source": row["source"],
                "created": row["created"],
                "messages": json.loads(row["messages"]),
                "answer": row["answer"],
                "excluded": bool(row["excluded"]),
                "flagged": bool(row["flagged"]),
            }
            for row in rows[:limit]
        ]
        return found, rows[limit - 1]["sequence"] if len(rows) > limit else None

    def leave_out(
        self, *, voter: str | None = None, vote: str | None = None, kind: Kind, reason: str, who: str
    ) -> Exclusion:
        """Flag or exclude a vote by its id, or all votes of a voter by the pseudonym. A reason must be given.

        What is excluded is not learned from, counts in no win rate and in no export; what is flagged does, and is
        marked. Raises InvalidInput, NotFound, Conflict where that is so already.
        """
        if kind not in KINDS or (voter is None) == (vote is None):
            raise InvalidInput("name either a voter or a vote, and whether to flag or to exclude")
        reason = _note("the reason", reason)

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
            made = next(e for e in _exclusions(db) if e.id == key)
            _log(db, who, f"{'excluded' if kind == 'exclude' else 'flagged'} {_whom(made)}: {reason}", now)
            return made

        return self.writing(work)

    def lift(self, exclusion_id: str, *, who: str) -> None:
        """Let it count again. Raises NotFound."""

        def work(db: sqlite3.Connection) -> None:
            standing = next((e for e in _exclusions(db) if e.id == exclusion_id), None)
            if standing is None:
                raise NotFound("there is no such flag or exclusion")
            now = self._now()
            db.execute("UPDATE exclusions SET lifted = ? WHERE id = ?", (now, exclusion_id))
            _log(
                db, who, f"lifted the {'exclusion' if standing.kind == 'exclude' else 'flag'} of {_whom(standing)}", now
            )

        self.writing(work)

    def exclusions(self) -> list[Exclusion]:
        """Those that hold, newest first."""
        with self.reading() as db:
            return _exclusions(db)

    def touched(self) -> dict[int, int]:
        """Version → how many votes it learned from that are excluded now."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT version, count(*) AS votes FROM runs JOIN run_votes ON run_id = runs.id"
                " JOIN excluded_votes ON excluded_votes.id = vote_id WHERE version IS NOT NULL GROUP BY version"
            )
            return {row["version"]: row["votes"] for row in rows}

    def votes_of(self, version: int) -> int:
        """How many votes a version learned from."""
        with self.reading() as db:
            row = db.execute(
                "SELECT count(*) FROM run_votes JOIN versions USING (run_id) WHERE number = ?", (version,)
            ).fetchone()
            return int(row[0])

    def note_version(self, number: int, note: str, *, who: str) -> None:
        """Write something beside a version; an empty text takes it away. Raises NotFound, InvalidInput."""
        note = note.strip() and _note("the note", note)

        def work(db: sqlite3.Connection) -> None:
            if not db.execute("UPDATE versions SET note = ? WHERE number = ?", (note or None, number)).rowcount:
                raise NotFound(f"there is no version {number}")
            _log(db, who, f"noted of version {number}: {note or 'nothing any more'}", self._now())

        self.writing(work)

    def version_notes(self) -> dict[int, str]:
        """What stands beside versions."""
        with self.reading() as db:
            rows = db.execute("SELECT number, note FROM versions WHERE note IS NOT NULL")
            return {row["number"]: row["note"] for row in rows}

    def schedule(self) -> dict[str, str]:
        """What has been changed of the schedule: setting → value, as the environment would have it."""
        with self.reading() as db:
            return {row["name"]: row["value"] for row in db.execute("SELECT name, value FROM schedule")}

    def change_schedule(self, changes: Mapping[str, str], *, who: str) -> None:
        """Change some of it, and log that."""

        def work(db: sqlite3.Connection) -> None:
            now = self._now()
            for name, value in changes.items():
                db.execute(
                    "INSERT INTO schedule (name, value, who, created) VALUES (?, ?, ?, ?) ON CONFLICT (name)"
                    " DO UPDATE SET value = excluded.value, who = excluded.who, created = excluded.created",
                    (name, value, who, now),
                )
            if changes:
                _log(db, who, "set " + ", ".join(f"{name} to {value}" for name, value in changes.items()), now)

        self.writing(work)

    def log_deed(self, who: str, what: str) -> None:
        """Append to the log of who did what."""

        def work(db: sqlite3.Connection) -> None:
            _log(db, who, what, self._now())

        self.writing(work)

    def deeds(self, limit: int = 200) -> list[Deed]:
        """The log, newest first: promotions and all else."""
        with self.reading() as db:
            rows = db.execute(
                "SELECT who, what, created FROM deeds"
                " UNION ALL SELECT who, CASE rolled_back WHEN 1 THEN 'rolled back from version ' ELSE 'promoted over"
                " version ' END || from_version || ': version ' || to_version || ' serves (' || why || ')', created"
                " FROM promotions ORDER BY created DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [Deed(row["who"], row["what"], moment(row["created"])) for row in rows]


def _log(db: sqlite3.Connection, who: str, what: str, now: str) -> None:
    db.execute("INSERT INTO deeds (who, what, created) VALUES (?, ?, ?)", (who, what, now))


def _whom(made: Exclusion) -> str:
    return made.voter or f"vote {made.vote}"


def _answers(db: sqlite3.Connection, comparison_id: str) -> list[dict[str, Any]]:
    rows = db.execute(
        "SELECT candidates.id, version, coalesce(shown_text, text) AS text FROM candidates"
        " JOIN answers ON answers.id = answer_id WHERE comparison_id = ? ORDER BY position",
        (comparison_id,),
    )
    return [dict(row) for row in rows]


def _exclusions(db: sqlite3.Connection) -> list[Exclusion]:
    rows = db.execute(
        "SELECT exclusions.*, number FROM exclusions LEFT JOIN voter_numbers USING (voter_id)"
        " WHERE lifted IS NULL ORDER BY exclusions.rowid DESC"
    ).fetchall()
    return [
        Exclusion(
            row["id"],
            row["kind"],
            None if row["number"] is None else f"voter-{row['number']}",
            row["vote_id"],
            row["reason"],
            row["who"],
            moment(row["created"]),
        )
        for row in rows
    ]


def _time(name: str, text: str | None) -> str | None:
    """As it is stored."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} is a date such as 2026-01-31, not “{text}”") from None


def _voter_id(db: sqlite3.Connection, pseudonym: str) -> str:
    found = db.execute("SELECT voter_id FROM voter_numbers WHERE 'voter-' || number = ?", (pseudonym,)).fetchone()
    if found is None:
        raise NotFound(f"there is no voter called {pseudonym}")
    return str(found["voter_id"])


def _note(what: str, text: str) -> str:
    text = storable(what, text).strip()
    if not 1 <= len(text) <= LONGEST_NOTE:
        raise InvalidInput(f"{what} has 1 to {LONGEST_NOTE} characters, not {len(text)}")
    return text
