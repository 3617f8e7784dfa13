"""How fast does PPO learn from an answer? Our update beside TRL 1.12's, in one run, taking turns.

    make peers-trl                              TRL 1.12, the last with PPO, in an environment of its own
    python -m benchmarks.ppo --json benchmarks/results/ppo.json
    python -m benchmarks.ppo --curves --json benchmarks/results/ppo-curves.json
    python -m benchmarks.ppo --quick

Both take the same weights, prompts of the same length, answers of the same length (without an EOS), epochs,
minibatches, threads and precision. TRL trains a LoRA of rank 16 on all layers of the policy; its value and reward
models are whole models, as it ships; also with a LoRA on its value model. Ours carries LoRA of the same rank on the
upper third, the value model's as deep as the policy's; also as runs are set by default (value LoRA on two layers), and
with LoRA on all layers. Rewards are of random models: they cost what others do. Those who are compared take turns; what
they found at one length, or one point of a curve, is a line of the file beside the result and is not measured again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cells import Cells
from benchmarks.record import ROOT, Row, document, machine, sources, write_json
from benchmarks.reference import CACHE
from benchmarks.serving import Contender
from serve.policy.base import ModelFolder, resolve_model
from training.config import PPOConfig

TRL = "trl"
THEIR_PYTHON = ROOT / ".peers" / "trl-ppo" / "bin" / "python"
PHASES = ("generate", "score", "update")
OURS: dict[str, dict[str, Any]] = {
    "value as deep as the policy": {"policy_layers": None, "value_layers": None},
    "value on two layers": {"policy_layers": None, "value_layers": 2},
    "LoRA on all layers": {"policy_layers": 1000, "value_layers": None},
}
THEIRS: dict[str, dict[str, Any]] = {
    "as shipped": {"value_lora": False},
    "LoRA on its value model": {"value_lora": True},
}
DEFAULT = "value on two layers"
OUR_WORKER = (sys.executable, "-m", "benchmarks.ppo_worker")
CURVE_ANSWERS, CURVE_EPISODES = (32, 64, 128, 256), (16, 32, 64)
LARGER = {
    "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32, "num_attention_heads": 15,
    "num_key_value_heads": 5, "head_dim": 64,
}  # fmt: skip
"""SmolLM2-360M's."""
LENGTHS = ((32, 32), (64, 128))
"""Tokens of prompt and answer."""
EPISODES, EPOCHS, MINIBATCHES = 8, 4, 2


@dataclass(frozen=True)
class Measured:
    """Some updates of one contender."""

    seconds: dict[str, list[float]]
    """By phase."""
    peak: float
    """Bytes."""

    @property
    def whole(self) -> list[float]:
        """Seconds of each update."""
        return [sum(parts) for parts in zip(*self.seconds.values(), strict=True)]


def settings_of(
    model: ModelFolder,
    prompt: int,
    answer: int,
    episodes: int,
    threads: int,
    dtype: str,
    epochs: int = EPOCHS,
    minibatches: int = MINIBATCHES,
) -> dict[str, Any]:
    """What all contenders are told."""
    return {
        "model": str(model.path), "hash": model.hash, "cache": str(model.cache), "dtype": dtype, "threads": threads,
        "tokens": answer, "episodes": episodes, "epochs": epochs, "minibatches": minibatches, "temperature": 0.8,
        "pad_token": "<|endoftext|>",
        "prompts": [[1000 + 37 * row + place for place in range(prompt)] for row in range(episodes)],
    }  # fmt: skip


def commands() -> dict[str, tuple[list[str], dict[str, Any]]]:
    """All of ours, and TRL's where it is installed: what to start, and what it is told beside the rest."""
    worker = ROOT / "benchmarks" / "peers" / "trl_ppo_speed.py"
    found = {name: ([*OUR_WORKER], own) for name, own in OURS.items()}
    if THEIR_PYTHON.exists():
        found |= {f"{TRL} {name}": ([str(THEIR_PYTHON), str(worker)], own) for name, own in THEIRS.items()}
    else:
        print("TRL is not installed and left out; `make peers-trl` installs it", flush=True)
    return found


@contextmanager
def contenders(
    shared: Mapping[str, Any], chosen: Mapping[str, tuple[list[str], dict[str, Any]]]
) -> Iterator[dict[str, Contender]]:
    """Processes that wait for a line to make an update."""
    found: dict[str, Contender] = {}
    with tempfile.TemporaryDirectory() as name:
        try:
            for number, (who, (command, own)) in enumerate(chosen.items()):
                settings = Path(name, str(number), "settings.json")
                settings.parent.mkdir()
                settings.write_text(json.dumps({**shared, **own}))
                found[who] = Contender([*command, str(settings)], Path(name, f"{number}.log"))
            yield found
        finally:
            for contender in found.values():
                contender.close()


def measure(found: Mapping[str, Contender], runs: int) -> dict[str, Measured]:
    """`runs` updates of each, in turns, after one that warms up."""
    measured = {who: Measured({phase: [] for phase in PHASES}, 0.0) for who in found}
    for turn in range(runs + 1):
        for who, contender in found.items():
            answer = contender.ask({})
            if turn > 0:
                for phase in PHASES:
                    measured[who].seconds[phase].append(answer[phase])
            measured[who] = Measured(measured[who].seconds, answer["peak"])
    return measured


def kept(
    cells: Cells,
    case: Mapping[str, Any],
    settings: Mapping[str, Any],
    chosen: Mapping[str, tuple[list[str], dict[str, Any]]],
    runs: int,
) -> dict[str, Measured]:
    """What the contenders needed, measured now or before."""

    def make() -> dict[str, Any]:
        with contenders(settings, chosen) as found:
            return {who: vars(measured) for who, measured in measure(found, runs).items()}

    asked = {name: settings[name] for name in ("dtype", "threads", "tokens", "episodes", "epochs", "minibatches")}
    found = cells.found({**case, **asked, "runs": runs, "who": list(chosen), "machine": machine()}, make)
    return {who: Measured(**measured) for who, measured in found.items()}


def rows_of(measured: Mapping[str, Measured], label: str) -> list[Row]:
    """Every one of ours beside every one of theirs, and the phases."""
    rows = []
    speeds = {who: EPISODES / statistics.median(found.whole) for who, found in measured.items()}
    for ours in OURS:
        for theirs in THEIRS:
            peer = f"{TRL} {theirs}"
            if peer not in measured:
                continue
            what = theirs if ours == next(iter(OURS)) else f"{theirs}; ours {ours}"
            speed, memory = (speeds[ours], speeds[peer]), (measured[ours].peak / 1e9, measured[peer].peak / 1e9)
            whole = measured[ours].whole
            rows += [
                Row(f"episodes/s {what}, {label}", "episodes/s", speed[0], TRL, speed[1], speed[0] / speed[1],
                    len(whole), EPISODES / max(whole), EPISODES / min(whole)),
                Row(f"peak memory {what}, {label}", "GB", memory[0], TRL, memory[1], memory[1] / memory[0], len(whole)),
            ]  # fmt: skip
    for who, found in measured.items():
        name = who if who.startswith(TRL) else f"ours, {who}"
        rows += [
            Row(f"{phase}: {name}, {label}", "s", statistics.median(seconds), runs=len(seconds))
            for phase, seconds in found.seconds.items()
        ]
    return rows


def contenders_of(measured: Mapping[str, Measured], prompt: int, answer: int) -> list[dict[str, Any]]:
    """One line for each contender: medians, and the range of episodes a second."""
    return [
        {
            "who": who, "prompt": prompt, "answer": answer, "runs": len(found.whole),
            "speed": EPISODES / statistics.median(found.whole),
            "low": EPISODES / max(found.whole), "high": EPISODES / min(found.whole), "peak": found.peak / 1e9,
            **{phase: statistics.median(seconds) for phase, seconds in found.seconds.items()},
        }
        for who, found in measured.items()
    ]  # fmt: skip


def curves(cells: Cells, model: ModelFolder, runs: int, threads: int, dtype: str) -> list[Row]:
    """How our cost grows with answers, batches and the model; passes and value model as runs have them by default."""
    rows, usual = [], PPOConfig()
    chosen = {DEFAULT: ([*OUR_WORKER], OURS[DEFAULT])}
    with tempfile.TemporaryDirectory() as name:
        larger = resolve_model(str(write_larger(Path(name), model)), Path(name, "cache"))
        cases = (
            *((f"answers of {answer} tokens", model, answer, EPISODES) for answer in CURVE_ANSWERS),
            *((f"{episodes} episodes of 64 tokens", model, 64, episodes) for episodes in CURVE_EPISODES),
            ("a random model of SmolLM2-360M's shape, answers of 64 tokens", larger, 64, EPISODES),
        )
        for which in (model, larger):  # its weights are packed at the first start, which is no part of an update
            with contenders(settings_of(which, 32, 32, EPISODES, threads, dtype), chosen):
                pass
        for label, which, answer, episodes in cases:
            settings = settings_of(which, 32, answer, episodes, threads, dtype, usual.epochs, usual.minibatches)
            measured = kept(cells, {"case": label}, settings, chosen, runs)[DEFAULT]
            seconds = [whole / episodes for whole in measured.whole]
            rows.append(Row(f"seconds an episode, {label}", "s", statistics.median(seconds), runs=runs,
                            low=min(seconds), high=max(seconds)))  # fmt: skip
            rows.append(Row(f"peak memory, {label}", "GB", measured.peak / 1e9, runs=runs))
    return rows


def cost_of(rows: Sequence[Row]) -> dict[str, list[tuple[int, float]]]:
    """Of `curves`' rows, what an episode costs by the tokens of its answer."""
    found = {row.what: row.ours for row in rows}
    return {
        f"{what} ({unit})": [(answer, found[f"{what}, answers of {answer} tokens"]) for answer in CURVE_ANSWERS]
        for what, unit in (("seconds an episode", "s"), ("peak memory", "GB"))
    }


def write_larger(folder: Path, model: ModelFolder) -> Path:
    """A model of SmolLM2-360M's shape with random weights, and the default model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    target = folder / "larger"
    config = LlamaConfig.from_pretrained(model.path)
    for name, value in LARGER.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(target)  # type: ignore[arg-type]
    AutoTokenizer.from_pretrained(model.path).save_pretrained(target)
    return target


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ppo", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--curves", action="store_true", help="how our cost grows, without TRL")
    parser.add_argument("--quick", action="store_true", help="prompts and answers of 32 tokens, 2 runs")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args()
    runs = 2 if options.quick else options.runs
    model = resolve_model("default", CACHE)
    rows: list[Row] = []
    lines: list[dict[str, Any]] = []
    if options.json and not options.curves and not THEIR_PYTHON.exists():
        raise SystemExit(f"{THEIR_PYTHON} is missing: `make peers-trl` installs it")
    name = "ppo-curves" if options.curves else "ppo"
    if options.json is None:  # nothing to go on with
        (ROOT / "benchmarks" / "work" / f"{name}.cells.jsonl").unlink(missing_ok=True)
    cells = Cells(name, options.json, sources("ppo.py", "ppo_worker.py", "peers/trl_ppo_speed.py"))
    if options.curves:
        rows = curves(cells, model, runs, options.threads, options.dtype)
    for prompt, answer in () if options.curves else LENGTHS[:1] if options.quick else LENGTHS:
        shared = settings_of(model, prompt, answer, EPISODES, options.threads, options.dtype)
        measured = kept(cells, {"prompt": prompt}, shared, commands(), runs)
        rows += rows_of(measured, f"{prompt}+{answer} tokens")
        lines += contenders_of(measured, prompt, answer)
    print(*rows, sep="\n")
    if options.json is not None:
        settings = {"threads": options.threads, "dtype": options.dtype, "runs": runs, "rank": 16}
        if options.curves:
            usual = PPOConfig()
            settings |= {"episodes": CURVE_EPISODES, "epochs": usual.epochs, "minibatches": usual.minibatches}
        else:
            settings |= {"episodes": EPISODES, "epochs": EPOCHS, "minibatches": MINIBATCHES}
        details: dict[str, Any] = {"curves": {"cost": cost_of(rows)}} if options.curves else {"contenders": lines}
        write_json(options.json, document(name, settings, rows, made=cells.made, **details))


if __name__ == "__main__":
    main()
