"""Stand-ins for what is slow: an engine that says what it is told to, and training that only remembers being asked."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from serve.engine import CandidateRequest, Event, Finished, Output, Token
from serve.errors import NotFound, NothingToLearn, PromptTooLong, Unavailable
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.adapters import CONFIG, WEIGHTS, Registry
from serve.records import STAGES, Due, FinishReason, Message, Run, Sampling, SettingInfo, Stage
from serve.secrets import Secrets
from serve.service import Service
from serve.settings import Settings
from serve.web.server import create_app

Script = Callable[[int, int, str], Sequence[str]]
"""(version, seed, the last message) → the pieces of text to sample, one a token."""


def some_words(version: int, seed: int, prompt: str) -> list[str]:
    """Different answers for different seeds."""
    return [f"v{version} ", f"says {seed % 1000} ", "to: ", prompt]


class FakeEngine:
    """Implements `serve.engine.Engine` with scripted tokens; all candidates of a prompt share each decode step.

    `delay` is the time of a step. With `room` set, so many generations are decoded and the others wait in line, first
    come, first served. With `hold` set, nothing is decoded beyond step `hold` until `release()`, but
    cancelling still works.
    """

    model_name = "fake"
    context_length = 2048

    def __init__(self, script: Script = some_words, *, delay: float = 0.0, hold: int | None = None) -> None:
        self.script = script
        self.delay = delay
        self.hold = hold
        self.serving = 0
        self.resident = {0}
        self.full = False
        self.room: int | None = None
        self.fail_at: int | None = None
        """A decode step at which every candidate breaks off."""
        self.generations: list[FakeGeneration] = []
        self._released = threading.Event()
        self._prompts: dict[tuple[int, ...], str] = {}

    @property
    def waiting(self) -> int:
        """Requests that are not answered to their end, in line or not."""
        return sum(not generation.done.is_set() for generation in self.generations)

    def place_of(self, generation: FakeGeneration) -> int:
        """How many must end before it is decoded."""
        going = [g for g in self.generations if not g.done.is_set()]
        if self.room is None or generation not in going:
            return 0
        return max(0, going.index(generation) + 1 - self.room)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """One token a byte."""
        ids = list("\n".join(f"{m.role}: {m.content}" for m in messages).encode())
        self._prompts[tuple(ids)] = messages[-1].content
        return ids

    def load(self, version: int, adapter: Path | None) -> None:
        """Any version will do."""
        self.resident.add(version)

    def serve(self, version: int) -> None:
        """Flip."""
        if version not in self.resident:
            raise NotFound(f"version {version} is not resident")
        self.serving = version

    def submit(
        self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling
    ) -> FakeGeneration:
        """Decode in a thread of its own."""
        if self.full:
            raise Unavailable("the queue is full; try again in a moment")
        if len(prompt) + sampling.max_tokens > self.context_length:
            raise PromptTooLong("too long")
        for candidate in candidates:
            if candidate.version not in self.resident:
                raise NotFound(f"version {candidate.version} is not resident")
        text = self._prompts[tuple(prompt)]
        scripts = [list(self.script(c.version, c.seed, text)) for c in candidates]
        return FakeGeneration(self, candidates, scripts, sampling)

    def release(self) -> None:
        """Decode beyond `hold`."""
        self._released.set()

    def close(self) -> None:
        """End all."""
        for generation in self.generations:
            generation.cancel()
        self.release()

    def may_decode(self, step: int) -> bool:
        """Whether this step is not held back."""
        return self.hold is None or step <= self.hold or self._released.is_set()


class FakeTraining:
    """Implements `serve.service.Training` on a real store: runs are rows and stay queued."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.asked: list[dict[str, Any]] = []
        """The arguments of each `trigger`."""

    def trigger(
        self, *, stages: Sequence[Stage] | None, settings: Mapping[str, Any] | None, force: bool, who: str
    ) -> Run:
        """A queued run."""
        self.asked.append({"stages": stages, "settings": settings, "force": force, "who": who})
        if self.store.standing_votes() == 0 and not force:
            raise NothingToLearn("no votes yet: 50 are missing")
        return self.store.create_run("operator", stages or STAGES, dict(settings or {}), who=who)

    def cancel(self, run_id: int, *, who: str) -> Run:
        """It never began."""
        return self.store.update_run(run_id, who=who, status="cancelled")

    def settings(self) -> list[SettingInfo]:
        """Two."""
        return [
            SettingInfo("ppo.updates", 24, 1, 100_000, "Rounds of rollouts and optimisation."),
            SettingInfo("ppo.whiten", True, None, None, "Whether advantages are brought to one scale."),
        ]

    def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[float] | None:
        """The length."""
        return [float(len(answer)) for _, answer in items]

    def due(self) -> Due:
        """By votes alone."""
        new = self.store.votes_since_last_run()
        return Due(new, 50, None, datetime.now(UTC) if new >= 50 else None)


class FakeGeneration:
    """Implements `serve.engine.Generation`."""

    def __init__(
        self,
        engine: FakeEngine,
        candidates: Sequence[CandidateRequest],
        scripts: Sequence[Sequence[str]],
        sampling: Sampling,
    ) -> None:
        self.candidates = tuple(candidates)
        self.sampling = sampling
        self.cancelled: set[int] = set()
        self.done = threading.Event()
        self._engine = engine
        self._scripts = scripts
        self._events: list[Event] = []
        engine.generations.append(self)
        threading.Thread(target=self._decode, daemon=True).start()

    def __iter__(self) -> Iterator[Event]:
        self.done.wait()
        yield from self._events

    async def __aiter__(self) -> AsyncIterator[Event]:
        seen = 0
        while True:
            done = self.done.is_set()
            while seen < len(self._events):
                seen += 1
                yield self._events[seen - 1]
            if done:
                return
            await asyncio.sleep(0.001)

    @property
    def place(self) -> int:
        """In line, 1 being next; 0 once it is decoded."""
        return self._engine.place_of(self)

    def cancel(self, index: int | None = None) -> None:
        """Stop one or all."""
        self.cancelled |= set(range(len(self.candidates))) if index is None else {index}

    def result(self, timeout: float | None = None) -> tuple[Output, ...]:
        """Wait for all."""
        assert self.done.wait(timeout)
        return tuple(map(self._output, range(len(self.candidates))))

    def _output(self, index: int) -> Output:
        tokens = [e for e in self._events if isinstance(e, Token) and e.index == index]
        reason = next(e.finish_reason for e in self._events if isinstance(e, Finished) and e.index == index)
        return Output(
            self.candidates[index].version,
            tuple(t.token_id for t in tokens),
            tuple(t.logprob for t in tokens),
            "".join(t.text for t in tokens),
            reason,
        )

    def _decode(self) -> None:
        running = set(range(len(self.candidates)))
        for step in itertools.count(1):
            if not running:
                break
            while not ((self.place == 0 and self._engine.may_decode(step)) or self.cancelled & running):
                time.sleep(0.001)
            time.sleep(self._engine.delay)
            for index in sorted(running):
                reason = self._advance(index, step)
                if reason is not None:
                    running.discard(index)
                    self._events.append(Finished(index, reason, "scripted failure" if reason == "error" else None))
        self.done.set()

    def _advance(self, index: int, step: int) -> FinishReason | None:
        script = self._scripts[index]
        if index in self.cancelled:
            return "cancelled"
        if self._engine.fail_at == step:
            return "error"
        if step > self.sampling.max_tokens:
            return "length"
        if step > len(script):
            self._events.append(Token(index, 0, -0.1, "", step))  # EOS
            return "stop"
        self._events.append(Token(index, 100 + step, -0.5, script[step - 1], step))
        return None


def publish(registry: Registry, folder: Path, number: int = 1) -> None:
    """Publish that many versions whose adapters hold nothing that a fake engine would miss."""
    folder.mkdir(exist_ok=True)
    (folder / CONFIG).write_text("{}")
    (folder / WEIGHTS).write_bytes(b"weights")
    for _ in range(number):
        registry.publish(folder, run=None, parent=0, status="staged", report={})


class Web:
    """The whole application without pages, on a real store, a fake engine and fake training."""

    def __init__(
        self, folder: Path, engine: FakeEngine | None = None, *, token: str = "letmein", **settings: Any
    ) -> None:
        self.folder = DataFolder(folder / "feedback.db")
        self.store = Store.open(self.folder)
        self.registry = Registry(self.folder, self.store, base_hash=None)
        self.engine = engine or FakeEngine()
        self.settings = Settings(db=self.folder.db, **{"compare_share": 0.0, **settings})
        self.training = FakeTraining(self.store)
        self.secrets, _ = Secrets.load_or_create(self.folder.secrets, "letmein")
        self.service = Service(store=self.store, engine=None, registry=self.registry, settings=self.settings)
        self.service.attach(self.engine)
        self.app = create_app(self.service, self.training, self.settings, self.secrets, pages=False)

    def close(self) -> None:
        """End what runs."""
        self.engine.close()
        self.store.close()


@contextmanager
def listening(app: ASGIApp, port: int = 0) -> Iterator[str]:
    """Serve on a port of the loopback (0: a free one), from a thread; yields the address."""
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="on", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.005)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
