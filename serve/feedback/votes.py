"""Votes: append-only judgements of comparisons, of which at most one stands."""

from __future__ import annotations

import itertools
import json
import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Literal

from serve.errors import AlreadyVoted, Conflict, Expired, InvalidInput, NotFound
from serve.feedback.conversations import VISIBLE, Conversations, move_leaf, new_id, path, reply
from serve.feedback.database import moment, storable
from serve.feedback.entries import HeadToHead
from serve.records import LEARNED, Judgement, Vote, VoteReceipt

Shown = Mapping[str, tuple[str, Sequence[int]]]
"""Candidate id → the text and token ids that were visible when the vote came."""

COMPARISON = """
SELECT comparisons.*, conversation_id, conversations.voter_id AS owner_id, conversations.source, leaf_id
FROM comparisons
JOIN messages ON messages.id = comparisons.prompt_id
JOIN conversations ON conversations.id = conversation_id
"""

CANDIDATES = """
SELECT candidates.id AS candidate_id, position, shown_text, answers.*
FROM candidates JOIN answers ON answers.id = answer_id WHERE comparison_id = ? ORDER BY position
"""

BETWEEN = """
SELECT training_votes.id AS vote, ranking, candidates.id AS candidate_id, answer_id, version
FROM training_votes
JOIN candidates USING (comparison_id)
JOIN answers ON answers.id = answer_id
WHERE evidence AND version IN (:version, :other) AND comparison_id IN (
    SELECT comparison_id FROM answers JOIN candidates ON answer_id = answers.id WHERE version = :version
)
ORDER BY vote
"""


def require_comparison(db: sqlite3.Connection, comparison_id: str, voter_id: str) -> None:
    """Raises NotFound unless it was shown to this voter."""
    if not db.execute("SELECT 1 FROM comparisons WHERE id = ? AND voter_id = ?", (comparison_id, voter_id)).fetchone():
        raise NotFound("there is no such comparison of yours")


def visible_comparison(db: sqlite3.Connection, comparison_id: str, voter_id: str) -> sqlite3.Row:
    """One that this voter may see. Raises NotFound, also where the prompt's author no longer shares it."""
    require_comparison(db, comparison_id, voter_id)
    row: sqlite3.Row | None = db.execute(
        COMPARISON + f"WHERE comparisons.id = :id AND {VISIBLE}", {"id": comparison_id, "voter": voter_id}
    ).fetchone()
    if row is None:
        raise NotFound("the author of this prompt no longer shares it")
    return row


def standing_vote(db: sqlite3.Connection, comparison_id: str) -> Vote | None:
    """The vote that counts now, if there is one."""
    row = db.execute("SELECT * FROM standing_votes WHERE comparison_id = ?", (comparison_id,)).fetchone()
    if row is None:
        return None
    ranking = row["ranking"] and tuple(tuple(group) for group in json.loads(row["ranking"]))
    judgement = Judgement(
        ranking, None if ranking else row["verdict"], row["strength"], tuple(json.loads(row["reasons"]))
    )
    return Vote(row["id"], comparison_id, row["voter_id"], judgement, bool(row["evidence"]), moment(row["created"]))


def one_of_each(ranked: Iterable[tuple[str, int | None, int]]) -> dict[int, int]:
    """Of a vote's answers (id, version, rank): each version's rank, by the answer of it whose id comes first.

    That is by chance: a vote is one moment of one person, however many answers of a version it ranks.
    """
    ranks: dict[int, int] = {}
    for _, version, rank in sorted(ranked, key=itemgetter(0)):
        if version is not None:
            ranks.setdefault(version, rank)
    return ranks


@dataclass(frozen=True)
class NewVote:
    """A row of the votes table, about to be written."""

    comparison_id: str
    voter_id: str
    judgement: Judgement
    source: Literal["voter", "imported", "server"]
    created: str
    evidence: bool = False
    continues_with: str | None = None
    idempotency_key: str | None = None


def insert_vote(db: sqlite3.Connection, vote: NewVote) -> str:
    """Append a vote behind whatever was said of the comparison before; returns its id."""
    vote_id, judgement = new_id(), vote.judgement
    db.execute(
        "INSERT INTO votes (id, comparison_id, voter_id, verdict, ranking, strength, reasons, evidence, source,"
        " continues_with, supersedes, idempotency_key, created) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            vote_id,
            vote.comparison_id,
            vote.voter_id,
            judgement.verdict or "ranking",
            judgement.ranking and json.dumps(judgement.ranking),
            judgement.strength,
            json.dumps(judgement.reasons, ensure_ascii=False),
            vote.evidence,
            vote.source,
            vote.continues_with,
            _last_vote(db, vote.comparison_id),
            vote.idempotency_key,
            vote.created,
        ),
    )
    return vote_id


def skip_open_comparisons(
    db: sqlite3.Connection, conversation_id: str, voter_id: str, new_prompt: str, now: str
) -> None:
    """Typing on without voting: a skip for what is still open in this conversation.

    The new prompt says how the talk went on where it lies below the old one. Where it lies elsewhere, a random
    candidate becomes the old prompt's reply, and the talk stays where it is.
    """
    came_by = path(db, new_prompt)
    for comparison in db.execute(
        COMPARISON + "WHERE conversation_id = ? AND comparisons.voter_id = ? AND owner_id = comparisons.voter_id"
        " AND repeats IS NULL"
        " AND expires > ? AND NOT EXISTS (SELECT 1 FROM standing_votes s WHERE s.comparison_id = comparisons.id)",
        (conversation_id, voter_id, now),
    ).fetchall():
        candidates = db.execute(CANDIDATES, (comparison["id"],)).fetchall()
        below = [i for i, message in enumerate(came_by) if message["id"] == comparison["prompt_id"]]
        if below:
            said = came_by[below[0] + 1]["answer_id"] if below[0] + 1 < len(came_by) else None
            continues_with = next((c["candidate_id"] for c in candidates if c["id"] == said), None)
        else:
            continues_with = _draw(candidates)
            if continues_with is not None:
                answer_id = next(c["id"] for c in candidates if c["candidate_id"] == continues_with)
                reply(db, conversation_id, comparison["prompt_id"], answer_id, now)
        insert_vote(
            db,
            NewVote(
                comparison["id"], voter_id, Judgement(verdict="skip"), "server", now, continues_with=continues_with
            ),
        )


class Votes(Conversations):
    """Judging, undoing, counting."""

    def add_vote(
        self,
        comparison_id: str,
        voter_id: str,
        judgement: Judgement,
        *,
        idempotency_key: str | None = None,
        shown: Shown | None = None,
        source: Literal["voter", "server"] = "voter",
    ) -> VoteReceipt:
        """Store a voter's judgement; what it chose becomes the conversation's next message in the same transaction.

        `shown` holds what was visible of each candidate where the vote comes before the end. Where the vote leaves a
        choice (tie, skip, a tied top group), a random candidate goes on; after `both_bad`, and on a prompt of somebody
        else, none does. `source` is `server` for a skip that nobody cast. The same key gives the same receipt.
        A vote is no evidence once another vote revealed to this voter who wrote one of the answers.

        Raises NotFound, AlreadyVoted, Expired, InvalidInput, and Conflict when an answer cannot be judged yet or ever.
        """

        def work(db: sqlite3.Connection) -> VoteReceipt:
            now = self._now()
            require_comparison(db, comparison_id, voter_id)
            candidates = db.execute(CANDIDATES, (comparison_id,)).fetchall()
            if idempotency_key is not None:
                repeated = db.execute(
                    "SELECT id, continues_with FROM votes WHERE comparison_id = ? AND idempotency_key = ?",
                    (comparison_id, idempotency_key),
                ).fetchone()
                if repeated:
                    return _receipt(repeated["id"], candidates, repeated["continues_with"])
            comparison = visible_comparison(db, comparison_id, voter_id)
            standing = db.execute(
                "SELECT source FROM standing_votes WHERE comparison_id = ?", (comparison_id,)
            ).fetchone()
            if standing:
                gone_on = standing["source"] == "server"
                raise AlreadyVoted(
                    "the talk has gone on without a vote on this"
                    if gone_on
                    else "you have voted on this; withdraw that vote first"
                )
            if comparison["expires"] <= now:
                raise Expired("this comparison is older than 24 hours; ask again for a new one")
            _check_judgement(judgement, [c["candidate_id"] for c in candidates])
            _keep_shown(db, candidates, shown or {})
            if judgement.ranking is not None or judgement.verdict == "tie":
                _check_finished(candidates, shown or {})
            mine = comparison["owner_id"] == voter_id and comparison["repeats"] is None
            continues_with = _continuation(judgement, candidates) if mine else None
            evidence = comparison["evidence"] and not _revealed_before(db, comparison_id, voter_id)
            vote_id = insert_vote(
                db,
                NewVote(
                    comparison_id,
                    voter_id,
                    judgement,
                    source,
                    now,
                    evidence=evidence,
                    continues_with=continues_with,
                    idempotency_key=idempotency_key,
                ),
            )
            if continues_with is not None:
                _go_on(db, comparison, next(c["id"] for c in candidates if c["candidate_id"] == continues_with), now)
            return _receipt(vote_id, candidates, continues_with)

        return self.writing(work)

    def withdraw_vote(self, vote_id: str, voter_id: str) -> str:
        """Undo a vote with a row that supersedes it; the comparison, whose id is returned, may be voted on again.

        That vote is no evidence then. Where the talk still stands at the answer that was chosen, and another may be, it
        goes back to the prompt.
        Raises NotFound, and Conflict when the vote no longer stands.
        """

        def work(db: sqlite3.Connection) -> str:
            vote = _require_standing(db, vote_id, voter_id)
            now = self._now()
            db.execute(
                "INSERT INTO votes (id, comparison_id, voter_id, verdict, evidence, source, supersedes, created)"
                " VALUES (?, ?, ?, 'withdrawn', 0, 'voter', ?, ?)",
                (new_id(), vote["comparison_id"], voter_id, vote_id, now),
            )
            if went_on := db.execute(
                "SELECT conversation_id, prompt_id FROM comparisons JOIN messages ON parent_id = prompt_id"
                " JOIN conversations ON leaf_id = messages.id"
                " WHERE comparisons.id = ? AND expires > ?"
                " AND messages.answer_id IN (SELECT answer_id FROM candidates WHERE id = ?)",
                (vote["comparison_id"], now, vote["continues_with"]),
            ).fetchone():
                move_leaf(db, went_on["conversation_id"], went_on["prompt_id"], now)
            return str(vote["comparison_id"])

        return self.writing(work)

    def note_vote(
        self,
        vote_id: str,
        voter_id: str,
        *,
        strength: int | None = None,
        reasons: Sequence[str] | None = None,
        offered: Sequence[str] | None = None,
    ) -> Vote:
        """Say afterwards how much better it was, or why; what is None stays. The vote as it is then.

        `reasons` takes the place of all that were said, or, with `offered`, of those among them.
        Raises NotFound, Conflict when the vote no longer stands, InvalidInput.
        """
        check_note(strength, reasons or ())

        def work(db: sqlite3.Connection) -> Vote:
            vote = _require_standing(db, vote_id, voter_id)
            if strength is not None and vote["verdict"] != "ranking":
                raise InvalidInput("strength says how much better the best answer is; this vote ranks none")
            said = None
            if reasons is not None:
                standing = standing_vote(db, vote["comparison_id"])
                assert standing is not None
                kept = [] if offered is None else [r for r in standing.judgement.reasons if r not in offered]
                said = json.dumps([*reasons, *kept], ensure_ascii=False)
            db.execute(
                "INSERT INTO vote_notes (vote_id, strength, reasons, updated) VALUES (?, ?, coalesce(?, ?), ?)"
                " ON CONFLICT DO UPDATE SET strength = coalesce(excluded.strength, strength),"
                " reasons = coalesce(?, reasons), updated = excluded.updated",
                (vote_id, strength, said, vote["reasons"], self._now(), said),
            )
            noted = standing_vote(db, vote["comparison_id"])
            assert noted is not None
            return noted

        return self.writing(work)

    def judged(self, voter_id: str, since: str) -> tuple[int, int, int]:
        """How many comparisons this voter has judged: in all, since a time, and since then with those skipped."""
        with self.reading() as db:
            row = db.execute(
                "SELECT coalesce(sum(verdict <> 'skip'), 0) AS ever,"
                " coalesce(sum(verdict <> 'skip' AND created >= :since), 0) AS lately,"
                " coalesce(sum(created >= :since), 0) AS answered FROM standing_votes WHERE voter_id = :voter",
                {"since": since, "voter": voter_id},
            ).fetchone()
        return int(row["ever"]), int(row["lately"]), int(row["answered"])

    def votes_since_last_run(self) -> int:
        """Standing rankings and ties that no finished run (succeeded or rejected) has learned from."""
        return self._count(
            "SELECT count(*) FROM training_votes WHERE NOT EXISTS ("
            "SELECT 1 FROM run_votes JOIN runs ON runs.id = run_id"
            f" WHERE vote_id = training_votes.id AND status IN {LEARNED})"
        )

    def standing_votes(self) -> int:
        """Rankings and ties that stand: all that a run would learn from."""
        return self._count("SELECT count(*) FROM training_votes")

    def head_to_head(self, version: int, other: int) -> HeadToHead:
        """Evidence between two versions: standing blind rankings and ties of their answers to one prompt.

        A vote counts once, also where it ranks several answers of theirs. Else a few people's moments would pass for
        many.
        """
        wins = losses = ties = 0
        with self.reading() as db:
            rows = db.execute(BETWEEN, {"version": version, "other": other})
            for _, group in itertools.groupby(rows, key=itemgetter("vote")):
                vote = list(group)
                groups: list[list[str]] = json.loads(vote[0]["ranking"] or "[]")
                rank = {candidate: i for i, tied in enumerate(groups) for candidate in tied}
                places = one_of_each(
                    (row["answer_id"], row["version"], rank.get(row["candidate_id"], 0)) for row in vote
                )
                if len(places) < 2:
                    continue
                wins += places[version] < places[other]
                losses += places[version] > places[other]
                ties += places[version] == places[other]
        return HeadToHead(wins, losses, ties)

    def _count(self, sql: str, *parameters: Any) -> int:
        with self.reading() as db:
            return int(db.execute(sql, parameters).fetchone()[0])


def _last_vote(db: sqlite3.Connection, comparison_id: str) -> str | None:
    row = db.execute(
        "SELECT id FROM votes WHERE comparison_id = ? ORDER BY rowid DESC LIMIT 1", (comparison_id,)
    ).fetchone()
    return row and str(row["id"])


def _revealed_before(db: sqlite3.Connection, comparison_id: str, voter_id: str) -> bool:
    """Whether this voter has voted on any of these answers, here or elsewhere; a withdrawn vote revealed them, too."""
    return bool(
        db.execute(
            "SELECT 1 FROM candidates JOIN candidates AS seen USING (answer_id)"
            " JOIN votes ON votes.comparison_id = seen.comparison_id"
            " WHERE candidates.comparison_id = ? AND votes.voter_id = ? LIMIT 1",
            (comparison_id, voter_id),
        ).fetchone()
    )


def _receipt(vote_id: str, candidates: list[sqlite3.Row], continues_with: str | None) -> VoteReceipt:
    return VoteReceipt(vote_id, {c["candidate_id"]: c["version"] for c in candidates}, continues_with)


def _check_judgement(judgement: Judgement, candidate_ids: list[str]) -> None:
    if (judgement.ranking is None) == (judgement.verdict is None):
        raise InvalidInput("send either a ranking or a verdict")
    if judgement.ranking is not None:
        named = [candidate for group in judgement.ranking for candidate in group]
        if sorted(named) != sorted(candidate_ids) or not all(judgement.ranking):
            raise InvalidInput(
                f"a ranking names every candidate exactly once, in groups, best first: {', '.join(candidate_ids)}"
            )
    elif judgement.verdict not in ("tie", "both_bad", "skip"):
        raise InvalidInput("a verdict is one of tie, both_bad, skip")
    check_note(judgement.strength, judgement.reasons)


def check_note(strength: int | None, reasons: Sequence[str]) -> None:
    """Raises InvalidInput unless a vote can have this strength and these reasons."""
    if strength is not None and (type(strength) is not int or not 1 <= strength <= 5):
        raise InvalidInput("strength is a whole number from 1 (barely better) to 5 (far better)")
    for reason in reasons:
        storable("a reason", reason)


def _require_standing(db: sqlite3.Connection, vote_id: str, voter_id: str) -> sqlite3.Row:
    """A vote of this voter's that stands. Raises NotFound, Conflict."""
    vote: sqlite3.Row | None = db.execute(
        "SELECT * FROM votes WHERE id = ? AND voter_id = ? AND verdict <> 'withdrawn'", (vote_id, voter_id)
    ).fetchone()
    if vote is None:
        raise NotFound("there is no such vote of yours")
    if db.execute("SELECT 1 FROM votes WHERE supersedes = ?", (vote_id,)).fetchone():
        raise Conflict("this vote is withdrawn already")
    return vote


def _check_finished(candidates: list[sqlite3.Row], shown: Shown) -> None:
    if any(c["finish_reason"] == "error" for c in candidates):
        raise Conflict("an answer failed, so they cannot be compared; skip, or say that both are bad")
    if any(c["finish_reason"] is None and c["candidate_id"] not in shown for c in candidates):
        raise Conflict("an answer is still being written; wait for its end")


def _keep_shown(db: sqlite3.Connection, candidates: list[sqlite3.Row], shown: Shown) -> None:
    if unknown := shown.keys() - {c["candidate_id"] for c in candidates}:
        raise InvalidInput(f"these were not shown in this comparison: {', '.join(sorted(unknown))}")
    # What a withdrawn vote was shown no longer holds.
    db.executemany(
        "UPDATE candidates SET shown_text = NULL, shown_token_ids = NULL WHERE id = ?",
        [(c["candidate_id"],) for c in candidates],
    )
    for candidate_id, (text, token_ids) in shown.items():
        db.execute(
            "UPDATE candidates SET shown_text = ?, shown_token_ids = ? WHERE id = ?",
            (text, json.dumps(list(token_ids)), candidate_id),
        )


def _continuation(judgement: Judgement, candidates: list[sqlite3.Row]) -> str | None:
    if judgement.verdict == "both_bad":
        return None
    return _draw([c for c in candidates if judgement.ranking is None or c["candidate_id"] in judgement.ranking[0]])


def _draw(candidates: list[sqlite3.Row]) -> str | None:
    sound = [
        str(c["candidate_id"])
        for c in candidates
        if c["finish_reason"] is None or (c["finish_reason"] != "error" and (c["text"] or "").strip())
    ]
    return secrets.choice(sound) if sound else None


def _go_on(db: sqlite3.Connection, comparison: sqlite3.Row, answer_id: str, now: str) -> None:
    """Add the reply. A second vote on an earlier turn leaves the talk where it has got to since."""
    conversation_id, prompt_id = comparison["conversation_id"], comparison["prompt_id"]
    message_id = reply(db, conversation_id, prompt_id, answer_id, now)
    parent = db.execute("SELECT parent_id FROM messages WHERE id = ?", (comparison["leaf_id"],)).fetchone()
    if comparison["leaf_id"] == prompt_id or (parent and parent["parent_id"] == prompt_id):
        move_leaf(db, conversation_id, message_id, now)
