"""How fast are answers written? The engine beside its peers, in one run, taking turns.

    make peers                                  llama.cpp in an environment of its own
    python -m benchmarks.serving --json benchmarks/results/serving.json

Every contender writes the same number of tokens after the same number of prompt tokens, from the prompt's first token
to the last answer's last. Ours and transformers answer with a LoRA of rank 16 on the upper third of the layers and
sample; llama.cpp has neither to do.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.record import ROOT, Row, document, write_json

LLAMA = ROOT / ".peers" / "llama" / "bin" / "python"
WORK = {
    "a pair for one chatter": 2,
    "8 chatters, 2 candidates each": 16,
    "rollouts, batch 32": 32,
}
"""Rows decoded together, by what they are for."""
REACH = {
    ("a pair for one chatter", "llama.cpp"): 1.3,
    ("a pair for one chatter", "transformers"): 3.0,
    ("8 chatters, 2 candidates each", "llama.cpp"): 1.3,
    ("8 chatters, 2 candidates each", "transformers"): 1.5,
    ("rollouts, batch 32", "transformers"): 2.0,
    ("a pair for one chatter", "ceiling"): 0.3,
}


class Contender:
    """A subprocess that measures when it is told to."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._answer()

    def seconds(self, rows: int, prompt: int, tokens: int) -> float:
        """One measurement."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"rows": rows, "prompt": prompt, "tokens": tokens}) + "\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def close(self) -> None:
        """End the subprocess."""
        self._process.kill()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{' '.join(map(str, self._process.args))} ended; run it by hand to see why")  # type: ignore[arg-type]
        answer: dict[str, Any] = json.loads(line)
        return answer


def make_adapter(folder: Path) -> None:
    """A LoRA of rank 16 on all linears of the upper third, whose B is not zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from benchmarks.serving_workers import CACHE
    from serve.policy.base import resolve_model

    model: Any = AutoModelForCausalLM.from_pretrained(resolve_model("default", CACHE).path)
    layers = model.config.num_hidden_layers
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    upper = list(range(layers * 2 // 3, layers))
    model = get_peft_model(
        model, LoraConfig(r=16, lora_alpha=32, target_modules=targets, layers_to_transform=upper, task_type="CAUSAL_LM")
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.01)
    model.save_pretrained(str(folder))


def contenders(adapter: Path, threads: int) -> dict[str, Contender]:
    """All that are installed, ours first."""
    workers = [sys.executable, "-m", "benchmarks.serving_workers"]
    found = {name: Contender([*workers, name, str(adapter)]) for name in ("hustings", "transformers", "ceiling")}
    if LLAMA.exists():
        from serve.policy.base import default_gguf

        command = [str(LLAMA), str(ROOT / "benchmarks" / "peers" / "llama_cpp.py"), str(default_gguf()), str(threads)]
        found["llama.cpp"] = Contender(command)
    else:
        print("llama.cpp is not installed and left out; `make peers` installs it", flush=True)
    return found


def measure(found: dict[str, Contender], prompt: int, tokens: int, runs: int) -> dict[tuple[str, str], list[float]]:
    """Tokens a second by (work, contender), `runs` of each, in turns; one more before them warms up."""
    speeds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for run in range(-1, runs):
        for what, rows in WORK.items():
            for name, contender in found.items():
                speed = rows * tokens / contender.seconds(rows, prompt, tokens)
                if run >= 0:
                    speeds[what, name].append(speed)
        print(f"round {run + 1} of {runs}", flush=True)
    return speeds


def rows_of(speeds: dict[tuple[str, str], list[float]]) -> list[Row]:
    """Ours against each peer, medians."""
    rows = []
    for (what, peer), theirs in speeds.items():
        if peer == "hustings" or (peer == "ceiling" and (what, peer) not in REACH):
            continue
        ours = speeds[what, "hustings"]
        middle, other = statistics.median(ours), statistics.median(theirs)
        name = "the memory's ceiling at 4 bits" if peer == "ceiling" else peer
        rows.append(
            Row(what, "tokens/s", round(middle, 1), name, round(other, 1), round(middle / other, 2), len(ours),
                round(min(ours), 1), round(max(ours), 1))
        )  # fmt: skip
        reach = REACH.get((what, peer))
        verdict = "" if reach is None else f" (reach {reach}: {'met' if middle / other >= reach else 'MISSED'})"
        print(f"{what}: {middle:.0f} against {name} {other:.0f} tokens/s, {middle / other:.2f}×{verdict}", flush=True)
    return rows


def main() -> None:
    """Measure, print, and write the JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--tokens", type=int, default=96, help="tokens an answer")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    import torch

    with tempfile.TemporaryDirectory() as folder:
        make_adapter(Path(folder))
        found = contenders(Path(folder), torch.get_num_threads())
        try:
            speeds = measure(found, options.prompt, options.tokens, options.runs)
        finally:
            for contender in found.values():
                contender.close()
    rows = rows_of(speeds)
    settings = {
        "prompt": options.prompt, "tokens": options.tokens, "threads": torch.get_num_threads(), "rank": 16,
    }  # fmt: skip
    if options.json is not None:
        write_json(options.json, document("serving", settings, rows))


if __name__ == "__main__":
    main()
