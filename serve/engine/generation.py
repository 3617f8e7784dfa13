"""One prompt's candidates while they are being written: the decode thread pushes, whoever asked iterates."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from serve.engine import CandidateRequest, Event, Finished, Output
from serve.engine.transcript import Transcript
from serve.records import FinishReason, Sampling

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class Candidate:
    """One answer in the making. The decode thread owns it; others only set `cancelled`."""

    def __init__(
        self, generation: LocalGeneration, index: int, request: CandidateRequest, tokenizer: Tokenizer
    ) -> None:
        self.generation = generation
        self.index = index
        self.version = request.version
        self.random = random.Random(request.seed)
        self.transcript = Transcript(tokenizer, generation.sampling.stop)
        self.token_ids: list[int] = []
        self.logprobs: list[float] = []
        self.cancelled = False
        self.finish_reason: FinishReason | None = None

    def finish(self, reason: FinishReason, error: str | None = None) -> None:
        """The last word on this candidate."""
        self.finish_reason = reason
        self.generation.push(Finished(self.index, reason, error))


class LocalGeneration:
    """The engine's `Generation`."""

    def __init__(
        self,
        prompt: Sequence[int],
        requests: Sequence[CandidateRequest],
        sampling: Sampling,
        tokenizer: Tokenizer,
        wake_engine: Callable[[], None],
        place_in_line: Callable[[LocalGeneration], int],
    ) -> None:
        self.prompt = list(prompt)
        self.sampling = sampling
        self.candidates = [Candidate(self, i, request, tokenizer) for i, request in enumerate(requests)]
        self._wake_engine = wake_engine
        self._place_in_line = place_in_line
        self._changed = threading.Condition()
        self._events: deque[Event] = deque()
        self._unfinished = len(requests)
        self._wake_loop: Callable[[], object] | None = None

    def live(self) -> list[Candidate]:
        """Candidates that have not ended."""
        return [c for c in self.candidates if c.finish_reason is None]

    def push(self, event: Event) -> None:
        """Called by the decode thread."""
        with self._changed:
            self._events.append(event)
            self._unfinished -= isinstance(event, Finished)
            self._changed.notify_all()
            wake = self._wake_loop
        if wake is not None:
            try:
                wake()
            except (
                RuntimeError
            ):  # the listener's event loop is closed: nobody reads on, which is no fault of the engine
                self._wake_loop = None

    def __iter__(self) -> Iterator[Event]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._events or not self._unfinished)
                events, ended = self._take()
            yield from events
            if ended:
                return

    async def __aiter__(self) -> AsyncIterator[Event]:
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake_loop = lambda: loop.call_soon_threadsafe(arrived.set)
        while True:
            arrived.clear()  # before taking, so that what arrives meanwhile is not slept through
            with self._changed:
                events, ended = self._take()
            for event in events:
                yield event
            if ended:
                return
            await arrived.wait()

    @property
    def place(self) -> int:
        """Its place in line: 1 joins the batch next; 0 when it has joined or ended. Thread-safe."""
        return self._place_in_line(self)

    def cancel(self, index: int | None = None) -> None:
        """Stop one candidate, or all; each ends with `cancelled` within a step. Thread-safe and idempotent."""
        for candidate in self.candidates if index is None else [self.candidates[index]]:
            candidate.cancelled = True
        self._wake_engine()

    def result(self, timeout: float | None = None) -> tuple[Output, ...]:
        """Block until all have ended and return them in the order asked for. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: not self._unfinished, timeout):
                raise TimeoutError(f"not all candidates ended within {timeout} s")
        return tuple(
            Output(c.version, tuple(c.token_ids), tuple(c.logprobs), c.transcript.text, c.finish_reason or "error")
            for c in self.candidates
        )

    def _take(self) -> tuple[list[Event], bool]:
        events = list(self._events)
        self._events.clear()
        return events, not self._unfinished
