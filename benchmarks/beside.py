"""Does chat stay usable while a run is on? The time between two pieces of a streamed answer, idle and beside a run.

    python -m benchmarks.loop --preference brevity --arms real --rounds 100
    python -m benchmarks.beside --data benchmarks/work/loop-brevity-64/real-0/data --json benchmarks/results/beside.json

Takes a copy of a data folder with votes, starts the real server on it, and reads one answer of the base after the other
over HTTP: first with nothing else going on, then beside a run, through its reward stage and some updates of PPO.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from benchmarks.client import Client, Traffic, persist
from benchmarks.loop import FINAL, NEVER
from benchmarks.prompts import held_out_prompts
from benchmarks.record import Row, document, write_json
from benchmarks.server import OPERATOR_TOKEN, Server

ANSWERS = 24
"""Streamed while idle."""
UPDATES = 3
"""After so many updates of PPO it is enough: each has rollouts, scores and gradients."""
TOKENS = 128
STAGES = ("reward", "ppo")


class Stage(threading.Thread):
    """Watches where a run stands."""

    def __init__(self, url: str, run: int) -> None:
        super().__init__(daemon=True)
        self._client = Client(url, Traffic(), token=OPERATOR_TOKEN)
        self._run = run
        self.now: str | None = None
        self.over = False
        """The checks have begun, the run has ended, or PPO has made enough updates."""

    def run(self) -> None:
        """Ask twice a second."""
        changes: set[float] = set()
        try:
            while not self.over:
                found = persist(lambda: self._client.call("GET", f"/api/runs/{self._run}"))
                self.now = found["stage"]
                if self.now == "ppo":
                    changes.add(found["progress"])
                self.over = found["status"] in FINAL or self.now == "gate" or len(changes) > UPDATES
                time.sleep(0.5)
        finally:
            self.over = True
            self._client.__exit__()


def gaps(client: Client, prompt: str) -> list[float]:
    """Seconds between the pieces of one streamed answer."""
    times = [
        time.perf_counter()
        for chunk in client.stream(prompt, max_tokens=TOKENS, temperature=0.8, model="hustings-v0")
        if chunk["choices"] and chunk["choices"][0]["delta"].get("content")
    ]
    return [after - before for before, after in itertools.pairwise(times)]


def measure(data: Path) -> dict[str, list[float]]:
    """Gaps by what went on: idle, or a stage of the run."""
    prompts = held_out_prompts()
    found: dict[str, list[float]] = {"idle": [], **{stage: [] for stage in STAGES}}
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "data"
        shutil.copytree(data, copy, ignore=shutil.ignore_patterns("*.sock"))
        environment = {"HUSTINGS_MIN_NEW_VOTES": str(NEVER), "HUSTINGS_MAX_INTERVAL": "none"}
        with (
            Server(copy, environment=environment) as server,
            Client(server.url, Traffic(), token=OPERATOR_TOKEN) as client,
        ):
            if any(run["status"] not in FINAL for run in persist(lambda: client.call("GET", "/api/runs"))):
                raise SystemExit(f"{data} holds a run that is not over; take another folder")
            gaps(client, prompts[0])
            for prompt in prompts[:ANSWERS]:
                found["idle"] += gaps(client, prompt)
            body = {"stages": list(STAGES), "force": True}
            run = int(persist(lambda: client.call("POST", "/api/runs", body))["id"])
            stage = Stage(server.url, run)
            stage.start()
            for prompt in itertools.cycle(prompts):
                before = stage.now
                seconds = gaps(client, prompt)
                if stage.over:
                    break
                if before in STAGES and before == stage.now:
                    found[before] += seconds
    return found


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a data folder with votes; it stays as it is")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too
    found = measure(options.data)
    if lacking := [stage for stage in STAGES if not found[stage]]:
        raise SystemExit(f"no answer fell into the stage {', '.join(lacking)}: has {options.data} enough votes?")
    idle = statistics.median(found["idle"])
    rows = []
    for what, seconds in found.items():
        middle, late = statistics.median(seconds), statistics.quantiles(seconds, n=20)[-1]
        beside = {} if what == "idle" else {"peer": "idle", "theirs": idle * 1e3, "ratio": idle / middle}
        where = what if what == "idle" else f"beside a run's {what} stage"
        rows.append(Row(f"between two pieces, {where}", "ms", middle * 1e3, runs=len(seconds), **beside))  # type: ignore[arg-type]
        rows.append(Row(f"the same, 95th percentile, {where}", "ms", late * 1e3, runs=len(seconds)))
    print(*rows, sep="\n")
    if options.json is not None:
        write_json(options.json, document("beside", {"tokens": TOKENS, "updates": UPDATES}, rows))


if __name__ == "__main__":
    main()
