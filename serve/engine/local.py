"""The local engine: one decode thread owns the model and answers everybody in one running batch.

Each turn of the loop: 1 adapters that wait for a place, 2 cancelled candidates, 3 a bounded piece of the waiting
prompts, 4 one token for every running row. Requests join and leave between turns. A prompt is prefilled once for each
distinct version among its candidates, and the K rows start from copies of those keys and values.

The model itself is a `Decoder`: a lean one for the Llama family, transformers' own forward for any other causal LM.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from serve.engine import CandidateRequest, Token
from serve.engine.decoder import Decoder, Prompt, Running
from serve.engine.decoders import open_decoder
from serve.engine.generation import Candidate, LocalGeneration
from serve.engine.lora_bank import Prepared
from serve.engine.lora_weights import check_tensors, read_adapter
from serve.errors import AdapterError, InvalidInput, NotFound, PromptTooLong, Unavailable
from serve.policy import chat
from serve.records import BASE_VERSION, FinishReason, Message, Sampling

if TYPE_CHECKING:
    from serve.policy.base import Backbone

PREFILL_TOKENS = 512
"""Prompt tokens a turn of the loop, about, while nobody else is answered, or nobody watches."""
INSTALL_TIMEOUT = 30.0
"""Seconds that a new adapter waits for a place when all have requests in flight."""
LOADING_REST = 0.1
"""Seconds at most that prompts rest beside answers while an adapter is read: that takes enough of their processor."""
CLOSE_TIMEOUT = 10.0

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Install:
    """An adapter that waits to be written between two steps."""

    version: int
    adapter: Prepared
    replace: bool
    done: Future[None]


class _Prefill:
    """A prompt on its way through the model, once for each distinct version."""

    def __init__(self, generation: LocalGeneration, decoder: Decoder) -> None:
        self.generation = generation
        self.versions = sorted({c.version for c in generation.live()})
        self.cache: Prompt = decoder.prompt(self.versions, generation.prompt)


class LocalEngine:
    """The engine in this process; see `serve.engine.Engine` for the protocol."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        batch_rows: int = 16,
        queue_limit: int = 64,
        max_lora_rank: int = 64,
        places: int | None = None,
        cache_tokens: int = 0,
        turn_tokens: int | None = None,
        decoder: str | None = None,
    ) -> None:
        """`batch_rows` decode at once, `queue_limit` requests wait, `places` versions (base included) are resident.

        Of earlier prompts and answers, keys and values of `cache_tokens` are kept for prompts that begin with them.
        While somebody is answered, a turn of the loop computes `turn_tokens`, rows and pieces of prompts together: by
        default five thirds of a full batch, so that no stream stands still for as long as two full steps.
        `decoder` is one of `decoders.KINDS`, by default the fastest that fits. Raises ModelError.
        """
        places = batch_rows + 2 if places is None else places
        if places < 3:
            raise InvalidInput("the LoRA bank needs at least 3 places: the base, what serves, and what comes next")
        self._backbone = backbone
        self._tokenizer = backbone.tokenizer.backend_tokenizer
        self._batch_rows = batch_rows
        self._queue_limit = queue_limit
        self._turn_tokens = max(batch_rows * 5 // 3, batch_rows + 8) if turn_tokens is None else turn_tokens
        self._decoder = open_decoder(
            backbone, places=places, max_rank=max_lora_rank, cache_tokens=cache_tokens, kind=decoder
        )
        self._bank = self._decoder.bank

        # Shared with the callers, under the lock (as is the bank's bookkeeping):
        self._work = threading.Condition()
        self._queue: deque[LocalGeneration] = deque()
        self._installs: list[_Install] = []
        self._serving = BASE_VERSION
        self._closing = False
        self._prompts_rest_until = 0.0  # by time.monotonic: an adapter is being read

        # The decode thread's own:
        self._prefills: deque[_Prefill] = deque()
        self._rows: list[Candidate] = []
        self._slots: Running = self._decoder.slots()
        self._step = 0
        self._unsettled = True
        self._thread = threading.Thread(target=self._run, name="hustings-decode", daemon=True)
        self._thread.start()

    @property
    def model_name(self) -> str:
        """What `/health` shows."""
        return self._backbone.folder.name

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together."""
        return self._decoder.context_length

    @property
    def waiting(self) -> int:
        """Requests that have no place in the batch yet."""
        return len(self._queue)

    @property
    def serving(self) -> int:
        """The version new requests should take."""
        return self._serving

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """Messages through the chat template, ready for an answer to follow."""
        return chat.render(self._backbone.tokenizer, messages)

    def load(self, version: int, adapter: Path | None) -> None:
        """Make a version resident (`None` only for version 0). A no-op if it is.

        Raises AdapterError naming what does not fit, Unavailable when no place became free in time; whatever was
        resident stays.
        """
        if (version == BASE_VERSION) != (adapter is None):
            raise AdapterError(f"version {version} cannot be loaded from {adapter}: every version but 0 needs a folder")
        with self._work:
            if self._bank.is_resident(version):
                return
        assert adapter is not None
        self._prompts_rest_until = time.monotonic() + LOADING_REST
        weights = read_adapter(adapter, self._bank.shapes, max_rank=self._bank.max_rank, dtype=self._bank.dtype)
        prepared = self._bank.prepare(weights)
        self._prompts_rest_until = 0.0
        self._install(version, prepared, replace=False)

    def load_tensors(self, version: int, tensors: Mapping[str, Tensor], *, scaling: float) -> None:
        """Make a version resident from PEFT's state-dict names, or replace its weights once no request uses them.

        For rollouts of a policy in training. `scaling` is the factor of B·A. Raises as `load`.
        """
        if version == BASE_VERSION:
            raise AdapterError("version 0 is the base and takes no adapter")
        weights = check_tensors(
            tensors, lambda _: scaling, self._bank.shapes, max_rank=self._bank.max_rank, dtype=self._bank.dtype
        )
        self._install(version, self._bank.prepare(weights), replace=True)

    def serve(self, version: int) -> None:
        """Flip which version new requests take; it must be resident. Answers in flight keep theirs."""
        with self._work:
            self._require_resident(version)
            self._serving = version

    def submit(
        self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling
    ) -> LocalGeneration:
        """Queue one prompt for K candidates that share its prefill and decode as one batch.

        Raises InvalidInput, PromptTooLong, Unavailable (queue full, engine closed) or NotFound (version not resident).
        """
        self._check(prompt, candidates, sampling)
        generation = LocalGeneration(prompt, candidates, sampling, self._tokenizer, self._wake, self._place)
        with self._work:
            if self._closing:
                raise Unavailable("the engine is stopping; try again when the server is back")
            if len(self._queue) >= self._queue_limit:
                raise Unavailable(f"{len(self._queue)} requests are waiting already; try again in a moment")
            for candidate in candidates:
                self._require_resident(candidate.version)
            for candidate in candidates:  # from here on its version cannot be evicted
                self._bank.acquire(candidate.version)
            self._queue.append(generation)
            self._work.notify()
        return generation

    def close(self) -> None:
        """Cancel everything and end the decode thread. Idempotent."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join(CLOSE_TIMEOUT)

    def _check(self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling) -> None:
        if not prompt:
            raise InvalidInput("the prompt is empty")
        if not 1 <= len(candidates) <= self._batch_rows:
            raise InvalidInput(f"ask for 1 to {self._batch_rows} candidates, not {len(candidates)}")
        if sampling.max_tokens < 1:
            raise InvalidInput(f"max_tokens must be at least 1, not {sampling.max_tokens}")
        if "" in sampling.stop:
            raise InvalidInput("a stop string is empty")
        if len(prompt) + sampling.max_tokens > self.context_length:
            raise PromptTooLong(
                f"the prompt has {len(prompt)} tokens and the answer may have {sampling.max_tokens}, but the model's "
                f"context holds {self.context_length}; shorten the conversation or lower max_tokens"
            )

    def _require_resident(self, version: int) -> None:
        if not self._bank.is_resident(version):
            raise NotFound(f"version {version} is not loaded; load it first")

    def _install(self, version: int, adapter: Prepared, *, replace: bool) -> None:
        install = _Install(version, adapter, replace, Future())
        with self._work:
            if self._closing:
                raise Unavailable("the engine is stopping; try again when the server is back")
            self._installs.append(install)
            self._work.notify()
        try:
            install.done.result(INSTALL_TIMEOUT)
        except TimeoutError:
            with self._work:
                if install in self._installs:
                    self._installs.remove(install)
                    raise Unavailable(
                        f"no place for version {version} became free within {INSTALL_TIMEOUT:.0f} s; try again"
                    ) from None
            install.done.result()  # it was just being written

    def _wake(self) -> None:
        with self._work:
            self._work.notify()

    def _place(self, generation: LocalGeneration) -> int:
        with self._work:
            return next((place for place, waiting in enumerate(self._queue, 1) if waiting is generation), 0)

    # From here on: the decode thread.

    def _run(self) -> None:
        with torch.inference_mode():
            while self._wait_for_work():
                try:
                    self._install_adapters()
                    self._drop_cancelled()
                    self._admit()
                    self._prefill()
                    self._decode()
                except Exception as error:
                    logger.exception("a decode step failed; its answers end here")
                    self._fail(self._rows, error)
                    self._rows = []
                    self._slots = self._decoder.slots()
        self._end_all()

    def _wait_for_work(self) -> bool:
        """Sleep until there is something to do; False when the engine closes."""
        while True:
            with self._work:
                while not (self._closing or self._has_work() or self._unsettled):
                    self._work.wait()
                if self._closing or self._has_work():
                    return not self._closing
            # Idle: here and not in __init__, so that the server starts fast.
            try:
                self._unsettled = self._decoder.settle()
            except Exception:
                logger.exception("the weights could not be laid out for speed; answers go on without")
                self._unsettled = False

    def _has_work(self) -> bool:
        return bool(self._queue or self._prefills or self._rows or self._installs)

    def _install_adapters(self) -> None:
        with self._work:
            for install in list(self._installs):
                try:
                    resident = not install.replace and self._bank.is_resident(install.version)
                    if not resident and not self._bank.install(install.version, install.adapter, keep=self._serving):
                        continue
                except Exception as error:  # noqa: BLE001  # handed to the one who waits for it
                    install.done.set_exception(error)
                else:
                    if install.replace:
                        self._decoder.forget(install.version)
                    install.done.set_result(None)
                self._installs.remove(install)

    def _drop_cancelled(self) -> None:
        with self._work:
            generations = [*self._queue, *(p.generation for p in self._prefills)]
        for candidate in [c for g in generations for c in g.live()] + self._rows:
            if candidate.cancelled:
                self._finish(candidate, "cancelled")
        with self._work:
            self._queue = deque(g for g in self._queue if g.live())
        self._prefills = deque(p for p in self._prefills if p.generation.live())
        self._remove_finished()

    def _admit(self) -> None:
        """First come, first served; a request joins when all of its candidates fit, so that they decode together."""
        free = self._batch_rows - len(self._rows) - sum(len(p.generation.live()) for p in self._prefills)
        while (generation := self._next_in_line(free)) is not None:
            joining = generation.live()
            free -= len(joining)
            try:  # outside the lock: blocks of earlier turns may have to be copied
                self._prefills.append(_Prefill(generation, self._decoder))
            except Exception as error:
                logger.exception("a prompt failed; the others go on")
                self._fail(joining, error)

    def _next_in_line(self, free: int) -> LocalGeneration | None:
        with self._work:
            fits = self._queue and len(self._queue[0].live()) <= free
            return self._queue.popleft() if fits else None

    def _prefill(self) -> None:
        """A bounded piece of the waiting prompts; a smaller one as soon as somebody is being answered.

        Each prompt's piece reads all weights once more, so none is begun for less than half of the bound.
        """
        spent = 0
        while self._prefills and 2 * spent < (limit := self._prefill_limit()):
            prefill = self._prefills[0]
            prompt, versions, start = prefill.generation.prompt, prefill.versions, prefill.cache.length
            chunk = prompt[start:][: max(1, (limit - spent) // len(versions))]
            try:
                self._bank.route(versions)
                logits = self._decoder.forward(torch.tensor([chunk] * len(versions)), prefill.cache)
                spent += (prefill.cache.length - start) * len(versions)
                if prefill.cache.length == len(prompt):
                    self._prefills.popleft()
                    self._join(prefill, logits)
            except Exception as error:
                logger.exception("a prompt failed; the others go on")
                self._fail(prefill.generation.live(), error)
                self._prefills = deque(p for p in self._prefills if p is not prefill)
                self._remove_finished()
                if not self._rows:
                    self._slots = self._decoder.slots()

    def _prefill_limit(self) -> int:
        if not self._rows:
            return PREFILL_TOKENS
        if time.monotonic() < self._prompts_rest_until:
            return 0
        joining = len(self._prefills[0].generation.live())
        return max(1, self._turn_tokens - len(self._rows) - joining)

    def _join(self, prefill: _Prefill, logits: Tensor) -> None:
        """The prompt is through: its candidates get their first token and, if that is not all, rows in the batch."""
        joining = prefill.generation.live()
        sources = [prefill.versions.index(c.version) for c in joining]
        for row, version in enumerate(prefill.versions):
            self._decoder.keep(prefill.cache, row, version, prefill.generation.prompt)
        self._emit(joining, logits[sources])
        for candidate, source in zip(joining, sources, strict=True):
            if candidate.finish_reason is None:
                self._slots.adopt(prefill.cache, source)
                self._rows.append(candidate)

    def _decode(self) -> None:
        if not self._rows:
            return
        self._bank.route([c.version for c in self._rows])
        logits = self._decoder.forward(torch.tensor([[c.token_ids[-1]] for c in self._rows]), self._slots)
        self._emit(self._rows, logits)
        self._remove_finished()

    def _emit(self, rows: Sequence[Candidate], logits: Tensor) -> None:
        """Draw each row's next token, hand it out, and finish the rows that end with it."""
        self._step += 1
        sampling = [c.generation.sampling for c in rows]
        drawn = self._decoder.draw(logits, sampling, [c.random.random() for c in rows])
        for candidate, token_id, logprob in zip(rows, *drawn, strict=True):
            if logprob != logprob:  # NaN
                self._finish(candidate, "error", f"version {candidate.version} computed numbers that are not finite")
                continue
            candidate.token_ids.append(token_id)
            candidate.logprobs.append(logprob)
            text, reason = self._read(candidate, token_id)
            candidate.generation.push(Token(candidate.index, token_id, logprob, text, self._step))
            if reason is not None:
                self._finish(candidate, reason)

    def _read(self, candidate: Candidate, token_id: int) -> tuple[str, FinishReason | None]:
        """What the newest token made readable, and whether the answer ends with it."""
        transcript = candidate.transcript
        if token_id in self._backbone.eos_token_ids:
            return transcript.close(candidate.token_ids[:-1]), "stop"
        text = transcript.add(token_id)
        if transcript.stopped:
            return text, "stop"
        if len(candidate.token_ids) == candidate.generation.sampling.max_tokens:
            return text + transcript.close(candidate.token_ids), "length"
        return text, None

    def _finish(self, candidate: Candidate, reason: FinishReason, error: str | None = None) -> None:
        with self._work:
            self._bank.release(candidate.version)
        candidate.finish(reason, error)

    def _fail(self, candidates: Sequence[Candidate], error: Exception) -> None:
        for candidate in candidates:
            if candidate.finish_reason is None:
                self._finish(candidate, "error", f"generating failed ({error}); try again")

    def _remove_finished(self) -> None:
        for row in reversed(range(len(self._rows))):
            candidate = self._rows[row]
            if candidate.finish_reason is not None:
                if candidate.finish_reason != "error":
                    self._decoder.keep(
                        self._slots, row, candidate.version, candidate.generation.prompt + candidate.token_ids
                    )
                self._slots.remove(row)
                self._rows[row] = self._rows[-1]
                self._rows.pop()

    def _end_all(self) -> None:
        with self._work:
            installs, self._installs = self._installs, []
            queued = list(self._queue)
            self._queue.clear()
        for install in installs:
            install.done.set_exception(Unavailable("the engine is stopping; try again when the server is back"))
        for candidate in self._live(queued):
            self._finish(candidate, "cancelled")

    def _live(self, queued: Sequence[LocalGeneration]) -> Iterator[Candidate]:
        for generation in (*queued, *(p.generation for p in self._prefills)):
            yield from generation.live()
        yield from self._rows
