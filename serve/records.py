"""The nouns of Hustings, as frozen dataclasses. Standard library only.

Times are aware `datetime`s in UTC; ids that leave the server are unguessable strings; versions are integers (0 is the
base); runs are integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args

Role = Literal["system", "user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "error"]
Verdict = Literal["tie", "both_bad", "skip"]
RunStatus = Literal["queued", "running", "interrupted", "succeeded", "rejected", "failed", "cancelled"]
VersionStatus = Literal["staged", "canary", "serving", "retired", "rejected", "rolled_back"]
Stage = Literal["sft", "reward", "ppo"]
Format = Literal["trl", "hh", "kto", "sft", "arena"]
"""Of datasets that come in and go out."""
Style = Literal["conversational", "plain"]
"""Of exports: lists of messages, or texts."""
Reading = Literal["whole", "demonstrations", "turns"]
"""What an import makes of its rows: what they are, demonstrations of what is ranked first, or of earlier turns too."""

STAGES: tuple[Stage, ...] = get_args(Stage)
ACTIVE: tuple[RunStatus, ...] = ("queued", "running", "interrupted")
"""Of a run that is not over."""
LEARNED: tuple[RunStatus, ...] = ("succeeded", "rejected")
"""Of a run that came to its end, with or without a version."""
FORMATS: tuple[Format, ...] = get_args(Format)
STYLES: tuple[Style, ...] = get_args(Style)
READINGS: tuple[Reading, ...] = get_args(Reading)
BASE_VERSION = 0


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. `temperature` 0 is greedy; `top_k` 0 and `top_p` 1 leave the distribution whole."""

    max_tokens: int = 256
    temperature: float = 0.8
    top_p: float = 1.0
    top_k: int = 0
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """A generated text. `token_ids` are what was sampled, EOS included; `logprobs` go with them."""

    id: str
    version: int
    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    seed: int
    sampling: Sampling
    finish_reason: FinishReason | None
    """None while the answer is still being generated."""


@dataclass(frozen=True)
class Candidate:
    """An answer shown in a comparison, at a position (0 is the leftmost)."""

    id: str
    position: int
    answer: Answer


@dataclass(frozen=True)
class Judgement:
    """What a voter says of a comparison: either a ranking of candidate ids, best group first, or a verdict."""

    ranking: tuple[tuple[str, ...], ...] | None = None
    verdict: Verdict | None = None
    strength: int | None = None
    """1 (barely better) to 5 (far better)."""
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Vote:
    """A standing or superseded judgement, as stored."""

    id: str
    comparison_id: str
    voter_id: str
    judgement: Judgement
    evidence: bool
    """Counts in win rates: the server chose versions, seed and sampling, and the vote came before any reveal."""
    created: datetime


@dataclass(frozen=True)
class Comparison:
    """One blind showing of K candidates for one prompt to one voter. `candidates` are ordered by position."""

    id: str
    voter_id: str
    conversation_id: str
    messages: tuple[Message, ...]
    candidates: tuple[Candidate, ...]
    status: Literal["open", "voted", "expired"]
    created: datetime
    expires: datetime
    vote: Vote | None = None
    """The standing vote, if there is one."""
    own: bool = True
    """The conversation is the voter's own; False for a pair from the queue."""


@dataclass(frozen=True)
class VoteReceipt:
    """What a voter learns by voting: which version wrote each candidate, and how the conversation goes on."""

    id: str
    revealed: dict[str, int]
    """Candidate id → version."""
    continues_with: str | None
    """The candidate whose answer became the history; None after `both_bad`, and where no answer chosen has words."""


@dataclass(frozen=True)
class Demonstration:
    """An answer written or edited by a person."""

    id: str
    messages: tuple[Message, ...]
    answer: str
    created: datetime


@dataclass(frozen=True)
class Run:
    """One training run."""

    id: int
    status: RunStatus
    trigger: Literal["votes", "interval", "operator"]
    stages: tuple[Stage, ...]
    created: datetime
    stage: str | None = None
    """What it is doing now: `sft`, `reward`, `ppo`, `gate`."""
    progress: float = 0.0
    """0 to 1 over the whole run."""
    eta_seconds: float | None = None
    started: datetime | None = None
    finished: datetime | None = None
    version: int | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    """The latest value of each metric."""
    report: dict[str, Any] | None = None
    error: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    """What it was told beside the defaults, nested as in `TrainingConfig`."""
    who: str | None = None
    """Who started it, as in the log."""
    votes: int = 0
    """How many it learns from."""


@dataclass(frozen=True)
class Due:
    """How far the next run by schedule is."""

    new_votes: int
    """Standing rankings and ties that no finished run has learned from."""
    min_new_votes: int
    max_interval: timedelta | None
    next_by: datetime | None
    """When it starts if no more votes come; None while nothing is scheduled."""


@dataclass(frozen=True)
class SettingInfo:
    """A setting of a run, in words."""

    name: str
    """Dotted, such as `ppo.clip`."""
    default: Any
    low: float | None
    high: float | None
    words: str


@dataclass(frozen=True)
class Version:
    """An immutable, numbered policy."""

    number: int
    status: VersionStatus
    created: datetime
    run: int | None = None
    parent: int | None = None
    report: dict[str, Any] | None = None
    sha256: str | None = None
    """Of its adapter's manifest, which holds the hashes of the files."""
    note: str | None = None
    """What operators wrote beside it."""


def without_oldest(messages: Sequence[Message], dropped: int) -> tuple[Message, ...]:
    """Messages without the first `dropped` of those that are no system messages."""
    said = [i for i, message in enumerate(messages) if message.role != "system"]
    gone = set(said[:dropped])
    return tuple(message for i, message in enumerate(messages) if i not in gone)


def prompt_text(messages: Sequence[Message]) -> str:
    """The last user turn, for lists and logs."""
    return next((m.content for m in reversed(messages) if m.role == "user"), "")


def version_name(version: int) -> str:
    """What people call a version: `version 3`, `version 0 (base)`."""
    return "version 0 (base)" if version == BASE_VERSION else f"version {version}"
