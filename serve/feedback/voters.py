"""What a voter gave, beyond votes: demonstrations; and the voter's right to see and to take back everything."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from serve.errors import InvalidInput, NotFound
from serve.feedback.conversations import (
    VISIBLE,
    check_prompt,
    ensure_voter,
    move_leaf,
    new_id,
    require_talk,
    walk,
)
from serve.feedback.database import Database, moment, storable
from serve.feedback.entries import Consent
from serve.feedback.reports import gate_win_rate
from serve.feedback.votes import visible_comparison
from serve.records import Demonstration, Message

MY_VOTES = f"""
SELECT standing_votes.*, conversation_id, CASE WHEN {VISIBLE} THEN messages.content END AS prompt,
    conversations.voter_id AS owner_id, standing_votes.id IN (SELECT id FROM excluded_votes) AS excluded
FROM standing_votes
JOIN comparisons ON comparisons.id = comparison_id
JOIN messages ON messages.id = prompt_id
JOIN conversations ON conversations.id = conversation_id
WHERE standing_votes.voter_id = :voter ORDER BY sequence
"""

MY_LESSONS = """
SELECT vote_id, runs.id, runs.status, runs.version, runs.report ->> '$.reasons[0]' AS reason
FROM votes JOIN run_votes ON vote_id = votes.id JOIN runs ON runs.id = run_id
WHERE voter_id = ? ORDER BY runs.id
"""

MY_WITHDRAWN = """
SELECT votes.id, votes.comparison_id AS comparison, votes.verdict, votes.ranking, votes.created,
    coalesce(vote_notes.strength, votes.strength) AS strength, coalesce(vote_notes.reasons, votes.reasons) AS reasons,
    later.created AS withdrawn
FROM votes JOIN votes AS later ON later.supersedes = votes.id LEFT JOIN vote_notes ON vote_id = votes.id
WHERE votes.voter_id = ? AND votes.verdict <> 'withdrawn' ORDER BY votes.rowid
"""

MY_EXCLUSIONS = """
SELECT vote_id AS vote, kind, reason, created, lifted FROM exclusions
WHERE voter_id = :voter OR vote_id IN (SELECT id FROM votes WHERE voter_id = :voter) ORDER BY rowid
"""

MY_VERSIONS = "SELECT number AS version, status, parent FROM versions ORDER BY number"

MY_MESSAGES = """
SELECT conversation_id, title, messages.id, parent_id, role, content, version, share, messages.created
FROM messages JOIN conversations ON conversations.id = conversation_id
LEFT JOIN answers ON answers.id = answer_id
WHERE conversations.voter_id = ? ORDER BY messages.rowid
"""

TOLD_OF_A_MESSAGE = ("id", "parent_id", "role", "content", "version", "created")
TOLD_OF_A_CANDIDATE = ("id", "position", "text", "version")

MY_CANDIDATES = f"""
SELECT comparison_id, candidates.id, position, coalesce(shown_text, text) AS text, messages.content AS prompt,
    comparisons.created, CASE WHEN EXISTS (SELECT 1 FROM votes WHERE votes.comparison_id = comparisons.id)
        THEN answers.version END AS version
FROM candidates JOIN comparisons ON comparisons.id = comparison_id JOIN answers ON answers.id = candidates.answer_id
JOIN messages ON messages.id = comparisons.prompt_id JOIN conversations ON conversations.id = conversation_id
WHERE comparisons.voter_id = :voter AND {VISIBLE} ORDER BY candidates.rowid
"""

MY_DEMONSTRATIONS = f"""
SELECT demonstrations.*, prompt_id IS NULL OR EXISTS (
    SELECT 1 FROM messages JOIN conversations ON conversations.id = conversation_id
    WHERE messages.id = prompt_id AND {VISIBLE}
) AS visible
FROM demonstrations WHERE voter_id = :voter ORDER BY rowid
"""


class Voters(Database):
    """Demonstrations, my data, forget me."""

    def add_demonstration(
        self,
        voter_id: str,
        messages: Sequence[Message],
        answer: str,
        *,
        source: str = "voter",
        conversation_id: str | None = None,
        comparison_id: str | None = None,
    ) -> Demonstration:
        """Store an answer that a person wrote; in a conversation it is the history from here on.

        Where a conversation or a comparison is named, it lasts as long as the prompt that it answers, and takes the
        place of an earlier one of this voter's to that prompt.
        Raises InvalidInput when the prompt or the answer is empty, NotFound when the conversation is not the voter's,
        or the comparison none that the voter may see.
        """
        check_prompt(messages)
        if not storable("the answer", answer).strip():
            raise InvalidInput("the answer is empty; write what should have been said")

        def work(db: sqlite3.Connection) -> Demonstration:
            now = self._now()
            ensure_voter(db, voter_id, now)
            prompt_id = None if comparison_id is None else _judged_prompt(db, comparison_id, voter_id)
            if conversation_id is not None:
                require_talk(db, voter_id, conversation_id)
                prompt_id = walk(db, conversation_id, messages, now)
                move_leaf(
                    db, conversation_id, walk(db, conversation_id, (*messages, Message("assistant", answer)), now), now
                )
            db.execute(
                "DELETE FROM demonstrations WHERE voter_id = ? AND source = ? AND prompt_id = ? AND messages = ?",
                (voter_id, source, prompt_id, messages_json(messages)),
            )
            demonstration = Demonstration(new_id(), tuple(messages), answer, moment(now))
            insert_demonstration(db, voter_id, demonstration, source, now, prompt_id=prompt_id)
            return demonstration

        return self.writing(work)

    def withdraw_demonstration(self, demonstration_id: str, voter_id: str) -> None:
        """Delete a demonstration; a conversation that went on with it stays as it is. Raises NotFound."""

        def work(db: sqlite3.Connection) -> None:
            mine = (demonstration_id, voter_id)
            if not db.execute("DELETE FROM demonstrations WHERE id = ? AND voter_id = ?", mine).rowcount:
                raise NotFound("there is no such answer of yours; it may be withdrawn already")

        self.writing(work)
        self.checkpoint()

    def consent(self, voter_id: str) -> Consent:
        """What this voter agreed to."""
        with self.reading() as db:
            row = db.execute("SELECT consented, share FROM voters WHERE id = ?", (voter_id,)).fetchone()
        return Consent() if row is None else Consent(row["consented"] is not None, bool(row["share"]))

    def give_consent(self, voter_id: str, share: bool) -> None:
        """Note that the voter knows what is kept, and whether prompts may be shown to others.

        Without `share` those that were shared before are shown to nobody any more.
        """

        def work(db: sqlite3.Connection) -> None:
            now = self._now()
            ensure_voter(db, voter_id, now)
            db.execute(
                "UPDATE voters SET consented = coalesce(consented, ?), share = ? WHERE id = ?", (now, share, voter_id)
            )
            if not share:
                db.execute(
                    "UPDATE messages SET share = 0 WHERE share AND conversation_id IN"
                    " (SELECT id FROM conversations WHERE voter_id = ?)",
                    (voter_id,),
                )

        self.writing(work)

    def demonstrations_count(self) -> int:
        """Demonstrations that a run would learn from."""
        with self.reading() as db:
            return int(db.execute("SELECT count(*) FROM counted_demonstrations").fetchone()[0])

    def me(self, voter_id: str) -> dict[str, Any]:
        """What this voter gave, as JSON: `counts`, `votes` (each with the runs it `trained`), `demonstrations`.

        `versions` are those that learned from a vote last. A run's `win_rate` is the gate's, of its version over the
        one that served before; its `reason` is the first one why it was refused. A `prompt` is its last turn, None
        where its author no longer shares it.
        """
        with self.reading() as db:
            counts = {
                table: int(
                    db.execute(f"SELECT count(*) FROM {table} WHERE voter_id = ?{own}", (voter_id,)).fetchone()[0]
                )
                for table, own in (
                    ("conversations", " AND source = 'voter'"),
                    ("comparisons", ""),
                    ("demonstrations", ""),
                )
            }
            rates = {
                row["id"]: gate_win_rate(json.loads(row["report"]))
                for row in db.execute("SELECT id, report FROM runs WHERE version IS NOT NULL AND report IS NOT NULL")
            }
            trained: dict[str, list[dict[str, Any]]] = {}
            for row in db.execute(MY_LESSONS, (voter_id,)):
                rate = rates.get(row["id"])
                lesson = {name: row[name] for name in ("status", "version", "reason")}
                lesson["win_rate"] = None if rate is None else rate.value
                trained.setdefault(row["vote_id"], []).append({"run": row["id"], **lesson})
            votes = [
                {
                    "id": row["id"],
                    "comparison": row["comparison_id"],
                    "conversation": row["conversation_id"] if row["owner_id"] == voter_id else None,
                    "prompt": row["prompt"],
                    "verdict": row["verdict"],
                    "ranking": row["ranking"] and json.loads(row["ranking"]),
                    "strength": row["strength"],
                    "reasons": json.loads(row["reasons"]),
                    "evidence": bool(row["evidence"]),
                    "excluded": bool(row["excluded"]),
                    "source": row["source"],
                    "created": row["created"],
                    "trained": trained.get(row["id"], []),
                }
                for row in db.execute(MY_VOTES, {"voter": voter_id})
            ]
            last: set[int] = set()
            for vote in votes:
                made = [lesson["version"] for lesson in vote["trained"] if lesson["version"] is not None]
                last.update(made[-1:])
            versions = [dict(row) for row in db.execute(MY_VERSIONS) if row["version"] in last]
            demonstrations = [
                {
                    "id": row["id"],
                    "prompt": json.loads(row["messages"])[-1]["content"] if row["visible"] else None,
                    "answer": row["answer"],
                    "created": row["created"],
                }
                for row in db.execute(MY_DEMONSTRATIONS, {"voter": voter_id})
            ]
        return {
            "counts": {**counts, "votes": len(votes)},
            "votes": votes,
            "versions": versions,
            "demonstrations": demonstrations,
        }

    def everything(self, voter_id: str) -> dict[str, Any]:
        """All that is kept of this voter, to take home: talks with all branches, votes with what was judged, and so on.

        `votes` are those that stand, `withdrawn_votes` the others; `comparisons` are those without a standing vote, and
        `exclusions` what operators flagged or excluded, also where that is lifted.
        Who wrote an answer is told where the voter has judged it, or was not asked to.
        """
        mine, consent = self.me(voter_id), self.consent(voter_id)
        with self.reading() as db:
            talks: dict[str, dict[str, Any]] = {}
            for row in db.execute(MY_MESSAGES, (voter_id,)):
                talk = talks.setdefault(row["conversation_id"], {"title": row["title"], "messages": []})
                talk["messages"].append({name: row[name] for name in TOLD_OF_A_MESSAGE} | {"share": bool(row["share"])})
            shown: dict[str, dict[str, Any]] = {}
            for row in db.execute(MY_CANDIDATES, {"voter": voter_id}):
                told = {
                    "id": row["comparison_id"],
                    "prompt": row["prompt"],
                    "created": row["created"],
                    "candidates": [],
                }
                comparison = shown.setdefault(row["comparison_id"], told)
                comparison["candidates"].append({name: row[name] for name in TOLD_OF_A_CANDIDATE})
            withdrawn = [
                dict(row)
                | {"ranking": row["ranking"] and json.loads(row["ranking"]), "reasons": json.loads(row["reasons"])}
                for row in db.execute(MY_WITHDRAWN, (voter_id,))
            ]
            exclusions = [dict(row) for row in db.execute(MY_EXCLUSIONS, {"voter": voter_id})]
            written = [
                {name: row[name] for name in ("id", "answer", "created")}
                | {"messages": json.loads(row["messages"]) if row["visible"] else None}
                for row in db.execute(MY_DEMONSTRATIONS, {"voter": voter_id})
            ]
        votes = [
            {**vote, "candidates": shown.pop(vote["comparison"], {"candidates": []})["candidates"]}
            for vote in mine["votes"]
        ]
        conversations = [{"id": talk_id, **talk} for talk_id, talk in talks.items()]
        return {
            "consent": {"given": consent.given, "share": consent.share},
            "conversations": conversations,
            "votes": votes,
            "withdrawn_votes": withdrawn,
            "comparisons": list(shown.values()),
            "demonstrations": written,
            "exclusions": exclusions,
        }

    def forget(self, voter_id: str) -> datetime | None:
        """Delete all that this voter wrote and said, and what others said of it. Runs keep how many votes they had.

        Returns when the voter had begun; None where there was nothing.
        """

        def work(db: sqlite3.Connection) -> datetime | None:
            row = db.execute("DELETE FROM voters WHERE id = ? RETURNING created", (voter_id,)).fetchone()
            return None if row is None else moment(row["created"])

        begun = self.writing(work)
        # The write-ahead log still holds the deleted pages: move it into the file, where they are overwritten.
        self.checkpoint()
        return begun


def insert_demonstration(
    db: sqlite3.Connection,
    voter_id: str,
    demonstration: Demonstration,
    source: str,
    now: str,
    *,
    prompt_id: str | None = None,
) -> None:
    """Write a demonstration's row; it goes with the prompt that it answers, if that is one of the record's."""
    words = messages_json(demonstration.messages)
    db.execute(
        "INSERT INTO demonstrations (id, voter_id, messages, answer, source, prompt_id, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (demonstration.id, voter_id, words, demonstration.answer, source, prompt_id, now),
    )


def _judged_prompt(db: sqlite3.Connection, comparison_id: str, voter_id: str) -> str:
    """The prompt of a comparison that this voter may see. Raises NotFound."""
    try:
        return str(visible_comparison(db, comparison_id, voter_id)["prompt_id"])
    except NotFound:
        raise NotFound("this prompt is there no more") from None


def messages_json(messages: Sequence[Message]) -> str:
    """Messages as they are stored in one column."""
    return json.dumps([{"role": m.role, "content": m.content} for m in messages], ensure_ascii=False)
