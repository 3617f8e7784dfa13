"""Standing votes with all that they were about, as snapshots and exports read them and imports write them."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import Iterable, Iterator

from serve.errors import Conflict
from serve.feedback.comparisons import insert_comparison
from serve.feedback.conversations import (
    check_prompt,
    ensure_voter,
    insert_conversation,
    insert_message,
    move_leaf,
    new_id,
    path_messages,
)
from serve.feedback.database import Database, moment, storable
from serve.feedback.deeds import log
from serve.feedback.entries import Ballot, BallotAnswer, ImportCounts, NewBallot, NewDemonstration
from serve.feedback.voters import insert_demonstration, messages_json
from serve.feedback.votes import NewVote, insert_vote
from serve.records import Demonstration, Judgement, Message, without_oldest

IMPORTER = "imported"
"""The voter who owns what was imported; a dataset's own judges are `imported:NAME`."""

BALLOTS = """
SELECT votes.sequence, votes.id AS vote_id, votes.voter_id, verdict, ranking, strength, votes.evidence, votes.source,
    votes.created, prompt_id, candidates.id AS candidate_id, position, shown_text, answers.id AS answer_id, dropped,
    text, version, finish_reason, max_tokens, temperature,
    shown_token_ids IS NOT NULL AND shown_token_ids IS NOT token_ids AS partial,
    CASE WHEN :whole THEN coalesce(shown_token_ids, token_ids) END AS seen_token_ids
FROM counted_votes AS votes
JOIN candidates USING (comparison_id)
JOIN answers ON answers.id = answer_id
WHERE verdict <> 'skip'
ORDER BY votes.sequence, position
"""


def ballots(db: sqlite3.Connection, *, whole: bool = True) -> Iterator[Ballot]:
    """Every standing ranking, tie and both_bad that is not excluded, the oldest first.

    Those that are not `whole` come without prompts and token ids, which take most of the time.
    """
    prompts: dict[str, tuple[Message, ...]] = {}
    for _, group in itertools.groupby(db.execute(BALLOTS, {"whole": whole}), key=lambda row: row["sequence"]):
        rows = list(group)
        vote = rows[0]
        if vote["prompt_id"] not in prompts:
            prompts[vote["prompt_id"]] = path_messages(db, vote["prompt_id"]) if whole else ()
        index = {row["candidate_id"]: i for i, row in enumerate(rows)}
        groups = None
        if vote["ranking"]:
            groups = tuple(tuple(index[c] for c in tied) for tied in json.loads(vote["ranking"]))
        elif vote["verdict"] == "tie":
            groups = (tuple(range(len(rows))),)
        yield Ballot(
            vote_id=vote["vote_id"],
            voter_id=vote["voter_id"],
            messages=without_oldest(prompts[vote["prompt_id"]], vote["dropped"]),
            answers=tuple(_answer_from(row) for row in rows),
            groups=groups,
            verdict=None if vote["ranking"] else vote["verdict"],
            strength=vote["strength"],
            evidence=bool(vote["evidence"]),
            imported=vote["source"] == "imported",
            created=moment(vote["created"]),
        )


def demonstrations(db: sqlite3.Connection) -> Iterator[tuple[str, tuple[Message, ...], str]]:
    """Every demonstration of voters who are not excluded, the oldest first: voter id, messages, answer."""
    for row in db.execute("SELECT * FROM counted_demonstrations ORDER BY sequence"):
        messages = tuple(Message(m["role"], m["content"]) for m in json.loads(row["messages"]))
        yield row["voter_id"], messages, row["answer"]


def pseudonyms(db: sqlite3.Connection) -> dict[str, str]:
    """Voter id → `voter-1`, `voter-2`, … in order of first appearance; nobody is called as somebody was before."""
    return {
        voter_id: f"voter-{number}" for number, voter_id in db.execute("SELECT number, voter_id FROM voter_numbers")
    }


class Ballots(Database):
    """The way in for other people's data."""

    def add_imported(
        self, items: Iterable[NewBallot | NewDemonstration], sha256: str, *, who: str, format: str
    ) -> ImportCounts:
        """Store a whole dataset or nothing, and log it. Its votes are no evidence; equal prompts are stored once, and
        so are equal demonstrations, also when they came with an earlier dataset: those are counted as skipped.

        `sha256` tells datasets apart. Raises InvalidInput for prompts and answers that cannot be stored, Conflict for a
        dataset that came in before: its votes would count twice.
        """
        everything = list(items)
        for item in everything:
            check_prompt(item.messages)
            for text in item.answers if isinstance(item, NewBallot) else (item.answer,):
                storable("an answer", text)

        def work(db: sqlite3.Connection) -> ImportCounts:
            now = self._clock()
            stamped = self._now()
            before = db.execute("SELECT created FROM imports WHERE sha256 = ?", (sha256,)).fetchone()
            if before is not None:
                when = f"{moment(before['created']):%Y-%m-%d at %H:%M} UTC"
                raise Conflict(f"this file was imported already, on {when}; import only what is new")
            db.execute("INSERT INTO imports (sha256, created) VALUES (?, ?)", (sha256, stamped))
            ensure_voter(db, IMPORTER, stamped)
            prompts: dict[tuple[Message, ...], str] = {}
            known = {
                (row["messages"], row["answer"])
                for row in db.execute("SELECT messages, answer FROM demonstrations WHERE voter_id = ?", (IMPORTER,))
            }
            answers = votes = shown = skipped = 0
            for item in everything:
                if isinstance(item, NewDemonstration):
                    words = (messages_json(item.messages), item.answer)
                    if words in known:
                        skipped += 1
                        continue
                    known.add(words)
                    shown += 1
                    demonstration = Demonstration(new_id(), item.messages, item.answer, now)
                    insert_demonstration(db, IMPORTER, demonstration, "imported", stamped)
                    continue
                if item.messages not in prompts:
                    prompts[item.messages] = _insert_prompt(db, item.messages, stamped)
                prompt_id = prompts[item.messages]
                answers += len(item.answers)
                answer_ids = [_insert_answer(db, prompt_id, text, stamped) for text in item.answers]
                if item.ranking is None and item.verdict is None:
                    continue
                votes += 1
                voter_id = IMPORTER if item.judge is None else f"{IMPORTER}:{item.judge}"
                ensure_voter(db, voter_id, stamped)
                comparison_id = insert_comparison(db, voter_id, prompt_id, answer_ids, now)
                ranking = None if item.ranking is None else _by_candidate(db, comparison_id, item.ranking)
                judgement = Judgement(ranking, item.verdict)
                insert_vote(db, NewVote(comparison_id, voter_id, judgement, "imported", stamped))
            log(db, who, f"imported {format} (votes: {votes}, demonstrations: {shown})", stamped)
            return ImportCounts(len(prompts), answers, votes, shown, skipped)

        return self.writing(work)


def _answer_from(row: sqlite3.Row) -> BallotAnswer:
    partial, token_ids = bool(row["partial"]), row["seen_token_ids"]
    return BallotAnswer(
        id=row["answer_id"],
        position=row["position"],
        text=row["shown_text"] if partial else row["text"],
        token_ids=None if token_ids is None else tuple(json.loads(token_ids)),
        version=row["version"],
        finish_reason="cancelled" if partial else row["finish_reason"],
        max_tokens=row["max_tokens"],
        temperature=row["temperature"],
        partial=partial,
    )


def _insert_prompt(db: sqlite3.Connection, messages: tuple[Message, ...], now: str) -> str:
    conversation_id = insert_conversation(db, IMPORTER, messages, "imported", now)
    parent: str | None = None
    for message in messages:
        parent = insert_message(db, conversation_id, parent, message, None, now)
    assert parent is not None
    db.execute("UPDATE messages SET asked = 1 WHERE id = ?", (parent,))
    move_leaf(db, conversation_id, parent, now)
    return parent


def _insert_answer(db: sqlite3.Connection, prompt_id: str, text: str, now: str) -> str:
    answer_id = new_id()
    db.execute(
        "INSERT INTO answers (id, prompt_id, text, finish_reason, created, finished) VALUES (?, ?, ?, 'stop', ?, ?)",
        (answer_id, prompt_id, text, now, now),
    )
    return answer_id


def _by_candidate(
    db: sqlite3.Connection, comparison_id: str, ranking: tuple[tuple[int, ...], ...]
) -> tuple[tuple[str, ...], ...]:
    rows = db.execute(
        "SELECT id FROM candidates WHERE comparison_id = ? ORDER BY position", (comparison_id,)
    ).fetchall()
    return tuple(tuple(rows[i]["id"] for i in tied) for tied in ranking)
