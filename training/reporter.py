"""metrics.jsonl: how a run tells the server where it stands. rollouts.jsonl: what the policy wrote on the way."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

WEIGHTS = {"sft": 0.1, "reward": 0.15, "ppo": 0.65, "gate": 0.1}
"""Rough share of a run's time in each stage."""


class Reporter:
    """Appends one line for each step, with the progress over the whole run and the time left."""

    def __init__(self, folder: Path, stages: Sequence[str]) -> None:
        self._path = folder / "metrics.jsonl"
        self._answers = folder / "rollouts.jsonl"
        for path in (self._path, self._answers):
            drop_torn_line(path)
        self._stages = [*stages, "gate"]
        self._total = sum(WEIGHTS[s] for s in self._stages)
        self._began: tuple[float, float] | None = None

    def __call__(self, stage: str, step: int, done: float, metrics: Mapping[str, float]) -> None:
        """`done` is the share of this stage that is done, 0 to 1."""
        before = sum(WEIGHTS[s] for s in self._stages[: self._stages.index(stage)])
        progress = (before + WEIGHTS[stage] * done) / self._total
        now = time.monotonic()
        if self._began is None:  # a resumed run measures its speed from where it resumed
            self._began = (now, progress)
        elapsed, advanced = now - self._began[0], progress - self._began[1]
        line = {
            "time": datetime.now(UTC).isoformat(),
            "stage": stage,
            "step": step,
            "progress": round(progress, 4),
            "eta_seconds": round(elapsed * (1 - progress) / advanced, 1) if advanced > 0.01 else None,
            "metrics": dict(metrics),
        }
        with self._path.open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def answers(self, step: int, prompts: Sequence[str], texts: Sequence[str], scores: Sequence[float]) -> None:
        """Append one line for each answer of a step, with its score. After an interruption a step may come again."""
        with self._answers.open("a", encoding="utf-8") as stream:
            for prompt, text, score in zip(prompts, texts, scores, strict=True):
                line = {"step": step, "prompt": prompt, "answer": text, "score": round(score, 4)}
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")


def drop_torn_line(path: Path) -> None:
    """Cut off the last line of a file if an interruption has torn it: the next one must not be glued to it."""
    if path.is_file() and not (found := path.read_bytes()).endswith(b"\n"):
        os.truncate(path, found.rfind(b"\n") + 1)
