"""What people said, read from a run's snapshot: votes → pairs → batches.

A vote ranks the answers of one comparison in groups; every two answers it orders make a pair (chosen, rejected), and
two in one group make a soft pair with target ½. The pairs of a comparison weigh 1 together, so that ranking six answers
counts as one judgement, not fifteen (Ouyang et al. 2022, eq. 1).
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sqlite3
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from serve.policy.chat import answer_ids, render
from serve.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


MIN_VOTERS_FOR_SHARES = 3
"""With fewer, nobody's share is bounded."""
LONGEST_RANKED = 2048
"""Tokens of a prompt and an answer that are read of a vote."""


@dataclass(frozen=True)
class Prompt:
    """Something people asked (`asked` times, tests aside), or that the project ships.

    `source`: voter, shipped, imported or demonstrated.
    """

    id: int
    messages: tuple[Message, ...]
    source: str
    asked: int


@dataclass(frozen=True)
class Ranked:
    """One standing vote: a prompt and its answers, in groups of equals, best first."""

    prompt_id: int
    """The same for the same prompt."""
    voter: str
    prompt_ids: tuple[int, ...]
    """Token ids of the prompt, through the chat template."""
    answers: tuple[tuple[int, ...], ...]
    """Token ids of each answer, best group first."""
    groups: tuple[int, ...]
    """The group of each answer; equal numbers are a tie."""
    positions: tuple[int, ...]
    """Where each answer was shown; −1 where nobody knows."""
    finish_reasons: tuple[str, ...]
    strength: int | None

    def pairs(self) -> list[tuple[int, int, float]]:
        """(i, j, target): answer i was preferred to j with target 1, or tied with it with target ½."""
        return [
            (i, j, 1.0 if self.groups[i] < self.groups[j] else 0.5)
            for i, j in itertools.combinations(range(len(self.answers)), 2)
        ]


@dataclass(frozen=True)
class Shown:
    """A demonstration: messages and the answer a person wrote for them."""

    messages: tuple[Message, ...]
    answer: str

    def token_ids(self, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[list[int], list[int]]:
        """Prompt and answer, of at most `length` tokens together.

        A longer text loses the front of its prompt, down to a quarter of `length`, and then its answer's end.
        """
        prompt, answer = render(tokenizer, self.messages), answer_ids(tokenizer, self.answer)
        answer = answer[: length - min(len(prompt), max(1, length // 4))]
        return prompt[-(length - len(answer)) :], answer


@dataclass(frozen=True)
class Snapshot:
    """All that a run may learn from."""

    prompts: tuple[Prompt, ...]
    rankings: tuple[Ranked, ...]
    demonstrations: tuple[Shown, ...]
    max_tokens: int | None
    """The most common limit of the voted answers that the server wrote; none if there are none."""
    temperature: float | None
    """Their most common temperature, likewise."""


def demonstrations_hash(shown: Sequence[Shown]) -> str:
    """Changes when, and only when, the demonstrations do."""
    lines = sorted(json.dumps([[[m.role, m.content] for m in d.messages], d.answer], ensure_ascii=False) for d in shown)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_snapshot(path: Path, tokenizer: PreTrainedTokenizerBase, longest: int = LONGEST_RANKED) -> Snapshot:
    """Read snapshot.db. Generated answers keep the token ids they were sampled with; imported texts are tokenised.

    What was voted on is read within `longest` tokens: an answer of more than half of them loses its end, and then a
    prompt its front.
    """
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as db:
        db.row_factory = sqlite3.Row
        meta = dict(db.execute("select key, value from meta").fetchall())
        prompts = {
            row["id"]: Prompt(row["id"], _messages(row["messages"]), row["source"], row["asked"])
            for row in db.execute("select * from prompts order by id")
        }
        answers = {row["id"]: row for row in db.execute("select * from answers")}
        rendered = cache(lambda number: render(tokenizer, prompts[number].messages))
        rankings = []
        for vote in db.execute("select * from votes order by id"):
            groups = json.loads(vote["ranking"])
            positions = json.loads(vote["positions"] or "{}")
            ranked = [(answers[a], group, positions.get(str(a), -1)) for group, ids in enumerate(groups) for a in ids]
            texts = tuple(_token_ids(row, tokenizer)[: longest // 2] for row, _, _ in ranked)
            prompt = rendered(vote["prompt_id"])
            rankings.append(
                Ranked(
                    prompt_id=vote["prompt_id"],
                    voter=vote["voter"],
                    prompt_ids=tuple(prompt[max(map(len, texts)) - longest :]),
                    answers=texts,
                    groups=tuple(group for _, group, _ in ranked),
                    positions=tuple(position for _, _, position in ranked),
                    finish_reasons=tuple(row["finish_reason"] or "stop" for row, _, _ in ranked),
                    strength=vote["strength"],
                )
            )
        demonstrations = tuple(
            Shown(_messages(row["messages"]), row["answer"])
            for row in db.execute("select * from demonstrations order by id")
        )
    limit, temperature = meta.get("max_tokens"), meta.get("temperature")
    return Snapshot(
        tuple(prompts.values()),
        tuple(rankings),
        demonstrations,
        None if limit is None else int(limit),
        None if temperature is None else float(temperature),
    )


def folds_by_prompt(rankings: Sequence[Ranked], folds: int, seed: int) -> list[int]:
    """The fold of each ranking: all votes on one prompt share a fold, and folds have about as many prompts."""
    return _folds([r.prompt_id for r in rankings], folds, seed)


def folds_by_voter(rankings: Sequence[Ranked], folds: int, seed: int) -> list[int]:
    """The fold of each ranking: all votes of one voter share a fold."""
    return _folds([r.voter for r in rankings], folds, seed)


def voter_weights(voters: Sequence[Hashable], max_share: float) -> list[float]:
    """A weight for each vote, 1 on average, so that no voter's weights are more than `max_share` of all.

    What one voter weighs less, others weigh more: as much is learned from as many votes (docs/log.md has the figures).
    Fewer than three voters weigh what they weigh. With V voters no bound below 1 / V can hold: all then weigh the same.
    """
    counts = Counter(voters)
    if len(counts) < MIN_VOTERS_FOR_SHARES:
        return [1.0] * len(voters)
    share = max(max_share, 1 / len(counts))
    bounded: set[Hashable] = set()
    while True:  # who is bounded leaves less for others to be compared with, so that more may come to be bounded
        free = sum(count for voter, count in counts.items() if voter not in bounded)
        limit = share * free / (1 - share * len(bounded))
        over = {voter for voter, count in counts.items() if voter not in bounded and count > limit * (1 + 1e-9)}
        if not over:
            weights = [limit / counts[voter] if voter in bounded else 1.0 for voter in voters]
            return [weight * len(weights) / sum(weights) for weight in weights]
        bounded |= over


def _folds(keys: Sequence[Hashable], folds: int, seed: int) -> list[int]:
    distinct = list(dict.fromkeys(keys))
    random.Random(seed).shuffle(distinct)
    fold_of = {key: i % folds for i, key in enumerate(distinct)}
    return [fold_of[key] for key in keys]


def _messages(text: str) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in json.loads(text))


def _token_ids(row: sqlite3.Row, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    if row["token_ids"]:
        ids = tuple(json.loads(row["token_ids"]))
        if ids:
            return ids
    return tuple(answer_ids(tokenizer, row["text"]))
