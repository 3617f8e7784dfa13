"""A whole training run on the tiny model, from its folder alone, interrupted and repeated."""

from __future__ import annotations

import json
import math
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from serve.errors import InvalidInput, NothingToLearn
from tests.run_scenes import LENIENT, SMALL, metrics_lines, ppo_figures, watch_ppo, write_run, write_snapshot
from training.ppo import PPO, Batch
from training.reward import RewardFit
from training.roles import Policy
from training.run import ROLLOUT_TOKENS, Run, execute, no_step, rollout_temperature


def test_votes_become_a_policy_with_an_adapter_and_a_report(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    settings = {
        **LENIENT,
        "ppo": {**SMALL["ppo"], "updates": 12, "rollouts": 64, "learning_rate": 1e-2, "kl_stop": 1e4},  # type: ignore[dict-item]
    }
    report = execute(write_run(tmp_path, tiny_model, settings=settings))
    assert report["adapter"]
    assert report["settings"]["ppo"]["updates"] == 12
    assert report["settings"]["ppo"]["clip"] == 0.2
    assert report["status"] == ("succeeded" if report["gate"]["passed"] else "rejected")
    tensors = load_file(str(tmp_path / "adapter" / "adapter_model.safetensors"))
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in tensors.items())
    progress = [line["progress"] for line in metrics_lines(tmp_path)]
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    ppo = ppo_figures(tmp_path)
    assert len(ppo) == 13, "one for each policy, the first and the last included"
    assert report["ppo"]["best_update"] > 1
    scores = [m["score"] for m in ppo]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.2, "it rises by far more than 64 rollouts scatter"
    assert report["ppo"]["best_score"] > scores[0]
    assert all(m["sampler_gap"] < 0.01 for m in ppo), "the engine and the trainer must mean the same policy"
    assert all(m["ratio_gap"] < 1e-4 for m in ppo if "ratio_gap" in m), "each update starts at ratio 1"
    assert ppo[0]["kl"] == pytest.approx(0, abs=1e-3), "PPO starts from the reference"


def test_votes_at_random_are_refused_before_ppo_and_say_how_many_are_missing(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", votes=16, consistent=False)
    report = execute(write_run(tmp_path, tiny_model))
    assert report["status"] == "rejected"
    assert not report["adapter"]
    assert "more votes" in report["reasons"][0]


def test_a_stage_that_is_done_is_read_back_with_its_figures(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", demonstrations=6)
    settings = {**LENIENT, "ppo": {**SMALL["ppo"], "updates": 2}}  # type: ignore[dict-item]
    first = execute(write_run(tmp_path, tiny_model, stages=("sft", "reward", "ppo"), settings=settings))
    again = execute(tmp_path)
    assert first["sft"]
    assert again["sft"] == first["sft"]
    assert first["ppo"]["last"]["length"] > 0
    assert again["ppo"] == first["ppo"]


def test_a_checkpoint_of_another_release_is_left_and_ppo_begins_anew(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    settings = {**LENIENT, "ppo": {**SMALL["ppo"], "updates": 2, "rollouts": 64}}  # type: ignore[dict-item]
    execute(write_run(tmp_path, tiny_model, settings=settings))
    file = tmp_path / "checkpoint" / "ppo.pt"
    checkpoint = torch.load(file, weights_only=True)
    first = ppo_figures(tmp_path)[0]
    start = checkpoint["progress"].pop("start")
    assert start["nll"] == pytest.approx(first["nll"], abs=0.3), "the first policy is the start"
    torch.save(checkpoint, file)
    before = len(metrics_lines(tmp_path))
    assert execute(tmp_path)["ppo"]["updates"] == 2
    assert [line["step"] for line in metrics_lines(tmp_path)[before:] if line["stage"] == "ppo"] == [1, 2, 3]


def spoil_second_update(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    """The policy's weights are all this value after PPO's second update."""
    improve = PPO.improve

    def spoilt(self: PPO, batch: Batch, update: int, *, train_policy: bool) -> dict[str, float]:
        losses = improve(self, batch, update, train_policy=train_policy)
        if update == 1:
            with torch.no_grad():
                for weight in self.roles.policy.parameters():
                    weight.fill_(value)
        return losses

    monkeypatch.setattr(PPO, "improve", spoilt)


def test_weights_that_are_no_numbers_end_ppo_before_its_checkpoint(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_second_update(monkeypatch, math.nan)
    write_snapshot(tmp_path / "snapshot.db")
    report = execute(write_run(tmp_path, tiny_model, settings=LENIENT))
    assert "not finite" in report["ppo"]["stopped"]
    assert report["adapter"]
    checkpoint = torch.load(tmp_path / "checkpoint" / "ppo.pt", weights_only=True)
    assert all(tensor.isfinite().all() for tensor in checkpoint["policy"].values())
    assert [line["step"] for line in metrics_lines(tmp_path) if line["stage"] == "ppo"] == [0, 1, 2]


@pytest.mark.parametrize(("value", "why"), [(math.nan, "holds NaN"), (math.inf, "holds NaN"), (1e6, "not finite")])
def test_a_version_that_the_engine_cannot_answer_with_is_refused(
    value: float,
    why: str,
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def spoil(self: Run, policy: Policy, judged: RewardFit) -> None:
        with torch.no_grad():
            for weight in policy.parameters():
                weight.fill_(value)

    monkeypatch.setattr(Run, "optimise", spoil)
    caplog.set_level("INFO")
    write_snapshot(tmp_path / "snapshot.db")
    report = execute(write_run(tmp_path, tiny_model, settings=LENIENT))
    assert report["status"] == "rejected"
    assert "weights are broken" in report["reasons"][0]
    assert why in caplog.text


@pytest.mark.parametrize(
    ("asked", "voted", "served", "taken"),
    [
        (None, 0.0, 0.8, 0.8),
        (None, 0.04, 0.7, 0.7),
        (None, 0.6, 0.8, 0.6),
        (0.5, 0.0, 0.8, 0.5),
        (None, 0.0, 0.0, 1.0),
    ],
)
def test_rollouts_are_never_greedy(asked: float | None, voted: float, served: float, taken: float) -> None:
    assert rollout_temperature(asked, voted, served) == taken


@pytest.mark.parametrize(("limit", "penalty"), [(12, True), (256, False)])
def test_running_into_the_limit_costs_only_where_it_is_the_servers(
    limit: int, penalty: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Elsewhere the penalty would be a hidden reward for brevity."""
    told: list[bool] = []
    start = PPO.__init__

    def noted(self: PPO, **given: Any) -> None:
        told.append(given["penalise_cap"])
        start(self, **given)

    monkeypatch.setattr(PPO, "__init__", noted)
    write_snapshot(tmp_path / "snapshot.db")
    folder = write_run(tmp_path, tiny_model, settings=LENIENT)
    config = json.loads((folder / "config.json").read_text())
    config["serving"]["max_tokens"] = limit
    (folder / "config.json").write_text(json.dumps(config))
    execute(folder)
    assert told == [penalty], "rollouts have 12 tokens"


@pytest.mark.parametrize(("best", "told"), [(None, True), (0, True), (1, True), (2, False)])
def test_a_run_that_kept_no_step_says_so(best: int | None, told: bool) -> None:
    """With one update of warm-up the answers of update 1 are still the reference's."""
    ppo = {"best_update": best, "stopped": "all updates are done", "faults": ["it moved 20 nats"]}
    assert bool(no_step(ppo, value_warmup=1)) == told
    assert no_step({**ppo, "best_update": 0}, 1) == [
        "PPO kept no step (all updates are done); of the last one: it moved 20 nats"
    ]
    assert "none within the bounds scored higher" in no_step({**ppo, "best_update": 0, "faults": []}, 1)[0]


def test_a_run_without_a_vote_is_refused_in_words(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", votes=2)
    with sqlite3.connect(tmp_path / "snapshot.db") as db:
        db.execute("DELETE FROM votes")
    with pytest.raises(NothingToLearn, match="no vote stands any more"):
        execute(write_run(tmp_path, tiny_model))


def test_rollouts_without_room_for_a_prompt_are_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    with pytest.raises(InvalidInput, match=r"no room for a prompt .* set ppo.max_tokens"):
        execute(write_run(tmp_path, tiny_model, settings={**SMALL, "ppo": {"max_tokens": 60000}}))


def test_rollouts_end_early_where_votes_are_on_long_answers(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    with sqlite3.connect(tmp_path / "snapshot.db") as db:
        db.execute("UPDATE meta SET value = '512' WHERE key = 'max_tokens'")
    ppo = {"updates": 1, "rollouts": 2, "value_warmup": 0}
    report = execute(write_run(tmp_path, tiny_model, settings={**LENIENT, "ppo": ppo}))
    assert report["ppo"]["max_tokens"] == ROLLOUT_TOKENS


def test_weights_that_the_engine_cannot_use_end_ppo_at_its_best_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are finite, so that only the engine's answers show it; a second start must not fail for ever."""
    spoil_second_update(monkeypatch, 1e6)
    write_snapshot(tmp_path / "snapshot.db")
    report = execute(write_run(tmp_path, tiny_model, settings=LENIENT))
    assert "cannot answer after update 2" in report["ppo"]["stopped"]
    assert report["adapter"] and report["ppo"]["best_update"] is not None


def test_a_value_model_from_zero_begins_at_zero(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = watch_ppo(monkeypatch, lambda _, batch: float(batch.values.abs().max()))
    write_snapshot(tmp_path / "snapshot.db")
    settings = {**LENIENT, "ppo": {"updates": 2, "rollouts": 4, "max_tokens": 12, "value_from_reward": False}}
    execute(write_run(tmp_path, tiny_model, settings=settings))
    assert found[0] == 0 and found[-1] > 0


def test_ppo_continues_the_sft_weights_and_mixes_demonstrations(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", demonstrations=6)
    settings = {**LENIENT, "ppo": {**SMALL["ppo"], "ptx": 0.5}}  # type: ignore[dict-item]
    execute(write_run(tmp_path, tiny_model, stages=("sft", "reward", "ppo"), settings=settings))
    ppo = ppo_figures(tmp_path)
    assert ppo[0]["kl"] == pytest.approx(0, abs=1e-3)
    assert ppo[1]["ptx_loss"] > 0


def test_ptx_makes_demonstrations_likelier(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", demonstrations=4)
    ppo = {"updates": 6, "rollouts": 4, "max_tokens": 12, "learning_rate": 3e-3, "ptx": 5.0, "kl_stop": 1e4}
    execute(write_run(tmp_path, tiny_model, settings={**LENIENT, "ppo": ppo}))
    found = ppo_figures(tmp_path)
    losses = [metrics["ptx_loss"] for metrics in found if "ptx_loss" in metrics]
    assert losses[-1] < losses[0] - 0.3


@pytest.fixture
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.usefixtures("threads_as_before")
def test_a_run_repeats_itself_to_the_bit(threads: int, tiny_model: Path, tmp_path: Path) -> None:
    settings = {**LENIENT, "reward": {"layers": 1, "epochs": 1, "folds": 3}}
    adapters = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        write_snapshot(folder / "snapshot.db")
        execute(write_run(folder, tiny_model, settings=settings, threads=threads))
        adapters.append(load_file(str(folder / "adapter" / "adapter_model.safetensors")))
    assert all(torch.equal(tensor, adapters[1][name]) for name, tensor in adapters[0].items())


def test_a_steps_gradients_are_the_same_in_one_part_and_in_many(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradients: list[list[torch.Tensor]] = []

    def compared(self: PPO, batch: Batch, update: int, *, train_policy: bool) -> dict[str, float]:
        for tokens in (64, 1 << 20):
            assert (len(batch.sequences.micro_batches(tokens)) > 1) == (tokens == 64)
            self.micro_batch_tokens = tokens
            rows = torch.arange(len(batch.sequences))
            batch.logprobs = batch.logprobs + 0.05  # so that ratios are not all 1
            self._step(batch, rows, True, torch.Generator())
            batch.logprobs = batch.logprobs - 0.05
            trained = [*self.roles.policy.parameters(), *self.roles.value.trained()]
            gradients.append([p.grad.clone() for p in trained if p.grad is not None])
        return {}

    monkeypatch.setattr(PPO, "improve", compared)
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self: None)
    write_snapshot(tmp_path / "snapshot.db")
    ppo = {"updates": 1, "value_warmup": 0, "rollouts": 8, "max_tokens": 12, "gradient_norm": None}
    execute(write_run(tmp_path, tiny_model, settings={**LENIENT, "ppo": ppo}))
    many, one = gradients
    assert len(many) == len(one) > 0 and any(float(g.abs().max()) > 0 for g in one)
    for parts, whole in zip(many, one, strict=True):
        torch.testing.assert_close(parts, whole, atol=1e-6, rtol=1e-3)


def first_batch(
    monkeypatch: pytest.MonkeyPatch, model: Path, folder: Path, **ppo: Any
) -> tuple[Batch, dict[str, float]]:
    """What a run collects first, and what its first update measured."""
    folder.mkdir()
    with monkeypatch.context() as patched:
        batches = watch_ppo(patched, lambda _, batch: batch)
        measured = figures_of(folder, model, **{"updates": 1, **ppo})
    return batches[0], measured[0]


def test_the_first_step_starts_from_the_values_that_were_collected(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With one step an update, its losses can be told from the batch alone: the ratio is 1, V is the old value."""
    batch, measured = first_batch(monkeypatch, tiny_model, tmp_path / "run", epochs=1, minibatches=1)
    mask = batch.sequences.answer_mask
    missed = (batch.values - batch.returns)[mask]
    assert measured["value_loss"] == pytest.approx(0.5 * float(missed.square().mean()), rel=1e-3)
    assert measured["policy_loss"] == pytest.approx(-float(batch.advantages[mask].mean()), abs=1e-4)
    assert measured["ratio_gap"] < 1e-4


def test_running_into_the_limit_is_paid_for_on_the_last_token(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free, paid = (
        first_batch(monkeypatch, tiny_model, tmp_path / str(penalty), eos_penalty=penalty)[0] for penalty in (0.0, 1.0)
    )
    assert [r.token_ids for r in free.rollouts] == [r.token_ids for r in paid.rollouts]
    rows = torch.arange(len(free.rollouts))
    last = free.sequences.answer_mask.sum(-1) - 1
    cost = (free.returns - paid.returns)[rows, last]
    capped = torch.tensor([r.finish_reason == "length" for r in free.rollouts])
    assert capped.any() and not capped.all()
    torch.testing.assert_close(cost, capped.float(), atol=1e-4, rtol=0)


LIVELY = {
    **SMALL["ppo"],  # type: ignore[dict-item]
    "rollouts": 16,
    "value_warmup": 0,
    "epochs": 2,
    "learning_rate": 3e-3,
    "value_learning_rate": 3e-3,
    "kl_target": 0.01,
    "kl_stop": 1e4,
    "max_tokens": 16,
}
"""Steps large enough for every bound to matter; all answers that are cut off meet the server's own limit of 16."""


def figures_of(tmp_path: Path, model: Path, **ppo: Any) -> list[dict[str, float]]:
    """The figures of each policy of a short run."""
    write_snapshot(tmp_path / "snapshot.db")
    folder = write_run(tmp_path, model, settings={**LENIENT, "ppo": {**LIVELY, **ppo}})
    config = json.loads((folder / "config.json").read_text())
    config["serving"]["max_tokens"] = 16
    (folder / "config.json").write_text(json.dumps(config))
    execute(folder)
    return ppo_figures(folder)


@pytest.fixture(scope="module")
def as_it_is(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return figures_of(tmp_path_factory.mktemp("run"), tiny_model)


@pytest.mark.parametrize(
    "switched",
    [
        {"whiten": False},
        {"clip": None},
        {"value_clip": None},
        {"gradient_norm": None},
        {"adaptive_beta": False},
        {"beta": 0.0},
        {"eos_penalty": 0.0},
        {"value_warmup": 1},
        {"value_from_reward": False},
        {"learning_rate_end": 1.0},
        {"importance_cap": 1.0},
        {"lam": 0.0},
        {"gamma": 0.5},
        {"kl_horizon": 64},
        {"kl_target": 1.0},
        {"kl_stop": 0.01},
        {"epochs": 1},
        {"minibatches": 32},
        {"answers_per_prompt": 1},
    ],
    ids=lambda switched: str(next(iter(switched))),
)
def test_every_part_of_ppo_can_be_switched_and_matters(
    switched: dict[str, Any], as_it_is: list[dict[str, float]], tiny_model: Path, tmp_path: Path
) -> None:
    found = figures_of(tmp_path, tiny_model, **switched)
    assert found[-1] != as_it_is[-1], "the same seed, so that nothing else differs"
    assert all(math.isfinite(value) for step in found for value in step.values())
    assert max(step.get("clipped", 0) for step in as_it_is) > 0
    if "clip" in switched:
        assert max(step.get("clipped", 0) for step in found) == 0
    if "beta" in switched:
        assert {step["beta"] for step in found if "beta" in step} == {0.0}
    if "adaptive_beta" in switched:
        betas = [{step["beta"] for step in steps if "beta" in step} for steps in (found, as_it_is)]
        assert len(betas[0]) == 1 < len(betas[1])
    if "value_warmup" in switched:
        assert found[1]["kl"] == pytest.approx(0, abs=1e-4) and as_it_is[1]["kl"] > 1e-3
    if "eos_penalty" in switched:
        assert as_it_is[0]["capped"] > 0
    if "kl_stop" in switched:
        assert len(found) < len(as_it_is)


def test_a_run_asked_to_stop_leaves_a_checkpoint_and_goes_on_from_it(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    settings = {**LENIENT, "ppo": {**SMALL["ppo"], "updates": 400}}  # type: ignore[dict-item]
    write_run(tmp_path, tiny_model, settings=settings)
    command = [sys.executable, "-m", "training", str(tmp_path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "checkpoint" / "ppo.pt").is_file():
            assert time.monotonic() < deadline, "no checkpoint came"
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 75
    finally:
        process.kill()
    assert not (tmp_path / "report.json").exists()
    reached = torch.load(tmp_path / "checkpoint" / "ppo.pt", weights_only=True)["progress"]["update"]
    before = len(metrics_lines(tmp_path))
    write_run(tmp_path, tiny_model, settings={**LENIENT, "ppo": {**SMALL["ppo"], "updates": reached + 2}})  # type: ignore[dict-item]
    report = execute(tmp_path)
    assert report["ppo"]["updates"] == reached + 2
    assert [line["step"] for line in metrics_lines(tmp_path)[before:] if line["stage"] == "ppo"] == [
        reached + 1,
        reached + 2,
        reached + 3,
    ]


def test_a_run_that_is_killed_twice_ends_with_the_same_bits(tiny_model: Path, tmp_path: Path) -> None:
    settings = {**LENIENT, "ppo": {**SMALL["ppo"], "updates": 8, "rollouts": 8, "ptx": 0.5}}  # type: ignore[dict-item]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start(folder: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "training", str(folder)]
        return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def updates(folder: Path) -> int:
        """Policies that were measured; the line that says that PPO begins is none."""
        written = (folder / "metrics.jsonl").read_bytes().splitlines()
        return sum(b'"ppo"' in line and b'"kl"' in line for line in written)

    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        write_snapshot(folder / "snapshot.db", demonstrations=6)
        write_run(folder, tiny_model, settings=settings, threads=2)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole).wait(120) == 0
    for reached in (2, 5):
        process = start(killed)
        deadline = time.monotonic() + 60
        while not (killed / "metrics.jsonl").is_file() or updates(killed) < reached:
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert not (killed / "report.json").exists()
    assert start(killed).wait(120) == 0
    ours, theirs = (load_file(str(f / "adapter" / "adapter_model.safetensors")) for f in (killed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    reports = [json.loads((folder / "report.json").read_text()) for folder in (killed, whole)]
    assert reports[0] == reports[1], "and every figure"
    checkpoint = torch.load(whole / "checkpoint" / "ppo.pt", weights_only=True)
    assert reports[1]["ppo"]["best_update"] < 8
    assert all(torch.equal(theirs[name], checkpoint["best"][name]) for name in theirs), "the best step is the version"
    assert not all(torch.equal(theirs[name], checkpoint["policy"][name]) for name in theirs), "not the last"
