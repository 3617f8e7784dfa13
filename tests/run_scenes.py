"""A prepared run's folder over the tiny model, with votes that follow a simple rule."""

from __future__ import annotations

import json
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from training.ppo import PPO, Batch

Seen = TypeVar("Seen")

SCHEMA = """
CREATE TABLE prompts(id INTEGER PRIMARY KEY, messages TEXT, source TEXT, voter TEXT, asked INTEGER);
CREATE TABLE answers(id INTEGER PRIMARY KEY, prompt_id INTEGER, text TEXT, token_ids TEXT, version INTEGER,
                     finish_reason TEXT, max_tokens INTEGER, temperature REAL);
CREATE TABLE votes(id INTEGER PRIMARY KEY, prompt_id INTEGER, voter TEXT, ranking TEXT, positions TEXT,
                   strength INTEGER, created TEXT);
CREATE TABLE demonstrations(id INTEGER PRIMARY KEY, messages TEXT, answer TEXT, voter TEXT);
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT);
"""

SMALL = {
    "adapted_layers": 2,
    "rank": 4,
    "alpha": 8,
    "reward": {"layers": 1, "epochs": 1, "folds": 3},
    "ppo": {"updates": 3, "rollouts": 4, "value_warmup": 1, "max_tokens": 12},
    "gate": {"held_out_prompts": 4},
    "sft": {"epochs": 1, "sequence_length": 128, "tokens_per_batch": 256},
}

LENIENT = {
    **SMALL,
    "gate": {
        "held_out_prompts": 4,
        "max_nll_rise": 100,
        "min_distinct": 0,
        "max_repetition_rise": 1,
        "length_factor": 1000,
        "max_capped_rise": 1,
    },
}


def write_snapshot(
    path: Path,
    *,
    votes: int = 40,
    demonstrations: int = 0,
    consistent: bool = True,
    prompts: int = 40,
    ranking: str = "[[{0}], [{1}]]",
) -> None:
    """Votes that prefer answers made of `a` to answers made of `z` (or, if not consistent, either at random).

    They go round so many prompts; `ranking` is what is stored of the better and the worse answer.
    """
    rng = random.Random(5)
    with sqlite3.connect(path) as db:
        db.executescript(SCHEMA)
        for i in range(min(votes, prompts)):
            messages = json.dumps([{"role": "user", "content": f"question {i}?"}])
            db.execute("INSERT INTO prompts VALUES (?, ?, 'voter', 'voter-1', 1)", (i, messages))
        for i in range(votes):
            for side, letter in enumerate("az"):
                text = "".join(rng.choice(letter + "mn") for _ in range(10))
                row = (2 * i + side, i % prompts, text, None, 0, "stop", 16, 0.8)
                db.execute("INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            order = [2 * i, 2 * i + 1] if consistent or rng.random() < 0.5 else [2 * i + 1, 2 * i]
            positions = json.dumps({str(2 * i): 0, str(2 * i + 1): 1})
            ranked = ranking.format(*order)
            vote = (i, i % prompts, f"voter-{i % 5}", ranked, positions, None, "2026-01-01T00:00:00Z")
            db.execute("INSERT INTO votes VALUES (?, ?, ?, ?, ?, ?, ?)", vote)
        for i in range(demonstrations):
            messages = json.dumps([{"role": "user", "content": f"what is {i}?"}])
            db.execute("INSERT INTO demonstrations VALUES (?, ?, ?, 'voter-1')", (i, messages, f"it is {i}."))
        db.executemany("INSERT INTO meta VALUES (?, ?)", [("max_tokens", "16"), ("temperature", "0.8")])


def write_run(
    folder: Path,
    model: Path,
    *,
    stages: tuple[str, ...] = ("reward", "ppo"),
    settings: dict[str, Any] | None = None,
    threads: int = 1,
) -> Path:
    """config.json beside a snapshot, for `execute`."""
    config = {
        "run": 1,
        "seed": 3,
        "stages": list(stages),
        "model": {
            "path": str(model),
            "hash": "tiny",
            "name": "tiny",
            "cache": str(model / "cache"),
            "dtype": "float32",
            "threads": threads,
        },
        "serving": {"max_tokens": 256, "temperature": 0.8},
        "parent": 0,
        "settings": SMALL if settings is None else settings,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def metrics_lines(folder: Path) -> list[dict[str, Any]]:
    """What the run told the server, line by line."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def ppo_figures(folder: Path) -> list[dict[str, float]]:
    """What the run measured of each of PPO's policies, in order."""
    return [line["metrics"] for line in metrics_lines(folder) if line["stage"] == "ppo" and line["metrics"]]


def watch_ppo(monkeypatch: pytest.MonkeyPatch, look: Callable[[PPO, Batch], Seen]) -> list[Seen]:
    """What `look` sees of PPO and its batch each time that one has been collected; the list grows with the run."""
    seen: list[Seen] = []
    collect = PPO.collect

    def noted(self: PPO, update: int) -> Batch:
        batch = collect(self, update)
        seen.append(look(self, batch))
        return batch

    monkeypatch.setattr(PPO, "collect", noted)
    return seen
