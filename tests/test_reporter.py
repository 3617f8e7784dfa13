"""metrics.jsonl tells where a run stands."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.reporter import Reporter


def test_progress_covers_the_whole_run_in_the_order_of_its_stages(tmp_path: Path) -> None:
    report = Reporter(tmp_path, ["reward", "ppo"])
    report("reward", 1, 0.0, {})
    report("reward", 2, 1.0, {"reward_accuracy": 0.7})
    report("ppo", 1, 0.5, {"kl": 0.1})
    report("gate", 1, 1.0, {})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["progress"] for row in rows] == pytest.approx([0, 0.15 / 0.9, 0.475 / 0.9, 1.0], abs=1e-3)
    assert rows[0]["eta_seconds"] is None
    assert rows[-1]["eta_seconds"] == 0
    assert rows[1]["metrics"] == {"reward_accuracy": 0.7}


def test_a_line_torn_by_a_kill_does_not_swallow_the_next(tmp_path: Path) -> None:
    first = Reporter(tmp_path, ["ppo"])
    first("ppo", 1, 0.5, {})
    first.answers(1, ["Why?"], ["So"], [1.0])
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        with (tmp_path / name).open("a") as file:
            file.write('{"step": 2, "pro')
    again = Reporter(tmp_path, ["ppo"])
    again("ppo", 2, 1.0, {})
    again.answers(2, ["How?"], ["Well"], [2.0])
    for name in ("metrics.jsonl", "rollouts.jsonl"):
        assert [json.loads(line)["step"] for line in (tmp_path / name).read_text().splitlines()] == [1, 2]


def test_answers_of_a_step_are_kept_with_their_scores(tmp_path: Path) -> None:
    report = Reporter(tmp_path, ["ppo"])
    report.answers(1, ["Why?", "How?"], ["“So”", "Well"], [0.123456, -1.0])
    rows = [json.loads(line) for line in (tmp_path / "rollouts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"step": 1, "prompt": "Why?", "answer": "“So”", "score": 0.1235},
        {"step": 1, "prompt": "How?", "answer": "Well", "score": -1.0},
    ]
