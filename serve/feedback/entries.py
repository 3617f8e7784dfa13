"""What the store takes and gives, beyond the nouns of serve.records."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from serve.records import FinishReason, Message, Verdict

Kind = Literal["flag", "exclude"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class PromptRef:
    """Where a prompt lies: its last message (a user turn) and the conversation around it."""

    conversation_id: str
    message_id: str


@dataclass(frozen=True)
class NewCandidate:
    """An answer about to be generated for a comparison."""

    version: int
    seed: int


@dataclass(frozen=True)
class ConversationTurn:
    """One message of a conversation; for an answer of ours, which one it was and who wrote it."""

    message: Message
    version: int | None
    answer_id: str | None
    message_id: str


@dataclass(frozen=True)
class SharedPair:
    """Two answers to one prompt that other voters may judge."""

    first: str
    second: str
    messages: tuple[Message, ...]
    first_text: str
    second_text: str


@dataclass(frozen=True)
class Consent:
    """What a voter agreed to."""

    given: bool = False
    """Knows that chats and votes are kept and learned from."""
    share: bool = False
    """Prompts may be shown to other voters, from now on."""


@dataclass(frozen=True)
class ConversationSummary:
    """A conversation in a list."""

    id: str
    title: str
    updated: datetime
    votes: int
    """Its author's standing votes, skips aside: they go with it."""


@dataclass(frozen=True)
class BallotAnswer:
    """An answer as its voter saw it; `partial` when the vote came before its end."""

    id: str
    position: int
    text: str
    token_ids: tuple[int, ...] | None
    """None where the answer was imported."""
    version: int | None
    finish_reason: FinishReason
    max_tokens: int | None
    temperature: float | None
    partial: bool


@dataclass(frozen=True)
class Ballot:
    """A standing vote with all that it was about. `answers` are ordered by position."""

    vote_id: str
    voter_id: str
    messages: tuple[Message, ...]
    """The prompt as the model read it: without the turns that were too much for it."""
    answers: tuple[BallotAnswer, ...]
    groups: tuple[tuple[int, ...], ...] | None
    """Indices into `answers`, best group first; one group is a tie; None when the vote ranks nothing."""
    verdict: Verdict | None
    strength: int | None
    evidence: bool
    imported: bool
    created: datetime

    def pairs(self) -> list[tuple[BallotAnswer, BallotAnswer]]:
        """Every (chosen, rejected) that the vote implies; ties imply none."""
        return [
            (self.answers[i], self.answers[j])
            for rank, better in enumerate(self.groups or ())
            for worse in (self.groups or ())[rank + 1 :]
            for i in better
            for j in worse
        ]


@dataclass(frozen=True)
class NewBallot:
    """From a dataset: a prompt, its answers, and a ranking (indices, best group first), a verdict, or neither."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    ranking: tuple[tuple[int, ...], ...] | None = None
    verdict: Verdict | None = None
    judge: str | None = None


@dataclass(frozen=True)
class NewDemonstration:
    """A demonstration from a dataset."""

    messages: tuple[Message, ...]
    answer: str


@dataclass(frozen=True)
class ImportCounts:
    """What an import added."""

    prompts: int = 0
    answers: int = 0
    votes: int = 0
    demonstrations: int = 0
    skipped: int = 0
    """Lines that say nothing about one prompt (both sides equal, or answers to different prompts), and demonstrations
    that were imported before."""


@dataclass(frozen=True)
class SnapshotCounts:
    """What a run may learn from. `pairs` counts every two answers of a vote, ties included."""

    votes: int
    pairs: int
    demonstrations: int
    prompts: int


@dataclass(frozen=True)
class MetricPoint:
    """One value of one metric of a run."""

    stage: str
    step: int
    name: str
    value: float
    time: datetime


@dataclass(frozen=True)
class Promotion:
    """One move of the serving pointer."""

    from_version: int
    to_version: int
    who: str
    why: str
    rolled_back: bool
    created: datetime


@dataclass(frozen=True)
class Exclusion:
    """A vote, or all that a voter gave, that an operator flagged or excluded."""

    id: str
    kind: Kind
    voter: str
    """The pseudonym of whose it is."""
    vote: str | None
    """None: all that the voter gave."""
    prompt: str | None
    """What the vote was about: the last message."""
    reason: str
    who: str
    created: datetime


@dataclass(frozen=True)
class Deed:
    """One line of the log."""

    who: str
    what: str
    created: datetime


@dataclass(frozen=True)
class HeadToHead:
    """Blind judgements between two versions."""

    wins: int
    losses: int
    ties: int
