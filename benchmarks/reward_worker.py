"""Our reward model fitted to some pairs and asked about others, for `benchmarks/reward.py`.

    python -m benchmarks.reward_worker SETTINGS.json OUT.json

The same files as benchmarks/peers/trl_reward_fit.py.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import peak_memory
from serve.policy.base import ModelFolder, load_backbone
from training.config import TrainingConfig
from training.preferences import Ranked
from training.reward import fit_reward
from training.roles import FrozenLayers, lora_shapes
from training.sequences import Sequences


def main(settings: dict[str, Any], out: Path) -> None:
    """Fit as a run does; writes the score margin of each held-out pair, the seconds of the fit and the peak memory."""
    torch.set_num_threads(settings["threads"])
    config = TrainingConfig()
    folder = Path(settings["model"])
    backbone = load_backbone(
        ModelFolder(folder, folder.name, settings["hash"], Path(settings["cache"])), dtype=settings["dtype"]
    )
    policy_shape, shape = lora_shapes(backbone, config)
    frozen = FrozenLayers(backbone, policy_shape.first_layer, shape.first_layer)
    numbers = {tuple(prompt): number for number, (prompt, _, _) in enumerate(settings["train"])}
    votes = [
        Ranked(
            prompt_id=numbers[tuple(prompt)],
            voter="people",
            prompt_ids=tuple(prompt),
            answers=(tuple(chosen), tuple(rejected)),
            groups=(0, 1),
            positions=(-1, -1),
            finish_reasons=("stop", "stop"),
            strength=None,
        )
        for prompt, chosen, rejected in settings["train"]
    ]
    start = time.perf_counter()
    fitted = fit_reward(
        votes,
        backbone=backbone,
        frozen=frozen,
        shape=shape,
        config=config.reward,
        micro_batch_tokens=config.micro_batch_tokens,
        seed=0,
        progress=lambda step, done, metrics: None,
    )
    seconds = time.perf_counter() - start
    peak = peak_memory()
    held_out = settings["held_out"]
    asked = Sequences.of([p for p, _, _ in held_out] * 2, [c for _, c, _ in held_out] + [r for _, _, r in held_out])
    states = frozen(asked, config.micro_batch_tokens)
    chosen_scores, rejected_scores = fitted.scorer.all_values(states, asked, config.micro_batch_tokens)[1].chunk(2)
    margins = (chosen_scores - rejected_scores).tolist()
    found = {"margins": [round(margin, 5) for margin in margins], "seconds": round(seconds, 2), "peak": peak}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
