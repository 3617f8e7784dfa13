"""What a run's reward model says, by a process of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from serve.errors import Unavailable
from serve.records import Message
from tests.run_scenes import LENIENT, write_run, write_snapshot
from training.judging import Judging, doubt_of, has_judges
from training.run import execute
from training.run_folder import RunFolder


def test_a_runs_reward_model_judges_answers_that_nobody_voted_on(tiny_model: Path, tmp_path: Path) -> None:
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
    judging.close()
    with pytest.raises(Unavailable, match="stopping"):
        judging.ask(folder, [(asked, "a")])
