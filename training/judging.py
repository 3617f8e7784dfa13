"""What a run's reward model says of answers: scores, and those of each fold model.

    python -m training.judging runs/0007 < ITEMS.json > SCORES.json

ITEMS is a list of {"messages": [{"role", "content"}, …], "answer": text}. A process of its own: the server never loads
a reward model. `Judging` starts it and waits.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.errors import Unavailable
from serve.records import Message
from training.run_folder import RunFolder

LOADING, READING = 120.0, 6.0
"""Seconds that loading the model and reading an answer may take at most: chats go first."""
LONGEST = 1024
"""Tokens of prompt and answer; longer prompts lose their front."""
TOGETHER = 16
"""Answers whose hidden states are kept at once; a hundred of a thousand tokens would take half a gigabyte."""
STOPPING = "the server is stopping"


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


class Judging:
    """Asks reward models, one after another, each in a process that ends with its answer or with `close`."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._closed = False

    def ask(
        self, folder: Path, items: Sequence[tuple[Sequence[Message], str]], *, patience: float = -1
    ) -> list[Judged]:
        """What the reward model that a run left says. Blocks, for at most `patience` seconds while others are read; -1
        waits for ever. Raises Unavailable when it cannot answer.
        """
        asked = [
            {"messages": [{"role": m.role, "content": m.content} for m in messages], "answer": answer}
            for messages, answer in items
        ]
        if not self._one.acquire(timeout=patience):
            raise Unavailable("the reward model is reading other answers; ask again in a few minutes")
        try:
            return self._ask(folder, asked)
        finally:
            self._one.release()

    def _ask(self, folder: Path, asked: list[dict[str, Any]]) -> list[Judged]:
        if self._closed:
            raise Unavailable(STOPPING)
        pipe = subprocess.PIPE
        try:
            process = self._process = subprocess.Popen(
                [sys.executable, "-m", "training.judging", str(folder)],
                stdin=pipe, stdout=pipe, stderr=pipe, text=True, cwd=Path(__file__).resolve().parents[1],
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"the reward model of run {folder.name} cannot be started: {error}") from error
        try:
            if self._closed:  # meanwhile, by somebody who saw no process yet
                raise Unavailable(STOPPING)
            out, said = process.communicate(json.dumps(asked), LOADING + READING * len(asked))
            if process.returncode:
                raise ValueError(said.strip().rpartition("\n")[2] or f"exit code {process.returncode}")
            return [Judged(row["score"], tuple(row["folds"])) for row in json.loads(out)]
        except (subprocess.TimeoutExpired, ValueError) as error:
            raise Unavailable(f"the reward model of run {folder.name} did not answer: {error}") from error
        finally:
            process.kill()
            process.communicate()
            self._process = None

    def close(self) -> None:
        """End the process that is at work; nothing is asked any more. Idempotent."""
        self._closed = True
        process = self._process
        if process is not None:
            process.kill()


def doubt_of(first: Judged, second: Judged) -> float:
    """How far the fold models differ about two answers: the standard deviation of their score differences."""
    return statistics.pstdev(a - b for a, b in zip(first.folds, second.folds, strict=True))


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
    found: list[dict[str, Any]] = []
    for begin in range(0, len(asked), TOGETHER):
        part = slice(begin, begin + TOGETHER)
        sequences = Sequences.of(prompts[part], answers[part])
        states = frozen(sequences, config.micro_batch_tokens)
        scores = fitted.scorer.all_values(states, sequences, config.micro_batch_tokens)[1].tolist()
        folds = fitted.judges.each(states, sequences, config.micro_batch_tokens).tolist()
        found += [{"score": score, "folds": each} for score, each in zip(scores, folds, strict=True)]
    return found


if __name__ == "__main__":
    os.nice(19)
    sys.stdout.write(json.dumps(main(RunFolder(Path(sys.argv[1])), json.load(sys.stdin))))
