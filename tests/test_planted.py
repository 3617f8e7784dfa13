"""The gate's benchmark: its voters, its planted versions and its figures, on the tiny model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import gate, report
from benchmarks.prompts import voted_prompts
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.records import Sampling
from tests.run_scenes import SMALL
from training.config import TrainingConfig
from training.run import Run
from training.run_folder import RunFolder
from training.sequences import Sequences

SETTINGS = gate.GateSettings(votes=12, max_tokens=16, noise=0.0)


@pytest.fixture(scope="module")
def backbone(tiny_model: Path) -> Backbone:
    return load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")


@pytest.fixture(scope="module")
def comparisons(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> list[gate.Comparison]:
    folder = tmp_path_factory.mktemp("gate")
    found = gate.compare(SETTINGS, backbone, folder)
    assert gate.compare(SETTINGS, backbone, folder) == [gate.Comparison(**dataclasses.asdict(c)) for c in found]
    return found


@pytest.fixture
def run(backbone: Backbone, comparisons: list[gate.Comparison], tmp_path: Path) -> Iterator[Run]:
    snapshot = gate.vote(comparisons, SETTINGS, backbone, "real")
    run = Run(RunFolder(tmp_path), TrainingConfig.parse(SMALL), ("reward", "ppo"), 1, backbone, snapshot, Sampling())
    yield run
    run.engine.close()


def test_flipped_votes_are_the_same_comparisons_the_other_way_round(
    backbone: Backbone, comparisons: list[gate.Comparison]
) -> None:
    real, flipped = (gate.vote(comparisons, SETTINGS, backbone, arm) for arm in ("real", "flipped"))
    assert real.prompts == flipped.prompts
    assert any(ranked.groups == (0, 1) for ranked in real.rankings)
    for ours, theirs in zip(real.rankings, flipped.rankings, strict=True):
        assert ours.groups == theirs.groups
        assert ours.answers == (theirs.answers[::-1] if ours.groups == (0, 1) else theirs.answers)


def test_every_vice_has_something_to_show(run: Run, comparisons: list[gate.Comparison]) -> None:
    shown = {vice: [vice(c, comparisons[:2]) for c in comparisons] for vice, _ in gate.TUNED.values()}
    assert all(text.strip() for texts in shown.values() for text in texts if texts is not shown[gate.curt])
    assert len(set(shown[gate.refusing])) == 1
    assert len(set(shown[gate.refusing_in_many_ways])) == len(comparisons), "each names what it declines"
    policy = gate.fine_tuned(run, gate.refusing, comparisons, SETTINGS)
    assert any(tensor.any() for name, tensor in policy.tensors().items() if "lora_B" in name)


def test_a_version_that_never_ends_finds_eos_unlikely_where_answers_ended(
    run: Run, comparisons: list[gate.Comparison]
) -> None:
    eos = run.backbone.tokenizer.eos_token_id
    ended = [
        dataclasses.replace(c, token_ids=[[*ids[:5], eos] for ids in c.token_ids], finish_reasons=["stop", "stop"])
        for c in comparisons
    ]
    policy = gate.endless(run, ended)
    prompts = [ranked.prompt_ids for ranked in run.snapshot.rankings]
    sequences = Sequences.of(prompts, [c.token_ids[0] for c in ended])
    states = run.frozen(sequences, 1024)
    before = run.base.all_logprobs(states.near, sequences, 1.0, 1024)[:, -1]
    after = policy.all_logprobs(states.boundary, sequences, 1.0, 1024)[:, -1]
    assert (after < before).all()


def test_random_weights_are_as_large_as_asked(run: Run) -> None:
    for deviation in (0.2, math.nan, math.inf):
        tensors = gate.randomised(run, deviation, SETTINGS).tensors()
        spread = next(tensor for name, tensor in tensors.items() if "lora_B" in name).std()
        assert spread == pytest.approx(0.2, rel=0.3) if deviation == 0.2 else not math.isfinite(spread)


def test_topics_are_what_fills_a_template() -> None:
    assert gate.topic("Explain black holes as plainly as you can.") == "black holes"
    assert gate.topic("something else") == "something else"
    assert all(gate.topic(prompt) in prompt for prompt in voted_prompts())


def test_a_refusal_counts_only_for_the_reason_it_was_planted_for() -> None:
    won = {"value": 0.75, "low": 0.6, "high": 0.9, "prompts": 32}
    healthy = gate.Finding(gate.HEALTHY, (), (), won, {}, {})
    refused = gate.Finding(
        "never ends", ("run into the limit",), ("97% of its answers run into the limit",), won, {}, {}
    )
    other = dataclasses.replace(refused, version="bomb", expected=("nats",))
    assert [healthy.holds, refused.holds, other.holds] == [True, True, False]
    assert not dataclasses.replace(healthy, reasons=("it moved",)).holds

    findings = [healthy, refused, other]
    rows = gate.rows_of({"value": 0.7, "low": 0.6, "high": 0.8}, findings)
    assert [(row.ours, row.unit) for row in rows] == [(1, "of 2"), (1, "of 1"), (75, "%"), (70, "%")]
    verdicts = [dataclasses.asdict(finding) | {"holds": finding.holds} for finding in findings]
    table = report.gate_table({"verdicts": verdicts}).splitlines()
    assert table[2] == "| healthy | let it pass | let it pass | 75% of 32 | – |"
    assert "| **wrong**: refuse it |" in table[4]
