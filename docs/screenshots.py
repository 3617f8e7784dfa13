"""Makes the pictures of the pages: `python docs/screenshots.py` writes docs/images/{chat,vote,operator}.png.

The real server, with the real store and the real pages, on a fresh data folder. Only the engine is scripted, so that the
pictures say the same every time, and the history of runs and versions is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import asyncio
import math
import queue
import random
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence

from serve.engine import CandidateRequest, Event, Finished, Output, Token
from serve.records import Message, Sampling


class ScriptedGeneration:
    """Says what it was given, a word at a time."""

    def __init__(self, texts: Sequence[str], versions: Sequence[int], pace: float) -> None:
        self._versions = versions
        self._words = [[word + " " for word in text.split(" ")] for text in texts]
        self._cancelled: set[int] = set()
        self._events: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._pace = pace
        self._said: list[list[str]] = [[] for _ in texts]
        threading.Thread(target=self._speak, daemon=True).start()

    def _speak(self) -> None:
        open_ = set(range(len(self._words)))
        for step in range(max(map(len, self._words)) + 1):
            for index in sorted(open_):
                words = self._words[index]
                if index in self._cancelled or step == len(words):
                    open_.discard(index)
                    self._events.put(Finished(index, "cancelled" if index in self._cancelled else "stop"))
                else:
                    word = words[step].rstrip(" ") if step == len(words) - 1 else words[step]
                    self._said[index].append(word)
                    self._events.put(Token(index, step, -0.5, word, step))
            time.sleep(self._pace)
        self._events.put(None)

    def __iter__(self) -> Iterator[Event]:
        while (event := self._events.get()) is not None:
            yield event

    async def __aiter__(self) -> AsyncIterator[Event]:
        while (event := await asyncio.to_thread(self._events.get)) is not None:
            yield event

    def cancel(self, index: int | None = None) -> None:
        self._cancelled |= set(range(len(self._words))) if index is None else {index}

    def result(self, timeout: float | None = None) -> tuple[Output, ...]:
        for _ in self:
            pass
        return tuple(
            Output(v, tuple(range(len(s))), tuple(-0.5 for _ in s), "".join(s), "stop")
            for v, s in zip(self._versions, self._said, strict=True)
        )


class ScriptedEngine:
    """Answers each prompt with what the script has for its last turn: one text for the base, one for later versions."""

    model_name = "SmolLM2-135M-Instruct"
    context_length = 2048
    waiting = 0

    def __init__(self, script: dict[str, Sequence[str]], pace: float = 0.01) -> None:
        self.serving = 0
        self._script = script
        self._pace = pace
        self._lock = threading.Lock()

    def encode(self, messages: Sequence[Message]) -> list[int]:
        with self._lock:
            self._last = messages[-1].content
        return [1] * sum(len(message.content.split()) for message in messages)

    def load(self, version: int, adapter: Path | None) -> None: ...

    def serve(self, version: int) -> None:
        self.serving = version

    def submit(
        self, prompt: Sequence[int], candidates: Sequence[CandidateRequest], sampling: Sampling
    ) -> ScriptedGeneration:
        texts = list(self._script.get(self._last, ("Good question. Here is a first thought.", "Certainly! Let me think.")))
        while len(texts) < len(candidates):
            texts.append(texts[-1] + " Again.")
        return ScriptedGeneration(texts[: len(candidates)], [c.version for c in candidates], self._pace)

    def close(self) -> None: ...
