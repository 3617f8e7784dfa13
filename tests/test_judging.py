"""What a run's reward model says, by a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from serve.errors import Unavailable
from serve.records import Message
from tests.run_scenes import LENIENT, write_run, write_snapshot
from training.judging import Judging, doubt_of, has_judges, main
from training.run import execute
from training.run_folder import RunFolder


def test_a_runs_reward_model_judges_answers_that_nobody_voted_on(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_snapshot(tmp_path / "snapshot.db", votes=60)
    folder = write_run(tmp_path, tiny_model, stages=("reward",), settings=LENIENT)
    assert not has_judges(RunFolder(folder))
    with pytest.raises(Unavailable, match="did not answer"):
        Judging().ask(folder, [((Message("user", "question 3?"),), "aamanana")])
    assert execute(folder)["status"] == "succeeded"
    assert has_judges(RunFolder(folder))
    asked = (Message("user", "what of these?"),)
    judging = Judging()
    better, worse = judging.ask(folder, [(asked, "aamananama"), (asked, "zzmznznzmz")])
    assert better.score > worse.score, "votes preferred answers made of a"
    assert len(better.folds) == len(worse.folds) == 3
    assert all(a > z for a, z in zip(better.folds, worse.folds, strict=True))
    assert doubt_of(better, worse) > 0
    monkeypatch.setattr("training.judging.TOGETHER", 1)
    raw = [
        {"messages": [{"role": "user", "content": asked[0].content}], "answer": text}
        for text in ("aamananama", "zzmznznzmz")
    ]
    one_by_one = [row["score"] for row in main(RunFolder(folder), raw)]
    assert one_by_one == pytest.approx([better.score, worse.score], abs=1e-3)
    judging.close()
    with pytest.raises(Unavailable, match="stopping"):
        judging.ask(folder, [(asked, "a")])


def test_a_judge_that_starts_while_the_server_stops_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judging, start = Judging(), subprocess.Popen
    started: list[subprocess.Popen[str]] = []

    def meanwhile(command: Sequence[str], **options: Any) -> Any:
        judging.close()  # sees no process yet
        started.append(start(["sleep", "60"], **options))
        return started[0]

    monkeypatch.setattr("training.judging.subprocess.Popen", meanwhile)
    with pytest.raises(Unavailable, match="stopping"):
        judging.ask(tmp_path, [])
    assert started[0].poll() is not None
