"""snapshot.db: what one training run may learn from, copied out of the record so that the run needs nothing else.

prompts(id, messages, source, voter, asked)     source: voter, shipped or imported; equal prompts are one row;
                                                messages as the model read them, see serve/truncation.py
answers(id, prompt_id, text, token_ids, version, finish_reason, max_tokens, temperature)     as their voters saw them
votes(id, prompt_id, voter, ranking, positions, strength, created)     standing rankings and ties; a tie is one group
demonstrations(id, messages, answer, voter)
meta(key, value)     serving, created; max_tokens and temperature: the most common among voted answers, if we wrote any

Voters are pseudonyms. `ranking` is [[answer id, …], …], best group first; `positions` is {answer id: position},
empty where an import does not tell. Imported answers have no token_ids, version or sampling.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sqlite_utils import Database as SqliteUtils

from serve.feedback.ballots import ballots, demonstrations, pseudonyms
from serve.feedback.conversations import path_messages
from serve.feedback.entries import Ballot, SnapshotCounts
from serve.feedback.voters import messages_json
from serve.records import Message, without_oldest

SHIPPED_PROMPTS = Path(__file__).parent / "shipped" / "prompts.jsonl"

TABLES: dict[str, dict[str, Any]] = {
    "prompts": {"id": int, "messages": str, "source": str, "voter": str, "asked": int},
    "answers": {
        "id": int,
        "prompt_id": int,
        "text": str,
        "token_ids": str,
        "version": int,
        "finish_reason": str,
        "max_tokens": int,
        "temperature": float,
    },
    "votes": {
        "id": int,
        "prompt_id": int,
        "voter": str,
        "ranking": str,
        "positions": str,
        "strength": int,
        "created": str,
    },
    "demonstrations": {"id": int, "messages": str, "answer": str, "voter": str},
}

ASKED = """
SELECT messages.id, asked, source, voter_id, coalesce(dropped, 0) AS dropped
FROM messages
JOIN conversations ON conversations.id = conversation_id
LEFT JOIN (SELECT DISTINCT prompt_id, dropped FROM answers) ON prompt_id = messages.id
WHERE asked > 0 AND voter_id NOT IN (SELECT voter_id FROM excluded_voters)
ORDER BY messages.rowid, dropped
"""


def write_snapshot(
    db: sqlite3.Connection, target: Path, *, created: str, shipped: Path = SHIPPED_PROMPTS
) -> tuple[SnapshotCounts, list[str]]:
    """Write snapshot.db at `target` from one reading transaction; returns the counts and the ids of the votes in it.

    The file appears whole or not at all.
    """
    partial = target.with_name(f"{target.name}.partial")
    partial.unlink(missing_ok=True)
    voters = pseudonyms(db)
    prompts = _Prompts(db, voters, shipped)
    judged = [ballot for ballot in ballots(db) if ballot.groups is not None]
    answers = _Answers()
    sampling: Counter[tuple[int, float]] = Counter()
    votes = []
    for number, ballot in enumerate(judged, start=1):
        assert ballot.groups is not None
        prompt_id = prompts.number(ballot.messages)
        ids = answers.numbers(ballot, prompt_id)
        sampling.update(
            (a.max_tokens, a.temperature)
            for a in ballot.answers
            if a.max_tokens is not None and a.temperature is not None
        )
        votes.append(
            {
                "id": number,
                "prompt_id": prompt_id,
                "voter": voters[ballot.voter_id],
                "ranking": json.dumps([[ids[i] for i in tied] for tied in ballot.groups]),
                "positions": json.dumps(
                    {} if ballot.imported else {i: a.position for i, a in zip(ids, ballot.answers, strict=True)}
                ),
                "strength": ballot.strength,
                "created": ballot.created.isoformat(),
            }
        )
    shown = [
        {"id": number, "messages": messages_json(messages), "answer": answer, "voter": voters[voter]}
        for number, (voter, messages, answer) in enumerate(demonstrations(db), start=1)
    ]
    (serving,) = db.execute("SELECT number FROM versions WHERE status = 'serving'").fetchone()
    meta = {"serving": serving, "created": created}
    for (limit, temperature), _ in sampling.most_common(1):
        meta |= {"max_tokens": limit, "temperature": temperature}

    out = SqliteUtils(sqlite3.connect(partial))
    try:
        rows = {"prompts": prompts.rows, "answers": answers.rows, "votes": votes, "demonstrations": shown}
        for table, columns in TABLES.items():
            out.table(table).create(columns, pk="id").insert_all(rows[table])
        out.table("meta").create({"key": str, "value": str}, pk="key").insert_all(
            {"key": key, "value": str(value)} for key, value in meta.items()
        )
    finally:
        out.close()
    partial.replace(target)
    pairs = sum(len(b.answers) * (len(b.answers) - 1) // 2 for b in judged)
    return SnapshotCounts(len(votes), pairs, len(shown), len(prompts.rows)), [b.vote_id for b in judged]


class _Prompts:
    """Numbers for prompts: what the project ships first, then what people asked and what was imported."""

    def __init__(self, db: sqlite3.Connection, voters: dict[str, str], shipped: Path) -> None:
        self.rows: list[dict[str, Any]] = []
        self._numbers: dict[tuple[Message, ...], int] = {}
        for messages in shipped_prompts(shipped):
            self._add(messages, "shipped", None, 0)
        for row in db.execute(ASKED).fetchall():
            voter = voters[row["voter_id"]] if row["source"] == "voter" else None
            messages = without_oldest(path_messages(db, row["id"]), row["dropped"])
            self._add(messages, row["source"], voter, row["asked"])

    def number(self, messages: tuple[Message, ...]) -> int:
        """The id of a prompt that was voted on, asked for a test alone though it may have been."""
        if messages not in self._numbers:
            self._add(messages, "voter", None, 0)
        return self._numbers[messages]

    def _add(self, messages: tuple[Message, ...], source: str, voter: str | None, asked: int) -> None:
        if messages in self._numbers:
            row = self.rows[self._numbers[messages] - 1]
            row["asked"] += asked
            if row["source"] == "imported":
                row |= {"source": source, "voter": voter}  # people here ask it, too
            return
        number = len(self.rows) + 1
        self._numbers[messages] = number
        self.rows.append(
            {"id": number, "messages": messages_json(messages), "source": source, "voter": voter, "asked": asked}
        )


class _Answers:
    """Numbers for answers. One that different voters saw at different lengths is a row for each length."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self._numbers: dict[tuple[str, str | None], int] = {}

    def numbers(self, ballot: Ballot, prompt_id: int) -> list[int]:
        """The ids of a vote's answers, by position."""
        ids = []
        for answer in ballot.answers:
            key = (answer.id, answer.text if answer.partial else None)
            if key not in self._numbers:
                self._numbers[key] = len(self.rows) + 1
                self.rows.append(
                    {
                        "id": self._numbers[key],
                        "prompt_id": prompt_id,
                        "text": answer.text,
                        "token_ids": None if answer.token_ids is None else json.dumps(answer.token_ids),
                        "version": answer.version,
                        "finish_reason": answer.finish_reason,
                        "max_tokens": answer.max_tokens,
                        "temperature": answer.temperature,
                    }
                )
            ids.append(self._numbers[key])
        return ids


def shipped_prompts(path: Path = SHIPPED_PROMPTS) -> Iterator[tuple[Message, ...]]:
    """The prompts that the project ships, one a line: {"prompt": …} or {"messages": […]}."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            if "prompt" in row:
                yield (Message("user", row["prompt"]),)
            else:
                yield tuple(Message(m["role"], m["content"]) for m in row["messages"])
