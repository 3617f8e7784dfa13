"""What a run's reward model says of answers: scores, and those of each fold model.

    python -m training.judging runs/0007 < ITEMS.json > SCORES.json

ITEMS is a list of {"messages": [{"role", "content"}, …], "answer": text}. A process of its own: the server never loads
a reward model. `judge` starts it and waits.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import Unavailable
from serve.records import Message
from training.run_folder import RunFolder

TIMEOUT = 180.0
"""Seconds: the model must be loaded, and chats go first."""
LONGEST = 1024
"""Tokens of prompt and answer; longer prompts lose their front."""


@dataclass(frozen=True)
class Judged:
    """What was said of one answer."""

    score: float
    """Less the reward model's caution: what PPO climbs."""
    folds: tuple[float, ...]
    """The fold models', which learned from other prompts."""


def has_judges(folder: RunFolder) -> bool:
    """Whether a run has left a whole reward model."""
    return (folder.path / "reward" / "report.json").is_file()


def judge(folder: Path, items: Sequence[tuple[Sequence[Message], str]], timeout: float = TIMEOUT) -> list[Judged]:
    """Ask the reward model that a run left. Raises Unavailable when it cannot answer."""
    asked = [
        {"messages": [{"role": m.role, "content": m.content} for m in messages], "answer": answer}
        for messages, answer in items
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-m", "training.judging", str(folder)],
            input=json.dumps(asked),
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=Path(__file__).resolve().parents[1],
            check=True,
        )
        found = json.loads(done.stdout)
    except (subprocess.SubprocessError, ValueError) as error:
        raise Unavailable(f"the reward model of {folder.name} did not answer ({error}); try again later") from error
    return [Judged(row["score"], tuple(row["folds"])) for row in found]


def main(folder: RunFolder, asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Load the run's reward model and fold models, and read every answer once."""
    import torch

    from serve.policy.base import ModelFolder, load_backbone
    from serve.policy.chat import answer_ids, render
    from training.config import TrainingConfig
    from training.reward import RewardFit
    from training.roles import FrozenLayers, lora_shapes
    from training.sequences import Sequences

    torch.set_num_threads(1)
    config, model = TrainingConfig.parse(folder.config()["settings"]), folder.config()["model"]
    source = ModelFolder(Path(model["path"]), model["name"], model["hash"], Path(model["cache"]))
    backbone = load_backbone(source, dtype=model["dtype"])
    policy_shape, shape = lora_shapes(backbone, config)
    fitted = RewardFit.load(folder.path / "reward", backbone, shape)
    if fitted is None:
        raise SystemExit(f"{folder.path} has no reward model of this release")
    frozen = FrozenLayers(backbone, policy_shape.first_layer, shape.first_layer)
    longest = min(LONGEST, backbone.context_length)
    prompts, answers = [], []
    for item in asked:
        answer = answer_ids(backbone.tokenizer, item["answer"])[: longest // 2]
        prompt = render(backbone.tokenizer, [Message(m["role"], m["content"]) for m in item["messages"]])
        prompts.append(prompt[-(longest - len(answer)) :])
        answers.append(answer)
    sequences = Sequences.of(prompts, answers)
    states = frozen(sequences, config.micro_batch_tokens)
    scores = fitted.scorer.all_values(states, sequences, config.micro_batch_tokens)[1].tolist()
    folds = fitted.judges.each(states, sequences, config.micro_batch_tokens).tolist()
    return [{"score": score, "folds": each} for score, each in zip(scores, folds, strict=True)]


if __name__ == "__main__":
    os.nice(19)
    sys.stdout.write(json.dumps(main(RunFolder(Path(sys.argv[1])), json.load(sys.stdin))))
