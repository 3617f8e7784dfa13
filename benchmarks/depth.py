"""How deep must the policy's LoRA go? On the top third, the top half and all layers.

    python -m benchmarks.depth --json benchmarks/results/depth.json

One preference, 300 votes in one round, three chains each: `benchmarks/loop.py` with one setting changed. Finished
chains stand in a folder beside the result and are not played again. The reward model reads its middle states where the
policy's LoRA begins, so it changes along. The value model's LoRA lies on the top two layers.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from benchmarks import loop
from benchmarks.loop_result import Outcomes, difference, served
from benchmarks.record import ROOT, Row, document, write_json
from benchmarks.voters import PREFERENCES

DEPTHS = {
    "policy's LoRA on the top third": "adapted_layers=10",
    "policy's LoRA on the top half": "adapted_layers=15",
    "policy's LoRA on all layers": "adapted_layers=30",
}
"""What is set, by name; the default model has 30 layers."""
VOTES, CHAINS = 300, 3


def main() -> None:
    """Play what is not played yet, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.depth", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--preference", choices=sorted(PREFERENCES), default="advice")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    rows: list[Row] = []
    made: list[dict[str, Any]] = []
    usual: list[Outcomes] = []
    for name, setting in DEPTHS.items():
        work = ROOT / "benchmarks" / "work" / f"depth-{options.preference}-{setting}"
        kept = options.json.with_suffix("") if options.json else work
        chains = kept / f"{options.preference}-{setting}.json"
        result = loop.main(
            [
                "--preference", options.preference, "--arms", "real", "--rounds", str(VOTES), "--chains", str(CHAINS),
                "--work", str(work), "--set", setting, "--keep", "--json", str(chains),
            ]
        )  # fmt: skip
        (pool,) = result["pools"]
        made += result["chains"]
        judged = served(result["chains"], VOTES)
        usual = usual or judged
        rounds = [found for chain in result["chains"] for found in chain["rounds"]]
        each = ", ".join("as the base" if rate is None else f"{rate:.1%}" for rate in pool["each"])
        rows.append(Row(f"{name}: win rate over the base ({each})", "share", pool["win_rate"], runs=CHAINS,
                        low=pool["low"], high=pool["high"]))  # fmt: skip
        if judged is not usual:
            ahead, low, high = difference(judged, usual)
            rows.append(Row(f"{name}: win rate less the first row's", "share", ahead, runs=CHAINS, low=low, high=high))
        rows += [
            Row(f"{name}: accuracy of its reward models", "share",
                statistics.fmean(found["reward_accuracy"]["value"] for found in rounds), runs=CHAINS),
            Row(f"{name}: a run", "min", statistics.median(found["seconds"] for found in rounds) / 60, runs=CHAINS),
            Row(f"{name}: peak memory", "GB", max(c["peak_memory_bytes"]["sum"] for c in result["chains"]) / 1e9),
        ]  # fmt: skip
    print(*rows, sep="\n")
    if options.json is not None:
        settings = {"wants": PREFERENCES[options.preference].wants, "votes": VOTES, "chains": CHAINS}
        write_json(options.json, document("depth", settings, rows, made=made))


if __name__ == "__main__":
    main()
