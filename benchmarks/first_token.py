"""How long until the first token, how soon a promoted version answers, and how much memory the server holds.

    python -m benchmarks.first_token --json benchmarks/results/first_token.json

A person's view: the real server as a subprocess, one client, streamed comparisons over HTTP; every turn is recorded on
disk before its first token, as always. Versions are planted in the registry before the server starts.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from benchmarks.prompts import voted_prompts
from benchmarks.record import Row, document, write_json
from benchmarks.reference import CACHE, make_adapter
from benchmarks.server import OPERATOR_TOKEN, Server, resident_bytes
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy import chat
from serve.policy.adapters import Registry
from serve.policy.base import load_backbone, resolve_model
from serve.records import Message

RUNS = 5
PLACES = 16
TOKENS = 512
"""Of each of the answers that are open at once when memory is measured, its prompt included."""

Turn = dict[str, str]


def plant(data: Path, versions: int) -> None:
    """So many versions, staged, with weights that differ."""
    base = resolve_model("default", CACHE)
    folder = DataFolder(data / "feedback.db")
    folder.root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as made, Store.open(folder) as store:
        registry = Registry(folder, store, base_hash=base.hash, base_name=base.name)
        for seed in range(versions):
            source = make_adapter(Path(made, str(seed)), seed=seed)
            registry.publish(source, run=None, parent=0, status="staged", report={})


class Prompts:
    """Messages of so many tokens through the chat template; no two begin alike."""

    def __init__(self) -> None:
        self._tokenizer = load_backbone(resolve_model("default", CACHE)).tokenizer
        self._count = 0

    def count(self, messages: Sequence[Turn]) -> int:
        """Tokens that the model reads."""
        return len(chat.render(self._tokenizer, [Message(m["role"], m["content"]) for m in messages]))  # type: ignore[arg-type]

    def new(self, tokens: int) -> list[Turn]:
        """A system message (so that the template adds none) and one turn, of about so many tokens."""
        self._count += 1
        messages = [{"role": "system", "content": f"{self._count}"}, {"role": "user", "content": "Write a story."}]
        for word in itertools.cycle(" ".join(voted_prompts()).split()):
            if self.count(messages) >= tokens:
                return messages
            messages[1]["content"] = f"{word} {messages[1]['content']}"
        raise AssertionError


def first_token(http: httpx.Client, messages: Sequence[Turn], max_tokens: int = 8) -> tuple[float, str]:
    """Seconds until the first piece of text of a comparison, and one whole answer."""
    body = {"messages": list(messages), "max_tokens": max_tokens}
    headers = {"Accept": "text/event-stream"}
    texts: dict[str, str] = {}
    found = None
    start = time.perf_counter()
    with http.stream("POST", "/api/comparisons", json=body, headers=headers) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            if line.startswith("data: ") and "text" in (event := json.loads(line[6:])):
                found = found or time.perf_counter() - start
                texts[event["candidate_id"]] = texts.get(event["candidate_id"], "") + event["text"]
    assert found is not None
    return found, next(iter(texts.values()))


def promote(http: httpx.Client, version: int) -> float:
    """Seconds until the call has answered: from then on new requests take the version."""
    start = time.perf_counter()
    http.post(f"/api/versions/{version}/promote", json={}).raise_for_status()
    return time.perf_counter() - start


def measure(runs: int = RUNS) -> list[Row]:
    """All figures, medians; one round before them warms up."""
    prompts = Prompts()
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder)
        plant(data, runs + 3)
        with Server(data) as server, _client(server) as http:
            promote(http, 1)
            seen: list[tuple[float, float, float, float]] = []
            for run in range(-1, runs):
                seconds, _ = first_token(http, prompts.new(30))
                talk = prompts.new(1000)
                _, answer = first_token(http, talk)
                talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "Go on, please."}]
                second, answer = first_token(http, talk)
                talk += [{"role": "assistant", "content": answer}, {"role": "user", "content": "And then?"}]
                flip = promote(http, run + 3)
                third, _ = first_token(http, talk)
                if run >= 0:
                    seen.append((seconds, second, third, flip))
            loading = load_seconds(data, runs + 2)
            memory = fill(server, prompts)
    short, later, swapped, flips = zip(*seen, strict=True)
    return [
        _row("first token, 30-token prompt", "ms", short),
        _row("first token, next turn after 1,000 tokens", "ms", later),
        _row("first token, next turn after 1,000 tokens and a swap", "ms", swapped),
        _row("promotion beyond loading its file", "ms", [max(0.0, flip - loading) for flip in flips]),
        Row(f"resident memory, {PLACES} places at {TOKENS} tokens", "MB", round(memory / 1e6)),
    ]


def load_seconds(data: Path, version: int) -> float:
    """Reading, checking and laying out a version's file, the median of some."""
    from serve.engine.decoders import open_decoder
    from serve.engine.lora_weights import read_adapter

    bank = open_decoder(load_backbone(resolve_model("default", CACHE)), places=3, max_rank=64).bank
    folder = DataFolder(data / "feedback.db").adapter(version)
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        bank.prepare(read_adapter(folder, bank.shapes, max_rank=64, dtype=bank.dtype))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def fill(server: Server, prompts: Prompts) -> int:
    """Resident bytes of the server, the most seen while all places hold so many tokens."""
    talks = [prompts.new(TOKENS // 2) for _ in range(PLACES // 2)]

    def talk(messages: list[Turn]) -> None:
        with _client(server) as http:
            first_token(http, messages, max_tokens=TOKENS - prompts.count(messages))

    with ThreadPoolExecutor(len(talks)) as pool:
        waiting = [pool.submit(talk, messages) for messages in talks]
        most = 0
        while not all(one.done() for one in waiting):
            most = max(most, resident_bytes(server.pid))
            time.sleep(0.1)
        for one in waiting:
            one.result()
    return most


def _client(server: Server) -> httpx.Client:
    headers = {"Authorization": f"Bearer {OPERATOR_TOKEN}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=120, trust_env=False)


def _row(what: str, unit: str, seconds: Sequence[float]) -> Row:
    low, middle, high = (round(f(seconds) * 1e3, 1) for f in (min, statistics.median, max))
    return Row(what, unit, middle, runs=len(seconds), low=low, high=high)


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.first_token", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    runs = 2 if options.quick else RUNS
    rows = measure(runs)
    print(*rows, sep="\n")
    if options.json is not None:
        write_json(options.json, document("first_token", {"runs": runs}, rows))


if __name__ == "__main__":
    main()
