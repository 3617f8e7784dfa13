"""The engine: prompts in, tokens out. One protocol, so that a remote engine can stand in for the local one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from serve.records import FinishReason, Message, Sampling


@dataclass(frozen=True)
class CandidateRequest:
    """One answer asked for: which version writes it, and its seed."""

    version: int
    seed: int


@dataclass(frozen=True)
class Token:
    """One sampled token of candidate `index`."""

    index: int
    token_id: int
    logprob: float
    """Log-probability at the sampling temperature (at 1 when greedy), before top-k and top-p."""
    text: str
    """What became readable with this token; may be empty in the middle of a character."""
    step: int
    """Number of the decode step: tokens with the same step were decoded in one batch."""


@dataclass(frozen=True)
class Finished:
    """Candidate `index` has ended."""

    index: int
    finish_reason: FinishReason
    error: str | None = None


Event = Token | Finished


@dataclass(frozen=True)
class Output:
    """A whole answer. `token_ids` holds the closing EOS when `finish_reason` is `stop`; `text` never does."""

    version: int
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    text: str
    finish_reason: FinishReason


class Generation(Protocol):
    """One prompt's candidates, while they are being written.

    Iterate it once, with `for` from a thread or `async for` from an event loop; it ends after the last `Finished`.
    """

    def __iter__(self) -> Iterator[Event]: ...

    def __aiter__(self) -> AsyncIterator[Event]: ...

    @property
    def place(self) -> int:
        """Its place in line: 1 joins the batch next; 0 when it has joined or ended. Thread-safe."""

    def cancel(self, index: int | None = None) -> None:
        """Stop one candidate, or all; each ends with `cancelled` within a step. Thread-safe and idempotent."""

    def result(self, timeout: float | None = None) -> tuple[Output, ...]:
        """Block until all have ended (without iterating) and return them in the order asked for."""


class Engine(Protocol):
    """Answers prompts with any resident version, many at once. All methods are thread-safe."""

    @property
    def model_name(self) -> str:
        """What `/health` shows."""

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""

    @property
    def waiting(self) -> int:
        """Requests that have no place in the batch yet."""

    @property
    def serving(self) -> int:
        """The version new requests should take."""

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the chat template, ready for an answer to follow."""

    def load(self, version: int, adapter: Path | None) -> None:
        """Make a version resident (`None` only for version 0). A no-op if it is.

        Raises AdapterError naming what does not fit; whatever was resident stays.
        """

    def serve(self, version: int) -> None:
        """Flip which version new requests take; it must be resident. Answers in flight keep theirs."""

    def submit(self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling) -> Generation:
        """Queue one prompt (token ids from `encode`) for K candidates that share its prefill and decode as one batch.

        Raises PromptTooLong when prompt and `max_tokens` exceed the context, Unavailable when the queue is full or the
        engine is closed, NotFound when a version is not resident.
        """

    def close(self) -> None:
        """Cancel everything and end the decode thread."""
