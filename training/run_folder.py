"""A run's folder, as the server sees it: what it puts in, and what it reads back.

runs/0007/config.json      written last of the inputs: with it the run is prepared
runs/0007/snapshot.db      all that the run may learn from
runs/0007/parent/          adapter of the version that served at the snapshot (absent for the base)
runs/0007/sft/             SFT adapter: put in where an earlier one still fits, else made by the run
runs/0007/metrics.jsonl    what the trainer measures, line by line
runs/0007/rollouts.jsonl   what the policy wrote on the way, with scores
runs/0007/log.txt          what it says
runs/0007/checkpoint/      where it goes on after an interruption
runs/0007/adapter/         the new policy
runs/0007/report.json      written last of all: with it the run has ended
"""

from __future__ import annotations

import json
import math
import shutil
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from serve.policy.adapters import WEIGHTS, free_name, sync
from serve.records import BASE_VERSION, LEARNED, Message
from training.config import TrainingConfig
from training.preferences import Shown, demonstrations_hash

_AFTER_SFT = ("reward", "ppo", "gate")
"""Sections of the settings that an SFT adapter does not depend on."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def snapshot(self) -> Path:
        """The run's own copy of the record."""
        return self.path / "snapshot.db"

    @property
    def parent(self) -> Path:
        """The adapter of the version that served at the snapshot."""
        return self.path / "parent"

    @property
    def adapter(self) -> Path:
        """The policy that the run made."""
        return self.path / "adapter"

    @property
    def sft(self) -> Path:
        """The reference that the run started PPO from, where it is not the base."""
        return self.path / "sft"

    def config(self) -> dict[str, Any]:
        """What the run was asked to do; empty before it is prepared."""
        return _read(self.path / "config.json") or {}

    def report(self) -> dict[str, Any] | None:
        """How the run ended; None before. Numbers that are not finite read as None."""
        return _read(self.path / "report.json")

    def clear(self) -> None:
        """Make the folder new and empty. A whole run that lies there is another record's (a backup was restored): it
        is moved aside.
        """
        if (self.path / "config.json").exists():
            self.path.rename(free_name(self.path))
        elif self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Mark the run as prepared, once everything put in before is on the disk."""
        for entry in self.path.rglob("*"):
            sync(entry)
        draft = self.path / "config.json.part"
        draft.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        sync(draft)
        draft.rename(self.path / "config.json")
        sync(self.path)
        sync(self.path.parent)

    def settle(self) -> None:
        """Put what later runs may take from this one on the disk."""
        for entry in (*self.sft.glob("*"), self.path / "report.json"):
            sync(entry)

    def serving_at_snapshot(self) -> int:
        """The version that served when the snapshot was taken: the run's parent."""
        with closing(sqlite3.connect(f"file:{self.snapshot}?mode=ro", uri=True)) as db:
            row = db.execute("SELECT value FROM meta WHERE key = 'serving'").fetchone()
        return int(row[0]) if row else BASE_VERSION

    def demonstrations_hash(self) -> str | None:
        """Of the demonstrations in the snapshot, as the trainer reports it; None when there are none."""
        with closing(sqlite3.connect(f"file:{self.snapshot}?mode=ro", uri=True)) as db:
            rows = db.execute("SELECT messages, answer FROM demonstrations ORDER BY id").fetchall()
        shown = tuple(Shown(tuple(Message(**m) for m in json.loads(messages)), answer) for messages, answer in rows)
        return demonstrations_hash(shown) if shown else None

    def offers_sft(self, demonstrations_hash: str, config: Mapping[str, Any]) -> bool:
        """Whether this run's SFT adapter comes from these demonstrations, under the model and settings of `config`."""
        report, own = self.report() or {}, self.config()
        return (
            report.get("status") in LEARNED
            and report.get("reference") == "sft"
            and report.get("demonstrations_hash") == demonstrations_hash
            and own.get("model", {}).get("hash") == config["model"]["hash"]
            and _until_sft(report.get("settings", {})) == _until_sft(asdict(TrainingConfig.parse(config["settings"])))
            and (self.sft / WEIGHTS).is_file()
        )


class MetricsTail:
    """Reads a growing metrics.jsonl, whole lines only, each once."""

    def __init__(self, folder: RunFolder) -> None:
        self._path = folder.path / "metrics.jsonl"
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The lines since the last call. A line torn by a kill is skipped, and so are values that are not finite."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return []
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [row for line in whole.splitlines() if (row := _row(line)) is not None]


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        datetime.fromisoformat(row["time"])
        progress, eta = float(row["progress"]), row.get("eta_seconds")
        return {
            "time": row["time"],
            "stage": str(row["stage"]),
            "step": int(row["step"]),
            "progress": min(1.0, progress) if math.isfinite(progress) else 0.0,
            "eta_seconds": float(eta) if eta is not None and math.isfinite(eta) else None,
            "metrics": {name: float(value) for name, value in row["metrics"].items() if math.isfinite(value)},
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def _until_sft(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's whole settings, those that made its SFT adapter."""
    return {name: value for name, value in settings.items() if name not in _AFTER_SFT}


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda _: None)
    except (FileNotFoundError, ValueError):
        return None
    return content if isinstance(content, dict) else None
