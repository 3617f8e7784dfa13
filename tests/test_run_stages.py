"""Which stages a run plays, what each hands on to the next, and where an interrupted one goes on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from serve.errors import NothingToLearn
from tests.run_scenes import LENIENT, SMALL, metrics_lines, watch_ppo, write_run, write_snapshot
from training import ppo, run
from training.reporter import Reporter
from training.run import execute, kept_no_epoch
from training.sft import fine_tune


def tensors(adapter: Path) -> dict[str, torch.Tensor]:
    return load_file(str(adapter / "adapter_model.safetensors"))


def same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def settings(**ppo_settings: Any) -> dict[str, Any]:
    ppo_settings = {**SMALL["ppo"], "value_warmup": 0, **ppo_settings}  # type: ignore[dict-item]
    return {**LENIENT, "ppo": ppo_settings}


@pytest.mark.parametrize(("stages", "made"), [(("reward",), False), (("sft", "reward"), True), (("sft",), True)])
def test_a_run_plays_the_stages_it_is_asked_for(
    stages: tuple[str, ...], made: bool, tiny_model: Path, tmp_path: Path
) -> None:
    write_snapshot(tmp_path / "snapshot.db", demonstrations=6)
    report = execute(write_run(tmp_path, tiny_model, stages=stages, settings=LENIENT))
    assert report["adapter"] is (tmp_path / "adapter").exists() is made
    assert [name for name in ("sft", "reward", "ppo") if name in report] == list(stages)
    assert (report["reference"], bool(report["demonstrations_hash"])) == ("sft" if made else "base", True)
    if not made:
        assert report["status"] == "succeeded"
    else:
        assert same(tensors(tmp_path / "adapter"), tensors(tmp_path / "sft")), "SFT's policy is the version"
        assert any("lora_B" in name and tensor.any() for name, tensor in tensors(tmp_path / "sft").items())


def test_sft_of_demonstrations_that_nobody_stands_by_any_more_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    with pytest.raises(NothingToLearn, match="no demonstration stands any more"):
        execute(write_run(tmp_path, tiny_model, stages=("sft",), settings=LENIENT))


def test_sft_that_kept_no_epoch_is_no_version(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the base, and would replace what people trained."""

    def in_vain(*given: Any, **named: Any) -> dict[str, Any]:
        return {**fine_tune(*given, **named), "held_out_losses": [2.0, 2.1]}

    monkeypatch.setattr(run, "fine_tune", in_vain)
    write_snapshot(tmp_path / "snapshot.db", votes=0, demonstrations=6)
    report = execute(write_run(tmp_path, tiny_model, stages=("sft",), settings=LENIENT))
    assert (report["status"], report["adapter"]) == ("rejected", False)
    assert "SFT kept no epoch" in report["reasons"][0]


@pytest.mark.parametrize(("losses", "none"), [([], False), ([2.0, 1.9, 2.2], False), ([2.0, 2.0], True)])
def test_what_counts_as_an_epoch_that_was_kept(losses: list[float], none: bool) -> None:
    assert kept_no_epoch({"held_out_losses": losses}) is none


@pytest.mark.parametrize(
    ("ranking", "prompts", "why"),
    [("[[{0}, {1}]]", 40, "of 0 unseen comparisons"), ("[[{0}], [{1}]]", 5, "on 5 prompts alone")],
)
def test_votes_that_cannot_teach_are_refused_in_words(
    ranking: str, prompts: int, why: str, tiny_model: Path, tmp_path: Path
) -> None:
    """All ties; and all on a handful of prompts."""
    write_snapshot(tmp_path / "snapshot.db", ranking=ranking, prompts=prompts)
    report = execute(write_run(tmp_path, tiny_model, settings=LENIENT))
    assert (report["status"], report["adapter"]) == ("rejected", False)
    assert why in report["reasons"][0]


def test_ppo_starts_from_the_sft_weights(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = watch_ppo(monkeypatch, lambda ppo, _: ppo.roles.policy.tensors())
    write_snapshot(tmp_path / "snapshot.db", demonstrations=6)
    execute(write_run(tmp_path, tiny_model, stages=("sft", "reward", "ppo"), settings=settings(updates=1)))
    assert same(found[0], tensors(tmp_path / "sft"))


def test_the_gate_compares_with_the_version_that_serves(
    tiny_model: Path, tmp_path: Path, make_adapter: Callable[..., Path]
) -> None:
    write_snapshot(tmp_path / "snapshot.db")
    folder = write_run(tmp_path, tiny_model, settings=settings(updates=1))
    alone = execute(folder)["gate"]["parent"]["kl"]
    make_adapter(folder / "parent", tiny_model, rank=4)
    beside = execute(folder)["gate"]["parent"]["kl"]
    assert alone == pytest.approx(0, abs=0.01), "the base is its own reference"
    assert beside > 1


def test_the_gate_asks_what_ppo_never_did(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, list[Any]] = {"ppo": [], "run": []}
    for name, module in (("ppo", ppo), ("run", run)):
        sample = module.sample

        def noted(engine: Any, place: int, prompts: Sequence[Any], _name: str = name, _sample: Any = sample,
                  **named: Any) -> Any:  # fmt: skip
            asked[_name].append(list(map(tuple, prompts)))
            return _sample(engine, place, prompts, **named)

        monkeypatch.setattr(module, "sample", noted)
    write_snapshot(tmp_path / "snapshot.db")
    execute(write_run(tmp_path, tiny_model, settings=settings(rollouts=64)))
    normalised_on, of_parent, of_version = asked["run"]
    assert of_parent == of_version and len(set(of_parent)) == 4
    learned_from = {prompt for prompts in (normalised_on, *asked["ppo"]) for prompt in prompts}
    assert len(learned_from) > 20 and not learned_from & set(of_parent)


def test_scores_have_mean_0_and_deviation_1_on_the_references_answers(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = watch_ppo(monkeypatch, lambda _, batch: batch)
    write_snapshot(tmp_path / "snapshot.db")
    report = execute(write_run(tmp_path, tiny_model, settings=settings(rollouts=64, updates=1)))
    before = report["reward"]["normalisation"]
    assert abs(before["mean"]) > 1, "or there was nothing to do"
    assert abs(float(batches[0].scores.mean())) < 0.5
    assert 0.6 < float(batches[0].scores.std()) < 1.6


class Killed(BaseException):
    """As SIGKILL: nothing in the run catches it."""


@pytest.fixture
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_run_killed_in_every_stage_ends_with_the_same_bits(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are three updates apart."""
    reporter = Reporter.__call__
    deadly: list[tuple[str, int]] = []

    def told(self: Reporter, stage: str, step: int, done: float, metrics: Mapping[str, float]) -> None:
        reporter(self, stage, step, done, metrics)
        if deadly and (stage, step) == deadly[0]:
            del deadly[0]
            raise Killed

    monkeypatch.setattr(Reporter, "__call__", told)
    folders = tmp_path / "whole", tmp_path / "killed"
    for folder in folders:
        folder.mkdir()
        write_snapshot(folder / "snapshot.db", demonstrations=6)
        asked = {**settings(updates=7, rollouts=8), "checkpoint_updates": 3}
        write_run(folder, tiny_model, stages=("sft", "reward", "ppo"), settings=asked)
    whole = execute(folders[0])
    deadly += [("sft", 1), ("reward", 40), ("ppo", 2), ("ppo", 5), ("gate", 2)]
    kills = len(deadly)
    for _ in range(kills):
        with pytest.raises(Killed):
            execute(folders[1])
    assert json.loads(json.dumps(execute(folders[1]))) == json.loads(json.dumps(whole))
    assert same(*(tensors(folder / "adapter") for folder in folders))
    steps = [line["step"] for line in metrics_lines(folders[1]) if line["stage"] == "ppo" and line["metrics"]]
    assert steps == [1, 2, 1, 2, 3, 4, 5, 4, 5, 6, 7, 8, 7, 8], "from the last checkpoint, 3 or 6"


def test_a_torn_sft_adapter_is_made_anew(tiny_model: Path, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", votes=0, demonstrations=6)
    folder = write_run(tmp_path, tiny_model, stages=("sft",), settings=LENIENT)
    execute(folder)
    made = tensors(folder / "sft")
    (folder / "sft").rename(folder / "sft.part")  # killed before it was renamed
    shutil.rmtree(folder / "adapter")
    assert execute(folder)["adapter"]
    assert same(tensors(folder / "sft"), made)
