"""Comparisons: K answers to one prompt, shown blind to one voter."""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Literal

from serve.errors import InvalidInput
from serve.feedback.conversations import (
    VISIBLE,
    answer_from,
    ensure_voter,
    insert_answer,
    new_id,
    path_messages,
    require_prompt,
)
from serve.feedback.database import moment, stamp
from serve.feedback.entries import NewCandidate, PromptRef, SharedPair
from serve.feedback.votes import (
    CANDIDATES,
    COMPARISON,
    Votes,
    require_comparison,
    skip_open_comparisons,
    standing_vote,
    visible_comparison,
)
from serve.records import Answer, Candidate, Comparison, Sampling

OPEN_FOR = timedelta(hours=24)

EXCLUDED = "conversations.voter_id IN (SELECT voter_id FROM excluded_voters)"

ADMITTED = f"(conversations.voter_id = :voter OR NOT {EXCLUDED})"
"""Whether a voter may be asked about a prompt: those of excluded voters are brought to nobody else."""

SHARED_PAIRS = f"""
FROM messages AS prompts
JOIN conversations ON conversations.id = prompts.conversation_id
JOIN comparisons ON comparisons.prompt_id = prompts.id
JOIN candidates AS first ON first.comparison_id = comparisons.id
JOIN candidates AS second ON second.comparison_id = comparisons.id AND second.position > first.position
JOIN answers AS a ON a.id = first.answer_id
JOIN answers AS b ON b.id = second.answer_id
LEFT JOIN doubts ON doubts.first = a.id AND doubts.second = b.id
WHERE (prompts.share OR conversations.source IN ('shipped', 'imported'))
    AND a.version IS NOT NULL AND b.version IS NOT NULL
    AND a.finish_reason IN ('stop', 'length') AND b.finish_reason IN ('stop', 'length')
    AND a.text <> b.text AND comparisons.repeats IS NULL AND NOT {EXCLUDED}
"""


def others_pairs(done: str) -> str:
    """SQL: pairs of others' prompts, without those that this voter is done with, as the condition `done` says."""
    return (
        SHARED_PAIRS
        + f"""
    AND conversations.voter_id <> :voter
    AND NOT EXISTS (
        SELECT 1 FROM comparisons AS mine
        JOIN candidates AS x ON x.comparison_id = mine.id AND x.answer_id = a.id
        JOIN candidates AS y ON y.comparison_id = mine.id AND y.answer_id = b.id
        LEFT JOIN votes ON votes.comparison_id = mine.id
        WHERE mine.voter_id = :voter AND ({done})
    )
"""
    )


QUEUED = (
    "SELECT first.answer_id AS first_id, second.answer_id AS second_id, comparisons.prompt_id, evidence, probability"
    + others_pairs("votes.id IS NOT NULL")
)
NEXT_QUEUED = QUEUED + "ORDER BY doubt DESC NULLS LAST, random() LIMIT 1"
STILL_QUEUED = QUEUED + "AND first.answer_id = :first AND second.answer_id = :second LIMIT 1"

UNSEEN = "SELECT count(DISTINCT min(a.id, b.id) || ' ' || max(a.id, b.id))" + others_pairs(
    "votes.id IS NOT NULL OR mine.expires > :now"
)

UNDOUBTED = (
    "SELECT DISTINCT a.id AS first_id, b.id AS second_id, a.prompt_id, a.text AS first_text, b.text AS second_text"
    + SHARED_PAIRS
    + """
    AND (doubts.run_id IS NULL OR doubts.run_id < :run)
ORDER BY a.created DESC LIMIT :limit
"""
)

REPEATABLE = f"""
SELECT comparisons.id, prompt_id FROM comparisons
JOIN standing_votes ON comparison_id = comparisons.id AND verdict IN ('ranking', 'tie')
JOIN messages ON messages.id = prompt_id
JOIN conversations ON conversations.id = conversation_id
WHERE comparisons.voter_id = :voter AND repeats IS NULL AND {VISIBLE} AND {ADMITTED}
    AND NOT EXISTS (SELECT 1 FROM comparisons AS again WHERE again.repeats = comparisons.id)
    AND (2, 0) = (SELECT count(*), count(shown_text) FROM candidates WHERE candidates.comparison_id = comparisons.id)
    AND standing_votes.sequence <= (SELECT later.sequence FROM standing_votes AS later
        WHERE later.voter_id = :voter AND later.verdict <> 'skip' ORDER BY later.sequence DESC LIMIT 1 OFFSET :apart)
"""
NEXT_REPEATABLE = REPEATABLE + "ORDER BY random() LIMIT 1"
STILL_REPEATABLE = REPEATABLE + "AND comparisons.id = :id"

OPEN_REPEAT = (
    COMPARISON
    + f"""
WHERE comparisons.voter_id = :voter AND repeats IS NOT NULL AND expires > :now AND {VISIBLE} AND {ADMITTED}
    AND NOT EXISTS (SELECT 1 FROM standing_votes WHERE comparison_id = comparisons.id) LIMIT 1
"""
)

JUDGED_LAST = (
    COMPARISON
    + """
JOIN standing_votes ON standing_votes.comparison_id = comparisons.id AND standing_votes.source = 'voter'
WHERE comparisons.voter_id = ? AND conversation_id = ? AND repeats IS NULL AND (leaf_id = prompt_id OR leaf_id IN (
    SELECT reply.id FROM messages AS reply JOIN candidates ON candidates.answer_id = reply.answer_id
    WHERE reply.parent_id = prompt_id AND candidates.comparison_id = comparisons.id
))
ORDER BY standing_votes.sequence DESC LIMIT 1
"""
)

JUDGED_IN_QUEUE = (
    COMPARISON
    + f"""
JOIN standing_votes ON standing_votes.comparison_id = comparisons.id AND standing_votes.source = 'voter'
WHERE comparisons.voter_id = :voter AND standing_votes.created >= :since AND {VISIBLE}
    AND (repeats IS NOT NULL OR conversations.source = 'shipped' OR owner_id <> comparisons.voter_id)
ORDER BY standing_votes.sequence DESC LIMIT 1
"""
)

OPEN_IN_QUEUE = (
    COMPARISON
    + f"""
WHERE comparisons.voter_id = :voter AND repeats IS NULL AND expires > :now AND {ADMITTED} AND (
    conversations.source = 'shipped'
    OR owner_id <> comparisons.voter_id AND (messages.share OR conversations.source = 'imported')
)
    AND NOT EXISTS (SELECT 1 FROM standing_votes WHERE comparison_id = comparisons.id)
ORDER BY comparisons.created LIMIT 1
"""
)

DOUBTED_SHIPPED = """
SELECT messages.content, max(doubt) AS doubt FROM doubts
JOIN answers ON answers.id = doubts.first
JOIN messages ON messages.id = answers.prompt_id
JOIN conversations ON conversations.id = messages.conversation_id
WHERE conversations.source = 'shipped' GROUP BY messages.content
"""


class Comparisons(Votes):
    """Making comparisons, and finding those that wait for a vote."""

    def create_comparison(
        self,
        voter_id: str,
        prompt: PromptRef,
        candidates: Sequence[NewCandidate],
        sampling: Sampling,
        *,
        evidence: bool,
        probability: float | None = None,
        dropped: int = 0,
    ) -> Comparison:
        """A comparison of answers that are still to be written, at the positions they are given in.

        An older comparison of this conversation that is still open gets a skip. `evidence` says that the server chose
        versions, seeds and sampling; `probability` is the chance with which it drew these versions. Of the prompt's
        messages, system messages aside, the model does not read the `dropped` oldest.
        Raises NotFound for somebody else's prompt or an unknown version, InvalidInput for fewer than two candidates.
        """
        if len(candidates) < 2:
            raise InvalidInput("a comparison needs at least two candidates")

        def work(db: sqlite3.Connection) -> Comparison:
            now = self._clock()
            require_prompt(db, voter_id, prompt)
            skip_open_comparisons(db, prompt.conversation_id, voter_id, prompt.message_id, stamp(now))
            answers = [
                insert_answer(db, prompt.message_id, c.version, c.seed, sampling, stamp(now), dropped=dropped).id
                for c in candidates
            ]
            comparison_id = insert_comparison(
                db, voter_id, prompt.message_id, answers, now, evidence=evidence, probability=probability
            )
            return _load(db, comparison_id, voter_id, now)

        return self.writing(work)

    def create_answer(
        self, voter_id: str, prompt: PromptRef, version: int, seed: int, sampling: Sampling, *, dropped: int = 0
    ) -> Answer:
        """A single answer that nobody is asked to judge, still empty; `dropped` as in a comparison. Raises NotFound.

        A comparison of this conversation that is still open gets a skip.
        """

        def work(db: sqlite3.Connection) -> Answer:
            now = self._now()
            require_prompt(db, voter_id, prompt)
            skip_open_comparisons(db, prompt.conversation_id, voter_id, prompt.message_id, now)
            return insert_answer(db, prompt.message_id, version, seed, sampling, now, dropped=dropped)

        return self.writing(work)

    def comparison(self, comparison_id: str, voter_id: str) -> Comparison:
        """A comparison as it stands. Raises NotFound if it is unknown, somebody else's or shared no more."""
        with self.reading() as db:
            return _load(db, comparison_id, voter_id, self._clock())

    def require_comparison(self, comparison_id: str, voter_id: str) -> None:
        """Raises NotFound unless it was shown to this voter."""
        with self.reading() as db:
            require_comparison(db, comparison_id, voter_id)

    def open_comparison(self, voter_id: str, conversation_id: str) -> Comparison | None:
        """The comparison that waits for its vote where this conversation stands."""
        with self.reading() as db:
            row = db.execute(
                COMPARISON + "WHERE comparisons.voter_id = ? AND conversation_id = ? AND prompt_id = leaf_id"
                " AND repeats IS NULL"
                " AND expires > ? AND NOT EXISTS"
                " (SELECT 1 FROM standing_votes WHERE comparison_id = comparisons.id)"
                " ORDER BY comparisons.rowid DESC LIMIT 1",
                (voter_id, conversation_id, self._now()),
            ).fetchone()
            return row and _load(db, row["id"], voter_id, self._clock())

    def judged_last(self, voter_id: str, conversation_id: str) -> Comparison | None:
        """The comparison that this voter judged where the talk stands: at its prompt, or at the answer chosen."""
        with self.reading() as db:
            row = db.execute(JUDGED_LAST, (voter_id, conversation_id)).fetchone()
            return row and _load(db, row["id"], voter_id, self._clock())

    def judged_in_queue(self, voter_id: str, since: str) -> Comparison | None:
        """What this voter judged last in the queue, if it was since then and the vote stands."""
        with self.reading() as db:
            row = db.execute(JUDGED_IN_QUEUE, {"voter": voter_id, "since": since}).fetchone()
            return row and _load(db, row["id"], voter_id, self._clock())

    def unseen_pairs(self, voter_id: str) -> int:
        """How many pairs the queue holds that wait for this voter: not judged, and not before them now."""
        with self.reading() as db:
            return int(db.execute(UNSEEN, {"voter": voter_id, "now": self._now()}).fetchone()[0])

    def open_in_queue(self, voter_id: str) -> Comparison | None:
        """What this voter was given to judge and has not judged: a repeat, or what `next_in_queue` gives again."""
        with self.reading() as db:
            now = self._clock()
            return _waiting(db, OPEN_REPEAT, voter_id, now) or _waiting(db, OPEN_IN_QUEUE, voter_id, now)

    def next_in_queue(self, voter_id: str) -> Comparison | None:
        """Two stored answers to a prompt that somebody else shared, for this voter to judge.

        Prompts that were shipped or imported count as shared, but only answers that a version of ours wrote are shown.
        Prompts of excluded voters are not. The pair on which the newest fold models differ most comes first. The same
        comparison comes back until it is voted on, also one of this voter's own on a shipped prompt. Whether it is
        evidence is as it was where the answers were first compared. None when there is nothing left.
        """
        while True:
            with self.reading() as db:
                if waiting := _waiting(db, OPEN_IN_QUEUE, voter_id, self._clock()):
                    return waiting
                pair = db.execute(NEXT_QUEUED, {"voter": voter_id}).fetchone()
            if pair is None:
                return None
            if shown := self.writing(partial(self._show_pair, voter_id, pair)):
                return shown

    def _show_pair(self, voter_id: str, pair: sqlite3.Row, db: sqlite3.Connection) -> Comparison | None:
        """Show a pair that was chosen a moment ago; what another call of this voter has made since comes first.

        None where the pair is no longer to be had.
        """
        now = self._clock()
        if waiting := _waiting(db, OPEN_IN_QUEUE, voter_id, now):
            return waiting
        answers = [pair["first_id"], pair["second_id"]]
        if not db.execute(STILL_QUEUED, {"voter": voter_id, "first": answers[0], "second": answers[1]}).fetchone():
            return None
        ensure_voter(db, voter_id, stamp(now))
        secrets.SystemRandom().shuffle(answers)
        comparison_id = insert_comparison(
            db,
            voter_id,
            pair["prompt_id"],
            answers,
            now,
            evidence=bool(pair["evidence"]),
            probability=pair["probability"],
        )
        return _load(db, comparison_id, voter_id, now)

    def repeat(self, voter_id: str, apart: int) -> Comparison | None:
        """A pair that this voter judged at least `apart` judgements ago, once more, with sides swapped.

        It measures how surely people judge, and is no evidence, for they have seen who wrote what. The same comes back
        until it is voted on. None where there is no such pair.
        """
        with self.reading() as db:
            if waiting := _waiting(db, OPEN_REPEAT, voter_id, self._clock()):
                return waiting
            pair = db.execute(NEXT_REPEATABLE, {"voter": voter_id, "apart": apart}).fetchone()
        if pair is None:
            return None

        def work(db: sqlite3.Connection) -> Comparison | None:
            now = self._clock()
            # Since then another call of this voter may have made one, and the prompt may be gone.
            if waiting := _waiting(db, OPEN_REPEAT, voter_id, now):
                return waiting
            if not db.execute(STILL_REPEATABLE, {"voter": voter_id, "apart": apart, "id": pair["id"]}).fetchone():
                return None
            answers = [row["id"] for row in db.execute(CANDIDATES, (pair["id"],))]
            again = insert_comparison(db, voter_id, pair["prompt_id"], answers[::-1], now)
            db.execute("UPDATE comparisons SET repeats = ? WHERE id = ?", (pair["id"], again))
            return _load(db, again, voter_id, now)

        return self.writing(work)

    def doubts_of_shipped(self) -> dict[str, float]:
        """By the last turn of a shipped prompt: how far fold models differ about two answers to it, at the widest."""
        with self.reading() as db:
            return {row["content"]: row["doubt"] for row in db.execute(DOUBTED_SHIPPED)}

    def undoubted(self, run_id: int, limit: int) -> list[SharedPair]:
        """Shared pairs that the fold models of this run, or of a later one, have not read yet; the newest first.

        Each once, whichever of the two stands first where it was shown.
        """
        with self.reading() as db:
            found: dict[frozenset[str], sqlite3.Row] = {}
            for row in db.execute(UNDOUBTED, {"run": run_id, "limit": 2 * limit}):
                found.setdefault(frozenset((row["first_id"], row["second_id"])), row)
            rows = list(found.values())[:limit]
            return [
                SharedPair(
                    row["first_id"],
                    row["second_id"],
                    path_messages(db, row["prompt_id"]),
                    row["first_text"],
                    row["second_text"],
                )
                for row in rows
            ]

    def set_doubts(self, run_id: int, doubts: Sequence[tuple[str, str, float]]) -> None:
        """Note how far a run's fold models differ about pairs of answers: the queue asks about the widest first."""

        def work(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO doubts (first, second, doubt, run_id) SELECT ?, ?, ?, ? WHERE 2 ="
                " (SELECT count(*) FROM answers WHERE id IN (?, ?))"  # their voter may have been forgotten since
                " ON CONFLICT DO UPDATE SET doubt = excluded.doubt, run_id = excluded.run_id",
                [(*pair, doubt, run_id, *pair) for *both, doubt in doubts for pair in (both, both[::-1])],
            )

        self.writing(work)


def insert_comparison(
    db: sqlite3.Connection,
    voter_id: str,
    prompt_id: str,
    answer_ids: Sequence[str],
    now: datetime,
    *,
    evidence: bool = False,
    probability: float | None = None,
) -> str:
    """Show these answers at positions 0, 1, …; returns the comparison's id."""
    comparison_id = new_id()
    db.execute(
        "INSERT INTO comparisons (id, voter_id, prompt_id, evidence, probability, created, expires)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (comparison_id, voter_id, prompt_id, evidence, probability, stamp(now), stamp(now + OPEN_FOR)),
    )
    db.executemany(
        "INSERT INTO candidates (id, comparison_id, answer_id, position) VALUES (?, ?, ?, ?)",
        [(new_id(), comparison_id, answer_id, position) for position, answer_id in enumerate(answer_ids)],
    )
    return comparison_id


def _waiting(db: sqlite3.Connection, which: str, voter_id: str, now: datetime) -> Comparison | None:
    """The comparison that OPEN_IN_QUEUE or OPEN_REPEAT finds for a voter."""
    row = db.execute(which, {"voter": voter_id, "now": stamp(now)}).fetchone()
    return row and _load(db, row["id"], voter_id, now)


def _load(db: sqlite3.Connection, comparison_id: str, voter_id: str, now: datetime) -> Comparison:
    row = visible_comparison(db, comparison_id, voter_id)
    vote = standing_vote(db, comparison_id)
    expires = moment(row["expires"])
    status: Literal["open", "voted", "expired"] = "voted" if vote else "expired" if expires <= now else "open"
    return Comparison(
        id=comparison_id,
        voter_id=voter_id,
        conversation_id=row["conversation_id"],
        messages=path_messages(db, row["prompt_id"]),
        candidates=tuple(
            Candidate(candidate["candidate_id"], candidate["position"], answer_from(candidate))
            for candidate in db.execute(CANDIDATES, (comparison_id,))
        ),
        status=status,
        created=moment(row["created"]),
        expires=expires,
        vote=vote,
        own=row["owner_id"] == voter_id,
    )
