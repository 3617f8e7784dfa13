"""Votes and demonstrations as operators look through them: a page at a time, voters by their pseudonyms."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

from serve.errors import InvalidInput
from serve.feedback.database import Database, stamp

PAGE = 50
"""Votes or demonstrations found at a time."""

FIND_VOTES = """
WITH RECURSIVE said(id) AS (
    SELECT id FROM messages WHERE :text <> '' AND holds(content, :text)
    UNION
    SELECT messages.id FROM messages JOIN said ON parent_id = said.id
)
SELECT standing_votes.*, prompt_id, messages.content AS prompt, judge.number AS judge,
    CASE WHEN conversations.source <> 'shipped' THEN author.number END AS author,
    EXISTS (SELECT 1 FROM excluded_votes WHERE excluded_votes.id = standing_votes.id) AS excluded,
    EXISTS (
        SELECT 1 FROM exclusions LEFT JOIN votes AS named ON named.id = vote_id
        WHERE lifted IS NULL AND kind = 'flag' AND (
            exclusions.voter_id = standing_votes.voter_id OR named.comparison_id = standing_votes.comparison_id
        )
    ) AS flagged
FROM standing_votes
JOIN comparisons ON comparisons.id = comparison_id
JOIN messages ON messages.id = prompt_id
JOIN conversations ON conversations.id = conversation_id
JOIN voter_numbers AS judge ON judge.voter_id = standing_votes.voter_id
JOIN voter_numbers AS author ON author.voter_id = conversations.voter_id
WHERE sequence < :before
    AND (:voter IS NULL OR judge.number = :voter)
    AND (:asked_by IS NULL OR conversations.source <> 'shipped' AND author.number = :asked_by)
    AND (:verdict IS NULL OR verdict = :verdict)
    AND (standing_votes.source <> 'server' OR :verdict = 'skip')
    AND (:evidence IS NULL OR standing_votes.evidence = :evidence)
    AND (:since IS NULL OR standing_votes.created >= :since)
    AND (:until IS NULL OR standing_votes.created < :until)
    AND (:version IS NULL OR EXISTS (
        SELECT 1 FROM candidates JOIN answers ON answers.id = answer_id
        WHERE candidates.comparison_id = standing_votes.comparison_id AND version = :version))
    AND (:text = '' OR prompt_id IN (SELECT id FROM said) OR EXISTS (
        SELECT 1 FROM candidates JOIN answers ON answers.id = answer_id
        WHERE candidates.comparison_id = standing_votes.comparison_id AND holds(answers.text, :text)))
    AND (NOT :left_out OR excluded OR flagged)
ORDER BY sequence DESC LIMIT :limit
"""

FIND_DEMONSTRATIONS = """
SELECT demonstrations.rowid AS sequence, demonstrations.*, number,
    demonstrations.voter_id IN (SELECT voter_id FROM excluded_voters) AS excluded,
    EXISTS (SELECT 1 FROM exclusions WHERE lifted IS NULL AND kind = 'flag'
        AND exclusions.voter_id = demonstrations.voter_id) AS flagged
FROM demonstrations
JOIN voter_numbers ON voter_numbers.voter_id = demonstrations.voter_id
WHERE demonstrations.rowid < :before
    AND (:voter IS NULL OR number = :voter)
    AND (:since IS NULL OR demonstrations.created >= :since)
    AND (:until IS NULL OR demonstrations.created < :until)
    AND (:text = '' OR holds(answer, :text) OR EXISTS (
        SELECT 1 FROM json_each(demonstrations.messages) WHERE holds(value ->> '$.content', :text)))
    AND (NOT :left_out OR excluded OR flagged)
ORDER BY sequence DESC LIMIT :limit
"""

PATHS = """
WITH RECURSIVE path(leaf, parent_id, role, content, depth) AS (
    SELECT id, parent_id, role, content, 0 FROM messages WHERE id IN (SELECT value FROM json_each(?))
    UNION ALL
    SELECT leaf, messages.parent_id, messages.role, messages.content, depth + 1
    FROM path JOIN messages ON messages.id = path.parent_id
)
SELECT leaf, role, content FROM path ORDER BY leaf, depth DESC
"""

SHOWN = """
SELECT comparison_id, candidates.id, version, coalesce(shown_text, text) AS text
FROM candidates JOIN answers ON answers.id = answer_id
WHERE comparison_id IN (SELECT value FROM json_each(?)) ORDER BY comparison_id, position
"""

Found = tuple[list[dict[str, Any]], int | None]
"""A page, and where the next one begins."""


@dataclass(frozen=True)
class Search:
    """What to find; None asks for nothing. Demonstrations have no verdict, version, evidence or `asked_by`."""

    voter: int | None = None
    """The pseudonym's number of who judged it, or wrote it."""
    version: int | None = None
    verdict: str | None = None
    """Skips that nobody cast, because people typed on, are found by `skip` alone."""
    evidence: bool | None = None
    text: str = ""
    since: str | None = None
    """A date or a time, in UTC where it names no zone."""
    until: str | None = None
    """The first moment that is left out."""
    left_out: bool = False
    """Only what is flagged or excluded."""
    asked_by: int | None = None
    """The number of whose prompt it was."""


class Browsing(Database):
    """Newest first; each page tells where the next one begins. Raises InvalidInput for what is no date."""

    def find_votes(self, search: Search, *, before: int | None = None, limit: int = PAGE) -> Found:
        """Standing votes, each with all that was said before it and its answers."""
        with self.reading() as db:
            rows, following = _page(db, FIND_VOTES, search, before, limit)
            paths = _grouped(db, PATHS, "leaf", {row["prompt_id"] for row in rows})
            answers = _grouped(db, SHOWN, "comparison_id", {row["comparison_id"] for row in rows})
        found = [
            {
                "id": row["id"],
                "voter": f"voter-{row['judge']}",
                "asked_by": None if row["author"] is None else f"voter-{row['author']}",
                "verdict": row["verdict"],
                "ranking": row["ranking"] and json.loads(row["ranking"]),
                "strength": row["strength"],
                "reasons": json.loads(row["reasons"]),
                "evidence": bool(row["evidence"]),
                "source": row["source"],
                "created": row["created"],
                "prompt": row["prompt"],
                "messages": paths[row["prompt_id"]],
                "answers": answers.get(row["comparison_id"], []),
                "excluded": bool(row["excluded"]),
                "flagged": bool(row["flagged"]),
            }
            for row in rows
        ]
        return found, following

    def find_demonstrations(self, search: Search, *, before: int | None = None, limit: int = PAGE) -> Found:
        """Demonstrations, those that people wrote or edited and imported ones."""
        with self.reading() as db:
            rows, following = _page(db, FIND_DEMONSTRATIONS, search, before, limit)
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
            for row in rows
        ]
        return found, following


def _page(
    db: sqlite3.Connection, query: str, search: Search, before: int | None, limit: int
) -> tuple[Sequence[sqlite3.Row], int | None]:
    wanted = asdict(search) | {
        "text": search.text.strip(),
        "since": _time("since", search.since),
        "until": _time("until", search.until),
        "before": 2**62 if before is None else before,
        "limit": limit + 1,
    }
    rows = db.execute(query, wanted).fetchall()
    return rows[:limit], rows[limit - 1]["sequence"] if len(rows) > limit else None


def _grouped(db: sqlite3.Connection, query: str, by: str, keys: Iterable[str]) -> dict[str, list[dict[str, Any]]]:
    """The query's rows by one of their columns, which is not told again; the query is given the keys, as JSON."""
    rows = db.execute(query, (json.dumps(list(keys)),))
    return {
        key: [{name: value for name, value in dict(row).items() if name != by} for row in group]
        for key, group in groupby(rows, key=lambda row: row[by])
    }


def _time(name: str, text: str | None) -> str | None:
    """As it is stored."""
    if not text:
        return None
    try:
        found = datetime.fromisoformat(text)
        return stamp(found if found.tzinfo else found.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        raise InvalidInput(f"{name} is a date such as 2026-01-31, not “{text}”") from None
