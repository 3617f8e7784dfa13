"""A run's folder: prepared whole or not at all, and read back only where it can be trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from training.run_folder import MetricsTail, RunFolder


def line(step: int, **changes: Any) -> str:
    row = {"time": "2030-01-01T00:00:00Z", "stage": "ppo", "step": step, "progress": 0.5, "metrics": {"kl": 0.1}}
    return json.dumps(row | changes) + "\n"


def test_metrics_are_read_line_by_whole_line_each_once(tmp_path: Path) -> None:
    path, tail = tmp_path / "metrics.jsonl", MetricsTail(RunFolder(tmp_path))
    assert tail.read() == []
    path.write_text(line(1) + line(2)[:20])
    assert [row["step"] for row in tail.read()] == [1]
    path.write_text(line(1) + line(2) + line(3))
    assert [row["step"] for row in tail.read()] == [2, 3]
    assert tail.read() == []


@pytest.mark.parametrize(
    "broken",
    [
        "{",
        "[]\n",
        line(1)[:30],
        line(1, time="soon"),
        line(1, progress=None),
        line(1, metrics=[1]),
    ],
)
def test_a_line_that_says_nothing_is_skipped(tmp_path: Path, broken: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(broken.rstrip("\n") + "\n" + line(2))
    assert [row["step"] for row in MetricsTail(RunFolder(tmp_path)).read()] == [2]


def test_values_that_are_not_finite_are_left_out(tmp_path: Path) -> None:
    metrics = {"kl": float("nan"), "score": float("inf"), "length": 12}
    (tmp_path / "metrics.jsonl").write_text(line(1, metrics=metrics, eta_seconds=float("inf"), progress=1.5))
    (row,) = MetricsTail(RunFolder(tmp_path)).read()
    assert (row["metrics"], row["eta_seconds"], row["progress"]) == ({"length": 12.0}, None, 1.0)


def test_a_report_is_none_until_it_is_whole_and_never_holds_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.report() is None
    (tmp_path / "report.json").write_text('{"status": "succ')
    assert folder.report() is None
    (tmp_path / "report.json").write_text('{"status": "succeeded", "gate": {"win_rate": NaN}}')
    assert folder.report() == {"status": "succeeded", "gate": {"win_rate": None}}


def test_clear_forgets_a_half_prepared_run_and_keeps_a_whole_one_aside(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "0001")
    folder.clear()
    (folder.path / "snapshot.db").write_bytes(b"half")
    folder.clear()
    assert list(folder.path.iterdir()) == []
    folder.write_config({"run": 1})
    folder.clear()
    assert folder.config() == {}
    assert RunFolder(tmp_path / "0001.stray-1").config() == {"run": 1}
