"""Are our losses the equations? TRL's tensors of one batch beside ours from the same tokens and weights, in float32.

    make peers-trl
    python -m benchmarks.parity --json benchmarks/results/parity.json

Where the two differ by convention, the convention is named, switched, and both figures are shown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks import parity_ppo, parity_reward
from benchmarks.findings import Findings
from benchmarks.record import ROOT, Row, document, write_json
from benchmarks.reference import CACHE, make_adapter
from serve.policy.base import Backbone, load_backbone, resolve_model


class Comparison(Protocol):
    """A module that compares."""

    PEER: str
    """Names the peer's environment and worker."""
    SETTINGS: dict[str, Any]

    def asked(self, backbone: Backbone) -> dict[str, Any]:
        """What the worker is given, besides settings and weights."""

    def compare(self, trl: Mapping[str, Any], backbone: Backbone, adapter: Path) -> Findings:
        """What the worker wrote beside ours."""


COMPARISONS: dict[str, Comparison] = {"PPO": parity_ppo, "reward model": parity_reward}


def run_peer(comparison: Comparison, backbone: Backbone, adapter: Path, folder: Path, threads: int) -> dict[str, Any]:
    """The peer's tensors."""
    python = ROOT / ".peers" / comparison.PEER / "bin" / "python"
    if not python.exists():
        raise SystemExit(f"{comparison.PEER} is not installed; `make peers-trl` installs it")
    worker = ROOT / "benchmarks" / "peers" / f"{comparison.PEER.replace('-', '_')}_worker.py"
    weights = {"model": str(backbone.folder.path), "adapter": str(adapter), "threads": threads}
    settings, out = folder / f"{comparison.PEER}.json", folder / f"{comparison.PEER}.pt"
    settings.write_text(json.dumps(comparison.SETTINGS | comparison.asked(backbone) | weights))
    subprocess.run([python, worker, settings, out], check=True, cwd=folder)
    found: dict[str, Any] = torch.load(out, weights_only=True)
    return found


def main() -> None:
    """Compare and print; exit 1 where something does not agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    backbone = load_backbone(resolve_model("default", CACHE), dtype="float32")
    rows: list[Row] = []
    hold = True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = make_adapter(folder / "lora", size=0.02)
        for title, comparison in COMPARISONS.items():
            theirs = run_peer(comparison, backbone, adapter, folder, options.threads)
            findings = comparison.compare(theirs, backbone, adapter)
            rows += findings.rows(title)
            hold = hold and findings.hold
    print(*rows, sep="\n")
    if options.json is not None:
        settings = {title: comparison.SETTINGS for title, comparison in COMPARISONS.items()}
        write_json(options.json, document("parity", settings | {"dtype": "float32", "threads": options.threads}, rows))
    sys.exit(0 if hold else 1)


if __name__ == "__main__":
    main()
