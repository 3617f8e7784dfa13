"""Does anybody notice a swap? 50 streams, and a new version takes over every 200 ms.

    python -m benchmarks.swaps --json benchmarks/results/swaps.json
    python -m benchmarks.swaps --quick

Each of the versions is loaded from its file as the one before serves, under a number never used before; their weights
are those of a few planted adapters that differ visibly. A stream that ends begins again with whatever then serves.
Afterwards transformers reads every answer as each of the planted adapters would have written it. An answer is mixed if
from some token to its end another adapter explains the recorded log-probabilities and its own does not.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from app import spare_the_collector
from benchmarks.prompts import voted_prompts
from benchmarks.record import Row, document, write_json
from benchmarks.reference import CACHE, Reference, make_adapter
from serve.engine import CandidateRequest, Finished, Token
from serve.engine.local import LocalEngine
from serve.policy.base import load_backbone, resolve_model
from serve.records import Message, Sampling

STREAMS = 50
SWAPS = 100
EVERY = 0.2
"""Seconds between two swaps."""
BATCH_ROWS = (STREAMS, 16)
"""All streams at once, and as the server decodes by default: then the others wait in line."""
JUDGED = 300
"""Answers that transformers reads again."""
PLANTED = 3
"""Adapters; version v has the weights of adapter (v - 1) mod 3."""
SAMPLING = Sampling(max_tokens=64, temperature=0.8)
NOISE = 0.05
"""Nats a token by which the engine may lie beside transformers (keys and values are half floats)."""


@dataclass
class Stream:
    """One answer, while and after it was written."""

    version: int
    prompt: list[int]
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)
    reason: str = ""

    @property
    def gaps(self) -> list[float]:
        """Seconds between a token and the next."""
        return [after - before for before, after in zip(self.times, self.times[1:], strict=False)]


@dataclass
class Storm:
    """What happened."""

    streams: list[Stream]
    flips: list[float]
    """Seconds from the wish to swap to its end, the file's loading included."""


def errors(recorded: Sequence[float], explained: Sequence[float]) -> list[float]:
    """Mean |Δ| a token from each token to the end."""
    total, means = 0.0, []
    for count, (a, b) in enumerate(zip(reversed(recorded), reversed(explained), strict=True), 1):
        total += abs(a - b)
        means.append(total / count)
    return means[::-1]


def is_mixed(recorded: Sequence[float], own: Sequence[float], others: Sequence[Sequence[float]]) -> bool:
    """Whether another version explains some suffix, and its own does not."""
    mine = errors(recorded, own)
    return any(
        theirs < NOISE < here for other in others for theirs, here in zip(errors(recorded, other), mine, strict=True)
    )


async def storm(engine: LocalEngine, adapters: Sequence[Path], prompts: Sequence[list[int]], swaps: int) -> Storm:
    """Run the streams for as long as the swaps take; without swaps just as long."""
    done: list[Stream] = []
    flips: list[float] = []
    over = asyncio.Event()

    async def chat(number: int) -> None:
        turn = 0
        while not over.is_set():
            stream = Stream(engine.serving, prompts[(number + STREAMS * turn) % len(prompts)])
            done.append(stream)
            request = CandidateRequest(stream.version, seed=1000 * number + turn)
            async for event in engine.submit(stream.prompt, [request], SAMPLING):
                if isinstance(event, Token):
                    stream.token_ids.append(event.token_id)
                    stream.logprobs.append(event.logprob)
                    stream.times.append(time.perf_counter())
                elif isinstance(event, Finished):
                    stream.reason = event.finish_reason
            turn += 1

    async def swap() -> None:
        begin = time.perf_counter() + 1.0
        for version in range(1, SWAPS + 1):
            await asyncio.sleep(max(0.0, begin + EVERY * version - time.perf_counter()))
            if version <= swaps:
                start = time.perf_counter()
                await asyncio.to_thread(engine.load, version, adapters[(version - 1) % len(adapters)])
                engine.serve(version)
                flips.append(time.perf_counter() - start)
        over.set()

    await asyncio.gather(swap(), *(chat(number) for number in range(STREAMS)))
    return Storm(done, flips)


def judge(streams: Sequence[Stream], adapters: Sequence[Path]) -> tuple[int, float, float]:
    """Mixed answers, the largest |Δ| of a token under its own version, and the median one under another planted one."""
    reference = Reference(dict(enumerate(adapters, 1)))
    mixed, worst, visible = 0, 0.0, []
    for stream in streams:
        own = 0 if stream.version == 0 else (stream.version - 1) % len(adapters) + 1
        explained = {
            version: reference.logprobs(version, stream.prompt, stream.token_ids, SAMPLING.temperature).tolist()
            for version in range(len(adapters) + 1)
        }
        mine = explained.pop(own)
        mixed += is_mixed(stream.logprobs, mine, list(explained.values()))
        worst = max(worst, *(abs(a - b) for a, b in zip(stream.logprobs, mine, strict=True)))
        visible += [errors(stream.logprobs, other)[0] for other in explained.values()]
    return mixed, worst, statistics.median(visible)


def gap_rows(rows: int, calm: Storm, busy: Storm, reads: Sequence[float]) -> list[Row]:
    """Of an engine that decodes so many rows: how long a stream stood still.

    `reads`: seconds that loading each planted adapter took beforehand, in peace.
    """
    what = f"50 streams, {rows} rows, a swap every 200 ms:"
    gaps, quiet = ([1e3 * gap for stream in storm.streams for gap in stream.gaps] for storm in (busy, calm))
    step, calm_step = statistics.median(gaps), statistics.median(quiet)
    beyond = [1e3 * max(0.0, flip - read) for flip, read in zip(busy.flips, itertools.cycle(reads))]
    count = len(busy.flips)
    return [
        Row(f"{what} a step", "ms", round(step, 1), "no swaps", round(calm_step, 1), runs=count),
        Row(f"{what} longest gap", "ms", round(max(gaps), 1), "no swaps", round(max(quiet), 1), runs=count),
        Row(f"{what} longest gap", "steps", round(max(gaps) / step, 2), "no swaps",
            round(max(quiet) / calm_step, 2), runs=count),
        Row(f"{what} flip beyond loading its file", "ms", round(statistics.median(beyond), 1), runs=count,
            low=round(min(beyond), 1), high=round(max(beyond), 1)),
    ]  # fmt: skip


def answer_rows(streams: Sequence[Stream], judged: int, adapters: Sequence[Path]) -> list[Row]:
    """Of all answers how many failed, of `judged` how many are mixed."""
    failed = sum(stream.reason not in ("stop", "length") for stream in streams)
    mixed, worst, visible = judge(random.Random(0).sample(streams, min(judged, len(streams))), adapters)
    return [
        Row("swaps: answers that failed", f"of {len(streams)}", failed),
        Row("swaps: answers that are mixed", f"of {min(judged, len(streams))}", mixed),
        Row("swaps: largest logprob error of a token", "nats", round(worst, 4), "another version's mean",
            round(visible, 3)),
    ]  # fmt: skip


def measure(*, judged: int = JUDGED) -> list[Row]:
    """Everything, in one run. So many answers are read again by transformers."""
    backbone = load_backbone(resolve_model("default", CACHE))
    rows: list[Row] = []
    streams: list[Stream] = []
    with tempfile.TemporaryDirectory() as folder:
        adapters = [make_adapter(Path(folder, str(seed)), seed=seed, size=0.1) for seed in range(PLANTED)]
        spare_the_collector()
        for batch_rows in BATCH_ROWS:
            engine = LocalEngine(backbone, batch_rows=batch_rows)
            try:
                prompts = [engine.encode([Message("user", prompt)]) for prompt in voted_prompts()]
                reads = []
                for number, adapter in enumerate(adapters):
                    start = time.perf_counter()
                    engine.load(10_000 + number, adapter)
                    reads.append(time.perf_counter() - start)
                calm = asyncio.run(storm(engine, adapters, prompts, swaps=0))
                busy = asyncio.run(storm(engine, adapters, prompts, swaps=SWAPS))
            finally:
                engine.close()
            rows += gap_rows(batch_rows, calm, busy, reads)
            streams += busy.streams
        return rows + answer_rows(streams, judged, adapters)


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.swaps", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="read only 30 of the answers again")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows = measure(judged=30 if options.quick else JUDGED)
    print(*rows, sep="\n")
    if options.json is not None:
        settings: Mapping[str, object] = {"streams": STREAMS, "swaps": SWAPS, "every_ms": EVERY * 1e3}
        write_json(options.json, document("swaps", settings, rows))


if __name__ == "__main__":
    main()
