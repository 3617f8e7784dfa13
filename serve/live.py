"""Answers while they are being written: one pump per generation, any number of watchers.

The pump reads the engine's tokens, hands each finished draft to be recorded, and logs events. A watcher replays the log
from its beginning and then follows it, so a page that reloads in the middle of an answer loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from serve.engine import CandidateRequest, Finished, Generation, Token
from serve.errors import HustingsError, TookTooLong, Unavailable
from serve.records import Candidate, Comparison, FinishReason

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Start:
    """The comparison as it is asked. It comes again when identical answers are resampled: begin with empty texts."""

    comparison: Comparison


@dataclass(frozen=True)
class Delta:
    """One more token of a draft. `text` may be empty in the middle of a character."""

    id: str
    text: str
    token_id: int
    logprob: float
    step: int
    """The engine's decode step: equal steps were decoded in one batch."""


@dataclass(frozen=True)
class End:
    """A draft is complete and recorded."""

    id: str
    finish_reason: FinishReason


@dataclass(frozen=True)
class Failure:
    """Something went wrong; drafts without text end with `error`."""

    error: HustingsError


Event = Start | Delta | End | Failure


@dataclass
class Draft:
    """One answer while it is being written."""

    id: str
    """The candidate's id in a comparison, otherwise the answer's."""
    answer_id: str | None
    """Where it is recorded; None when it is not."""
    request: CandidateRequest
    deltas: list[Delta] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def text(self) -> str:
        """What is readable so far."""
        return "".join(delta.text for delta in self.deltas)

    def up_to(self, characters: int) -> Draft:
        """As far as whole tokens reach within so many characters; it has not ended where some are left out."""
        length = 0
        for count, delta in enumerate(self.deltas):
            length += len(delta.text)
            if length > characters:
                return replace(self, deltas=self.deltas[:count], finish_reason=None)
        return self

    @property
    def token_ids(self) -> tuple[int, ...]:
        """What was sampled so far."""
        return tuple(delta.token_id for delta in self.deltas)

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probabilities of `token_ids`."""
        return tuple(delta.logprob for delta in self.deltas)


Record = Callable[[Draft], Awaitable[None]]
"""Writes a finished draft down."""


class LiveAnswers:
    """One prompt's answers while they are being written. `error` is set when not all could be."""

    def __init__(
        self,
        drafts: Sequence[Draft],
        generation: Generation,
        record: Record,
        *,
        prompt_tokens: int,
        timeout: float,
        conversation_id: str | None = None,
    ) -> None:
        """Starts pumping at once; needs a running event loop. `drafts` are in the generation's order.

        `timeout` seconds later, whatever has not ended is stopped.
        """
        self.conversation_id = conversation_id
        self.prompt_tokens = prompt_tokens
        self.drafts = tuple(drafts)
        self.error: HustingsError | None = None
        self._record = record
        self._generation = generation
        self._streaming = list(self.drafts)  # generation index → draft
        self._cancelled: set[str] = set()
        self._timeout = timeout
        self._log: list[Event] = []
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run())
        self._task.add_done_callback(lambda _: self._wake())

    @property
    def done(self) -> bool:
        """All drafts are complete and recorded."""
        return self._task.done()

    @property
    def shown(self) -> tuple[Draft, ...]:
        """What may be seen of the drafts."""
        return self.drafts

    @property
    def place(self) -> int:
        """Its place in line: 1 is answered next; 0 when it is being answered or has ended."""
        return self._generation.place

    async def events(self) -> AsyncIterator[Event]:
        """Everything from the beginning, then what comes, to the end."""
        seen = 0
        while True:
            changed, finished = self._changed, self.done
            while seen < len(self._log):
                seen += 1
                yield self._log[seen - 1]
            if finished:
                return
            await changed.wait()

    async def growing(
        self, tick: float, watched: Callable[[], bool] = lambda: True
    ) -> AsyncIterator[tuple[Draft, ...]]:
        """What may be seen: now, and whenever that or the place in line has changed, looked at every `tick` seconds.

        The last is what there is when all is written; it ends sooner where nobody watches any more.
        """
        before: object = None
        ended = False
        while not ended and watched():
            ended = self.done
            now = self.place, [(draft.text, draft.finish_reason) for draft in self.shown]
            if now != before:
                before = now
                yield self.shown
            await asyncio.wait({self._task}, timeout=tick)

    def cancel(self, *ids: str) -> None:
        """Stop the drafts named, or all; what they have so far is kept."""
        wanted = set(ids) or {draft.id for draft in self.drafts}
        self._cancelled |= wanted
        for index, draft in enumerate(self._streaming):
            if draft.id in wanted and draft.finish_reason is None:
                self._generation.cancel(index)

    def abandon(self) -> None:
        """Nobody reads on."""
        self.cancel()

    def when_done(self, callback: Callable[[], object]) -> None:
        """Call back, in the event loop, when all drafts are complete and recorded."""
        self._task.add_done_callback(lambda _: callback())

    async def wait(self) -> tuple[Draft, ...]:
        """Until all drafts are complete and recorded."""
        await asyncio.shield(self._task)
        return self.drafts

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().call_later(self._timeout, self._run_out)
        try:
            await self._write()
        except Exception:  # the boundary of this request: whoever watches is told, the log has the trace
            log.exception("an answer could not be written")
            self._generation.cancel()
            self._fail(Unavailable("the answer was lost; try again"))
            for draft in self.drafts:
                if draft.finish_reason is None:
                    await self._finish(draft, "error")
        finally:
            clock.cancel()

    def _run_out(self) -> None:
        """The time is over: what was written so far is kept, and its place is free for others."""
        if all(draft.finish_reason is not None for draft in self.drafts):
            return
        self._fail(
            TookTooLong(
                f"the answer had not ended after {self._timeout:g} s and was stopped; ask for a shorter one, try again "
                "when fewer people wait, or let the operator raise answer_timeout"
            )
        )
        self.cancel()

    async def _write(self) -> None:
        async for draft, reason in self._pump():
            await self._finish(draft, reason)

    async def _pump(self) -> AsyncIterator[tuple[Draft, FinishReason]]:
        """Log the generation's tokens; yield each draft as it ends."""
        async for event in self._generation:
            draft = self._streaming[event.index]
            if isinstance(event, Token):
                delta = Delta(draft.id, event.text, event.token_id, event.logprob, event.step)
                draft.deltas.append(delta)
                self._tell(delta)
            else:
                self._note(event)
                yield draft, event.finish_reason

    async def _finish(self, draft: Draft, reason: FinishReason) -> None:
        draft.finish_reason = reason
        try:
            await self._record(draft)
        except Exception as error:  # it was forgotten meanwhile, or the disk is full; the other drafts go on
            log.exception("an answer could not be recorded")
            self._fail(error if isinstance(error, HustingsError) else Unavailable("the answer could not be recorded"))
        self._tell(End(draft.id, reason))

    def _note(self, event: Finished) -> None:
        if event.finish_reason == "error":
            self._fail(Unavailable(f"the answer broke off: {event.error or 'the engine failed'}; try again"))

    def _fail(self, error: HustingsError) -> None:
        self.error = self.error or error
        self._tell(Failure(error))

    def _tell(self, event: Event) -> None:
        self._log.append(event)
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


class LiveComparison(LiveAnswers):
    """A comparison while its candidates are being written; the drafts' ids are the candidates'."""

    def __init__(
        self,
        comparison: Comparison,
        generation: Generation,
        record: Record,
        resample: Callable[[Sequence[CandidateRequest]], Awaitable[Generation]],
        *,
        prompt_tokens: int,
        timeout: float,
    ) -> None:
        """`resample` submits the same prompt once more."""
        self._comparison = comparison
        self._resample = resample
        self.judged = False
        """A vote came before the end: nothing is resampled any more."""
        drafts = [
            Draft(c.id, c.answer.id, CandidateRequest(c.answer.version, c.answer.seed)) for c in comparison.candidates
        ]
        super().__init__(
            drafts,
            generation,
            record,
            prompt_tokens=prompt_tokens,
            timeout=timeout,
            conversation_id=comparison.conversation_id,
        )

    @property
    def shown(self) -> tuple[Draft, ...]:
        """What may be seen of the drafts: of each as much as there is of the shortest that is still being written.

        How fast an answer grows would say something of who writes it. That it has ended shows once the others are as
        long, for from then on anybody sees that it grows no more.
        """
        lengths = [len(draft.text) for draft in self.drafts if draft.finish_reason is None]
        return tuple(draft.up_to(min(lengths)) for draft in self.drafts) if lengths else self.drafts

    @property
    def comparison(self) -> Comparison:
        """As it was asked, with what may be seen so far."""
        return self.with_texts(self._comparison)

    def with_texts(self, stored: Comparison) -> Comparison:
        """The comparison as it was read from the record, with what may be seen so far."""
        return replace(stored, candidates=tuple(map(_so_far, self._comparison.candidates, self.shown)))

    def abandon(self) -> None:
        """Nobody reads on. An early vote has stopped the losers already; the winner finishes for the record."""
        if not self.judged:
            super().abandon()

    async def _write(self) -> None:
        self._tell(Start(self._comparison))
        twins: list[tuple[Draft, FinishReason]] = []
        async for draft, reason in self._pump():
            if self._is_twin(draft, reason):
                # Neither recorded nor ended before it is known whether it is written anew.
                twins.append((draft, reason))
            else:
                await self._finish(draft, reason)
        if twins:
            await self._write_again(twins)

    def _is_twin(self, draft: Draft, reason: FinishReason) -> bool:
        """Whether it says what another already said, and drawing it again can help."""
        greedy = self._comparison.candidates[0].answer.sampling.temperature == 0
        return (
            not (greedy or self.judged or self._cancelled)
            and reason in ("stop", "length")
            and any(d.text == draft.text for d in self.drafts if d is not draft and d.finish_reason is not None)
        )

    async def _write_again(self, twins: list[tuple[Draft, FinishReason]]) -> None:
        """Draw identical answers once more, with seeds that follow from those of the first draw."""
        fresh = max(draft.request.seed for draft in self.drafts) + 1
        requests = [CandidateRequest(draft.request.version, fresh + i) for i, (draft, _) in enumerate(twins)]
        generation = None
        if not (self.judged or self._cancelled):
            # The queue may be full or the version gone: identical answers are still answers.
            with suppress(HustingsError):
                generation = await self._resample(requests)
        if generation is None:
            for draft, reason in twins:
                await self._finish(draft, reason)
            return
        self._generation, self._streaming = generation, [draft for draft, _ in twins]
        for draft, request in zip(self._streaming, requests, strict=True):
            draft.request, draft.deltas = request, []
        self._tell(Start(self._comparison))
        for draft in self.drafts:
            if draft.finish_reason is not None:
                self._log += [*draft.deltas, End(draft.id, draft.finish_reason)]
        async for draft, reason in self._pump():
            await self._finish(draft, reason)


def _so_far(candidate: Candidate, draft: Draft) -> Candidate:
    answer = replace(
        candidate.answer,
        seed=draft.request.seed,
        text=draft.text,
        token_ids=draft.token_ids,
        logprobs=draft.logprobs,
        finish_reason=draft.finish_reason,
    )
    return replace(candidate, answer=answer)
