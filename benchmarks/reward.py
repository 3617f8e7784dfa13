"""Does the reward model know what real people prefer? Beside TRL 1.16's RewardTrainer, fold by fold, taking turns.

    make peers-trl                              TRL 1.16, in an environment of its own
    python -m benchmarks.reward --data FILE --json benchmarks/results/reward.json
    python -m benchmarks.reward --data FILE --speed --json benchmarks/results/reward-speed.json

FILE holds comparisons in the HH format, one JSON object a line, perhaps compressed (.gz); it is imported as an operator
would. Five folds by prompt: both learn from four and are asked about the fifth, with the same tokens, threads and
precision. TRL trains its whole model for one epoch, at the best of three learning rates; which one that is, is found on
the first fold's own held-out pairs, in its favour. Ours is fitted as a run does. Each fit is a line of the file
beside the result, and is not made again, on any machine; delete the line to have it made anew. Seconds and memory are
compared on the first 200 pairs, all folds in one sitting, with nothing else at work.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.loop_state import Lines
from benchmarks.record import ROOT, Row, commit, document, machine, sources, write_json
from benchmarks.reference import CACHE
from serve.feedback.exchange import import_lines
from serve.feedback.statistics import wilson
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.policy.base import load_backbone, resolve_model
from training.preferences import Ranked, folds_by_prompt, read_snapshot

FOLDS = 5
LEARNING_RATES = (1e-5, 3e-5, 1e-4)
LONGEST = 512
"""Tokens of prompt and answer: a longer prompt loses its front, a longer answer its end."""
LONGEST_ANSWER = 256
RESAMPLED = 10_000
PAIRS_FOR_SPEED = 200
THEIRS = ROOT / ".peers" / "trl-reward" / "bin" / "python"

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, the chosen answer and the rejected one."""
Fit = Mapping[str, Any]


def imported(data: Path) -> list[Ranked]:
    """The file's comparisons on their way through the record, as a run reads them."""
    content = data.read_bytes()
    lines = gzip.decompress(content) if data.suffix == ".gz" else content
    with tempfile.TemporaryDirectory() as name:
        with Store.open(DataFolder(Path(name, "feedback.db"))) as store:
            import_lines(store, lines, "hh")
            run = store.create_run("operator", ["reward"], {})
            store.snapshot(run.id, Path(name, "snapshot.db"))
        backbone = load_backbone(resolve_model("default", CACHE))
        return list(read_snapshot(Path(name, "snapshot.db"), backbone.tokenizer).rankings)


def pair_of(ranked: Ranked) -> Pair:
    """Token ids within `LONGEST`."""
    chosen, rejected = (list(answer[:LONGEST_ANSWER]) for answer in ranked.answers)
    room = LONGEST - max(len(chosen), len(rejected))
    return list(ranked.prompt_ids[-room:]), chosen, rejected


class Folds:
    """The five fits of each contender, kept in a file; of one sitting alone, or whenever they were made."""

    def __init__(
        self, data: Path, kept: Path, *, threads: int, dtype: str, limit: int | None, one_sitting: bool
    ) -> None:
        votes = [r for r in imported(data) if len(r.answers) == 2 and r.groups == (0, 1)][:limit]
        self.fold = folds_by_prompt(votes, FOLDS, seed=0)
        self.pairs = [pair_of(r) for r in votes]
        model = resolve_model("default", CACHE)
        self._asked = hashlib.sha256(repr((self.pairs, model.hash, dtype, threads)).encode()).hexdigest()[:12]
        kept.parent.mkdir(parents=True, exist_ok=True)
        self._lines = Lines(kept)
        self._sitting = {"sitting": secrets.token_hex(4)} if one_sitting else {}
        self._made_by = {
            "ours": sources("reward.py", "reward_worker.py", packages=["training"]),
            "trl": sources("peers/trl_reward_fit.py", packages=[]),
        }
        self._shared = {
            "model": str(model.path), "hash": model.hash, "cache": str(model.cache), "threads": threads, "dtype": dtype,
        }  # fmt: skip

    def ours(self, fold: int) -> Fit:
        """Our fit without a fold."""
        return self._fit("ours", f"ours-{fold}", fold, [sys.executable, "-m", "benchmarks.reward_worker"], {})

    def theirs(self, fold: int, learning_rate: float) -> Fit:
        """TRL's."""
        command = [str(THEIRS), str(ROOT / "benchmarks" / "peers" / "trl_reward_fit.py")]
        return self._fit("trl", f"trl-{learning_rate:g}-{fold}", fold, command, {"learning_rate": learning_rate})

    def _fit(self, who: str, name: str, fold: int, command: list[str], own: Mapping[str, Any]) -> Fit:
        key = {"asked": self._asked, "name": name, "made_by": self._made_by[who], **self._sitting}
        fit = next((line for line in self._lines.rows if key.items() <= line.items()), None)
        if fit is None:
            if not Path(command[0]).exists():
                raise SystemExit(f"{name} is to be made, and {command[0]} is missing: `make peers-trl` installs it")
            sides = [[p for p, f in zip(self.pairs, self.fold, strict=True) if (f == fold) == held] for held in (0, 1)]
            settings = {**self._shared, **own, "train": sides[0], "held_out": sides[1]}
            with tempfile.TemporaryDirectory() as folder:
                asked, answered = Path(folder, "settings.json"), Path(folder, "out.json")
                asked.write_text(json.dumps(settings))
                subprocess.run([*command, str(asked), str(answered)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
                found = json.loads(answered.read_text())
            self._lines.add({**key, "commit": commit(), "machine": machine(), "trained_on": len(sides[0]), **found})
            fit = self._lines.rows[-1]
        print(f"{name}: {accuracy(fit['margins']):.1%} of {len(fit['margins'])} in {fit['seconds']:.0f} s", flush=True)
        return fit


def accuracy(margins: Sequence[float]) -> float:
    """Share of pairs told the right way round; equal scores are half right."""
    return statistics.fmean(map(told, margins))


def told(margin: float) -> float:
    """1 where a pair is told the right way round, 0 where it is not, ½ for equal scores."""
    return 0.5 if margin == 0 else float(margin > 0)


def paired_difference(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Our accuracy less theirs on the same pairs, and its 95% interval by resampling pairs."""
    each = [told(a) - told(b) for a, b in zip(ours, theirs, strict=True)]
    rng = random.Random(0)
    means = sorted(statistics.fmean(rng.choices(each, k=len(each))) for _ in range(RESAMPLED))
    return statistics.fmean(each), means[int(0.025 * RESAMPLED)], means[int(0.975 * RESAMPLED) - 1]


def accuracy_rows(ours: Sequence[Fit], theirs: Sequence[Fit]) -> list[Row]:
    """Accuracy out of fold, and how far it is ahead."""
    margins = [[m for fit in fits for m in fit["margins"]] for fits in (ours, theirs)]
    mine = wilson(sum(map(told, margins[0])), len(margins[0]))
    own = Row("accuracy out of fold", "share", mine.value, runs=len(ours), low=mine.low, high=mine.high)
    if not theirs:
        return [own]
    peer = accuracy(margins[1])
    difference, low, high = paired_difference(*margins)
    return [
        Row(own.what, own.unit, own.ours, "trl", peer, own.ours / peer, own.runs, own.low, own.high),
        Row("accuracy ahead of trl", "share", difference, runs=len(ours), low=low, high=high),
    ]


def speed_rows(ours: Sequence[Fit], theirs: Sequence[Fit]) -> list[Row]:
    """Pairs a second, from tokens to a fitted model, and memory."""
    paces = [[fit["trained_on"] / fit["seconds"] for fit in fits] for fits in (ours, theirs)]
    mine, peer = map(statistics.median, paces)
    memory, peers_memory = (max(fit["peak"] for fit in fits) / 1e9 for fits in (ours, theirs))
    ratios = [a / b for a, b in zip(*paces, strict=True)]
    return [
        Row("pairs/s", "pairs/s", mine, "trl", peer, None, len(ours), min(paces[0]), max(paces[0])),
        Row("pairs/s over trl's", "×", statistics.median(ratios), runs=len(ratios), low=min(ratios), high=max(ratios)),
        Row("peak memory", "GB", memory, "trl", peers_memory, peers_memory / memory, len(ours)),
    ]


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reward", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="comparisons in the HH format, .jsonl or .jsonl.gz")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--speed", action="store_true", help="seconds and memory, on the first 200 pairs")
    only.add_argument("--ours-alone", action="store_true", help="leave TRL out")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    name = "reward-speed" if options.speed else "reward"
    folds = Folds(
        options.data,
        (options.json or ROOT / "benchmarks" / "work" / f"{name}.json").with_suffix(".fits.jsonl"),
        threads=options.threads,
        dtype=options.dtype,
        limit=PAIRS_FOR_SPEED if options.speed else None,
        one_sitting=options.speed,
    )
    ours, theirs, best = [], [], LEARNING_RATES[0] if options.speed else None
    for fold in range(FOLDS):
        ours.append(folds.ours(fold))
        if not options.ours_alone:
            if best is None:
                tried = {rate: accuracy(folds.theirs(fold, rate)["margins"]) for rate in LEARNING_RATES}
                best = max(tried, key=tried.__getitem__)
            theirs.append(folds.theirs(fold, best))
    rows = (speed_rows if options.speed else accuracy_rows)(ours, theirs)
    print(*rows, sep="\n")
    if options.json is not None:
        settings = {
            "pairs": len(folds.pairs), "folds": FOLDS, "threads": options.threads, "dtype": options.dtype,
            "longest": LONGEST, "learning_rate": best, "epochs": 1,
        }  # fmt: skip
        made = [{"machine": fit["machine"], "commits": [fit["commit"]]} for fit in (*ours, *theirs)]
        write_json(options.json, document(name, settings, rows, made=made))


if __name__ == "__main__":
    main()
