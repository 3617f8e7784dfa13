"""Runs and their metrics."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from serve.errors import (
    InvalidInput,
    NotFound,
    RunActive,
)
from serve.feedback.store import Store
from tests.scenes import (
    compare,
    prefer,
)


def test_one_run_at_a_time(store: Store) -> None:
    run = store.create_run("operator", ["reward", "ppo"], {"seed": 1})
    assert (run.id, run.status, run.stages) == (1, "queued", ("reward", "ppo"))
    for status in ("queued", "running", "interrupted"):
        store.update_run(run.id, status=status)
        assert store.active_run() is not None
        with pytest.raises(RunActive) as refused:
            store.create_run("votes", ["reward"], {})
        assert refused.value.run == run.id
    for status in ("succeeded", "rejected", "failed", "cancelled"):
        store.update_run(run.id, status=status)
        assert store.active_run() is None
    assert store.create_run("votes", ["reward"], {}).id == 2
    assert [r.id for r in store.runs()] == [2, 1]


def test_a_run_keeps_the_settings_it_was_asked_for(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {"settings": {"ppo": {"updates": 3}}, "who": "operator"})
    assert store.run_config(run.id) == {"settings": {"ppo": {"updates": 3}}, "who": "operator"}
    with pytest.raises(NotFound):
        store.run_config(99)


def test_a_run_needs_known_stages(store: Store) -> None:
    for stages in ([], ["dance"]):
        with pytest.raises(InvalidInput, match="sft, reward, ppo"):
            store.create_run("operator", stages, {})  # type: ignore[arg-type]


def test_a_run_remembers_what_it_is_told(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    started = datetime(2026, 7, 4, 13, 0, tzinfo=UTC)
    report = {"status": "rejected", "reasons": ["about 20 more votes"]}
    store.update_run(run.id, status="rejected", started=started, report=report, error="none", progress=0.5)
    told = store.run(run.id)
    assert (told.status, told.started, told.report, told.error, told.progress) == (
        "rejected",
        started,
        report,
        "none",
        0.5,
    )
    assert store.update_run(run.id) == told
    with pytest.raises(TypeError, match="colour"):
        store.update_run(run.id, colour="red")
    with pytest.raises(NotFound):
        store.update_run(99, status="failed")
    with pytest.raises(NotFound):
        store.run(99)


def _line(step: int, time: str, **metrics: float) -> dict[str, object]:
    return {
        "time": time,
        "stage": "ppo",
        "step": step,
        "progress": step / 10,
        "eta_seconds": 9.0,
        "metrics": metrics,
    }


def test_metrics_make_curves_and_the_latest_values(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    store.add_run_metrics(
        run.id,
        [
            _line(1, "2026-07-04T12:00:01Z", score=0.1, kl=0.0),
            _line(2, "2026-07-04T12:00:02Z", score=0.2, kl=float("nan")),
        ],
    )
    told = store.run(run.id)
    assert told.metrics == {"score": 0.2, "kl": 0.0}
    assert (told.stage, told.progress, told.eta_seconds) == ("ppo", 0.2, 9.0)
    assert [(p.step, p.value) for p in store.run_metrics(run.id, "score")] == [(1, 0.1), (2, 0.2)]
    assert len(store.run_metrics(run.id)) == 3


def test_metrics_told_again_replace_themselves(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    lines = [_line(1, "2026-07-04T12:00:01Z", score=0.1), _line(2, "2026-07-04T12:00:02Z", score=0.2)]
    store.add_run_metrics(run.id, lines)
    store.add_run_metrics(run.id, lines)
    store.add_run_metrics(run.id, [_line(1, "2026-07-04T12:00:09+00:00", score=0.7)])
    assert sorted((p.step, p.value) for p in store.run_metrics(run.id)) == [(1, 0.7), (2, 0.2)]
    assert store.run(run.id).metrics == {"score": 0.7}, "the latest is what came last"
    store.add_run_metrics(run.id, [])
    with pytest.raises(NotFound):
        store.add_run_metrics(9, lines)


def test_votes_count_as_new_until_a_run_that_held_them_is_over(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store), 0)
    run = store.create_run("votes", ["reward"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    prefer(store, compare(store), 1)
    assert store.votes_since_last_run() == 2
    store.update_run(run.id, status="failed")
    assert store.votes_since_last_run() == 2
    store.update_run(run.id, status="rejected")
    assert store.votes_since_last_run() == 1
    assert store.standing_votes() == 2


def test_a_run_of_demonstrations_alone_leaves_votes_new(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store), 0)
    run = store.create_run("operator", ["sft"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    store.update_run(run.id, status="succeeded")
    assert store.votes_since_last_run() == 1


def test_a_list_of_runs_tells_what_each_was_made_with_and_its_metrics_where_they_are_wanted(store: Store) -> None:
    vote = prefer(store, compare(store), 0).id
    first = store.create_run("operator", ["ppo"], {"settings": {"ppo": {"updates": 3}}, "who": "anna"})
    store.add_run_metrics(first.id, [_line(1, "2026-07-04T12:00:01Z", score=0.1)])
    store.writing(lambda db: db.execute("INSERT INTO run_votes (run_id, vote_id) VALUES (?, ?)", (first.id, vote)))
    store.update_run(first.id, status="failed")
    second = store.create_run("votes", ["reward"], {"settings": {}})
    newest, oldest = store.runs()
    assert (newest.id, newest.who, newest.settings, newest.votes, newest.metrics) == (second.id, None, {}, 0, {})
    assert (oldest.who, oldest.settings, oldest.votes) == ("anna", {"ppo": {"updates": 3}}, 1)
    assert oldest.metrics == {"score": 0.1}
    assert [run.metrics for run in store.runs(metrics=False)] == [{}, {}]
