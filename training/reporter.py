"""metrics.jsonl: how a run tells the server where it stands."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

WEIGHTS = {"sft": 0.1, "reward": 0.15, "ppo": 0.65, "gate": 0.1}
"""Rough share of a run's time in each stage."""


class Reporter:
    """Appends one line for each step, with the progress over the whole run and the time left."""

    def __init__(self, path: Path, stages: Sequence[str]) -> None:
        self._path = path
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
