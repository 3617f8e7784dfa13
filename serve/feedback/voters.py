"""What a voter gave, beyond votes: demonstrations; and the voter's right to see and to take back everything."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from serve.errors import InvalidInput
from serve.feedback.conversations import (
    check_prompt,
    ensure_voter,
    move_leaf,
    new_id,
    require_conversation,
    walk,
)
from serve.feedback.database import Database, moment, storable
from serve.records import Demonstration, Message


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
    ) -> Demonstration:
        """Store an answer that a person wrote; in a conversation it is the history from here on.

        Raises InvalidInput when the prompt or the answer is empty, NotFound when the conversation is not the voter's.
        """
        check_prompt(messages)
        if not storable("the answer", answer).strip():
            raise InvalidInput("the answer is empty; write what should have been said")

        def work(db: sqlite3.Connection) -> Demonstration:
            now = self._now()
            ensure_voter(db, voter_id, now)
            demonstration = Demonstration(new_id(), tuple(messages), answer, moment(now))
            insert_demonstration(db, voter_id, demonstration, source, now)
            if conversation_id is not None:
                reply = Message("assistant", answer)
                require_conversation(db, voter_id, conversation_id)
                move_leaf(db, conversation_id, walk(db, conversation_id, (*messages, reply), now), now)
            return demonstration

        return self.writing(work)

    def demonstrations_count(self) -> int:
        """Demonstrations that a run would learn from."""
        with self.reading() as db:
            return int(db.execute("SELECT count(*) FROM demonstrations").fetchone()[0])

    def me(self, voter_id: str) -> dict[str, Any]:
        """What this voter gave, as JSON: `counts`, `votes` (each with the runs it `trained`), `demonstrations`."""
        with self.reading() as db:
            counts = {
                table: int(db.execute(f"SELECT count(*) FROM {table} WHERE voter_id = ?", (voter_id,)).fetchone()[0])
                for table in ("conversations", "comparisons", "demonstrations")
            }
            trained: dict[str, list[dict[str, Any]]] = {}
            for row in db.execute(
                "SELECT vote_id, runs.id, runs.status, runs.version FROM votes JOIN run_votes ON vote_id = votes.id"
                " JOIN runs ON runs.id = run_id WHERE voter_id = ? ORDER BY runs.id",
                (voter_id,),
            ):
                lesson = {"run": row["id"], "status": row["status"], "version": row["version"]}
                trained.setdefault(row["vote_id"], []).append(lesson)
            votes = [
                {
                    "id": row["id"],
                    "comparison": row["comparison_id"],
                    "verdict": row["verdict"],
                    "ranking": row["ranking"] and json.loads(row["ranking"]),
                    "strength": row["strength"],
                    "reasons": json.loads(row["reasons"]),
                    "evidence": bool(row["evidence"]),
                    "created": row["created"],
                    "trained": trained.get(row["id"], []),
                }
                for row in db.execute("SELECT * FROM standing_votes WHERE voter_id = ? ORDER BY sequence", (voter_id,))
            ]
            demonstrations = [
                {"id": row["id"], "created": row["created"]}
                for row in db.execute("SELECT * FROM demonstrations WHERE voter_id = ? ORDER BY rowid", (voter_id,))
            ]
        return {"counts": {**counts, "votes": len(votes)}, "votes": votes, "demonstrations": demonstrations}

    def forget(self, voter_id: str) -> None:
        """Delete all that this voter wrote and said, and what others said of it. Runs keep how many votes they had."""

        def work(db: sqlite3.Connection) -> None:
            db.execute("DELETE FROM voters WHERE id = ?", (voter_id,))

        self.writing(work)
        # The write-ahead log still holds the deleted pages: move it into the file, where they are overwritten.
        self.checkpoint()


def insert_demonstration(
    db: sqlite3.Connection, voter_id: str, demonstration: Demonstration, source: str, now: str
) -> None:
    """Write a demonstration's row."""
    db.execute(
        "INSERT INTO demonstrations (id, voter_id, messages, answer, source, created) VALUES (?, ?, ?, ?, ?, ?)",
        (demonstration.id, voter_id, messages_json(demonstration.messages), demonstration.answer, source, now),
    )


def messages_json(messages: Sequence[Message]) -> str:
    """Messages as they are stored in one column."""
    return json.dumps([{"role": m.role, "content": m.content} for m in messages], ensure_ascii=False)
