"""Many open chats over few places: everybody is answered or told that the server is full, and memory stays flat.

    python -m benchmarks.crowd --minutes 2
    python -m benchmarks.crowd --minutes 30 --json benchmarks/results/crowd.json

200 people, each with a conversation of a few turns that then begins anew: they ask for two streamed answers, read,
vote, and ask again. Some leave in the middle of an answer. A request is hung when nothing came for a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from benchmarks.prompts import voted_prompts
from benchmarks.record import Row, document, write_json
from benchmarks.server import Server, resident_bytes

CHATS = 200
TURNS = 4
"""Of a conversation."""
MAX_TOKENS = 48
LEAVING = 0.05
"""Share of turns in which the reader leaves after the first words."""
HUNG = 60.0
"""Seconds of silence."""


@dataclass
class Crowd:
    """What 200 people saw."""

    answered: int = 0
    left: int = 0
    refused: int = 0
    """Told 503."""
    hung: int = 0
    broken: list[str] = field(default_factory=list)
    """Anything else."""
    memory: list[int] = field(default_factory=list)
    """Resident bytes of the server, once a second."""

    @property
    def growth(self) -> float:
        """Memory at the end over memory after half of the time, when caches are full; medians of a tenth."""
        tenth = max(1, len(self.memory) // 10)
        early = self.memory[len(self.memory) // 2 :][:tenth]
        return statistics.median(self.memory[-tenth:]) / statistics.median(early)


class Person:
    """One of them."""

    def __init__(self, number: int, http: httpx.AsyncClient, crowd: Crowd) -> None:
        self._random = random.Random(number)
        self._http = http
        self._crowd = crowd
        self._talk: list[dict[str, str]] = []

    async def chat(self, seconds: float) -> None:
        """Until the time is over."""
        end = time.monotonic() + seconds
        await asyncio.sleep(self._random.uniform(0, 2))
        while time.monotonic() < end:
            if len(self._talk) >= 2 * TURNS:
                self._talk = []
            try:
                await self._turn()
            except httpx.ReadTimeout:
                self._crowd.hung += 1
            except (httpx.HTTPError, ValueError) as error:
                self._crowd.broken.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(self._random.uniform(0, 2))

    async def _turn(self) -> None:
        messages = [*self._talk, {"role": "user", "content": self._random.choice(voted_prompts())}]
        body = {"messages": messages, "max_tokens": MAX_TOKENS}
        headers = {"Accept": "text/event-stream"}
        texts: dict[str, str] = {}
        leaving = self._random.random() < LEAVING
        async with self._http.stream("POST", "/api/comparisons", json=body, headers=headers) as response:
            if response.status_code == 503:
                self._crowd.refused += 1
                return
            response.raise_for_status()
            comparison, ends = "", 0
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                comparison = event.get("id", comparison)
                ends += "finish_reason" in event and "candidate_id" in event
                if "error" in event:
                    raise ValueError(event["error"])
                if "text" in event:
                    texts[event["candidate_id"]] = texts.get(event["candidate_id"], "") + event["text"]
                    if leaving:
                        self._crowd.left += 1
                        return
            if ends < 2:
                raise ValueError(f"the stream ended after {ends} of 2 answers")
        self._crowd.answered += 1
        best = self._random.choice(list(texts) or [""])
        if self._random.random() < 0.5 and texts.get(best):
            ranking = [[best], *([other] for other in texts if other != best)]
            if len(ranking) == 2:
                await self._http.post(f"/api/comparisons/{comparison}/vote", json={"ranking": ranking})
        self._talk = [*messages, {"role": "assistant", "content": texts.get(best) or "."}]


async def gather(url: str, pid: int, minutes: float, chats: int = CHATS) -> Crowd:
    """Let them chat with the server at `url`."""
    crowd = Crowd()
    seconds = 60 * minutes

    async def watch() -> None:
        for _ in range(int(seconds)):
            crowd.memory.append(resident_bytes(pid))
            await asyncio.sleep(1)

    timeout = httpx.Timeout(HUNG, connect=10, pool=None)
    clients = [httpx.AsyncClient(base_url=url, timeout=timeout, trust_env=False, verify=False) for _ in range(chats)]
    try:
        people = [Person(number, http, crowd) for number, http in enumerate(clients)]
        await asyncio.gather(watch(), *(person.chat(seconds) for person in people))
    finally:
        await asyncio.gather(*(http.aclose() for http in clients))
    return crowd


def rows_of(crowd: Crowd, minutes: float, chats: int) -> list[Row]:
    """The figures."""
    what = f"{chats} open chats, {minutes:g} min"
    return [
        Row(f"{what}, answered", "turns", crowd.answered + crowd.left),
        Row(f"{what}, told 503", "turns", crowd.refused),
        Row(f"{what}, hung or broken", "turns", crowd.hung + len(crowd.broken)),
        Row(f"{what}, memory at the end over memory after half of it", "ratio", round(crowd.growth, 3)),
    ]


def show(rows: Sequence[Row]) -> None:
    """Print them."""
    print(*rows, sep="\n", flush=True)


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.crowd", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=2.0)
    parser.add_argument("--chats", type=int, default=CHATS)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HUSTINGS_MIN_NEW_VOTES": "1000000", "HUSTINGS_MAX_INTERVAL": "none"}
        with Server(Path(folder), environment=environment) as server:
            crowd = asyncio.run(gather(server.url, server.pid, options.minutes, options.chats))
    for sentence in sorted(set(crowd.broken)):
        print(f"{crowd.broken.count(sentence)} × {sentence}")
    rows = rows_of(crowd, options.minutes, options.chats)
    show(rows)
    if options.json is not None:
        settings = {"minutes": options.minutes, "chats": options.chats, "max_tokens": MAX_TOKENS}
        by_minute = [size >> 20 for size in crowd.memory[::60]]
        write_json(options.json, document("crowd", settings, rows, memory_mib=by_minute))


if __name__ == "__main__":
    main()
