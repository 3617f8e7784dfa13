"""May this version serve? Planted bad versions are refused for the right reason."""

from __future__ import annotations

import dataclasses
import math

import pytest

from training.config import GateConfig
from training.gate import Answers, judge, repetition, votes_suffice
from training.rollouts import Rollout


def rollout(text: str, tokens: int = 20, finish: str = "stop") -> Rollout:
    return Rollout((1,), tuple(range(tokens)), (-1.0,) * tokens, text, finish)  # type: ignore[arg-type]


PARENT = Answers(
    rollouts=[rollout(f"here is plan number {i} for the garden") for i in range(20)],
    kl=[1.0] * 20,
    base_nll=[30.0] * 20,
    judged=[0.0] * 20,
)
HEALTHY = dataclasses.replace(
    PARENT, rollouts=[rollout(f"you could try way {i} to plant it") for i in range(20)], judged=[1.0] * 20
)


def test_a_healthy_version_passes() -> None:
    verdict = judge(HEALTHY, PARENT, GateConfig(), compare=True)
    assert verdict["passed"]
    assert verdict["win_rate"]["value"] == 1.0


@pytest.mark.parametrize(
    ("planted", "reason"),
    [
        ({"kl": [40.0] * 20}, "nats an answer"),
        ({"kl": [math.nan] * 20}, "not finite"),
        ({"base_nll": [90.0] * 20}, "unlikely"),
        ({"rollouts": [rollout("you are great") for _ in range(20)]}, "across prompts"),
        ({"rollouts": [rollout(f"{i} you you you you you you you you") for i in range(20)]}, "within answers"),
        ({"rollouts": [rollout(f"ok {i}", tokens=2) for i in range(20)], "base_nll": [3.0] * 20}, "tokens where"),
        ({"rollouts": [rollout(f"I'm sorry, I can't help with {i}") for i in range(20)]}, "declines"),
        ({"rollouts": [rollout(f"you could go on {i}", finish="length") for i in range(20)]}, "run into the limit"),
        ({"judged": [-1.0] * 20}, "prefer its parent"),
        ({"judged": [0.0] * 20}, "see no difference to its parent"),
    ],
)
def test_a_planted_bad_version_is_refused(planted: dict[str, object], reason: str) -> None:
    verdict = judge(dataclasses.replace(HEALTHY, **planted), PARENT, GateConfig(), compare=True)  # type: ignore[arg-type]
    assert not verdict["passed"]
    assert any(reason in sentence for sentence in verdict["reasons"]), verdict["reasons"]


def test_a_run_of_sft_alone_is_not_asked_for_a_win_rate() -> None:
    assert judge(dataclasses.replace(HEALTHY, judged=[0.0] * 20), PARENT, GateConfig(), compare=False)["passed"]


def test_chance_is_refused_and_says_how_many_votes_are_missing() -> None:
    sentence = votes_suffice({"value": 0.56, "low": 0.42, "high": 0.69, "comparisons": 50}, 50)
    assert sentence is not None
    assert "about 217 more votes" in sentence  # (1.96 / 2 / 0.06)² = 267 in all


def test_fifty_consistent_votes_can_pass() -> None:
    assert votes_suffice({"value": 0.7, "low": 0.56, "high": 0.81, "comparisons": 50}, 50) is None


def test_repetition_counts_three_word_runs_used_again() -> None:
    assert repetition("a b c d") == 0.0
    assert repetition("a b c a b c") == pytest.approx(1 / 4)
    assert repetition("") == 0.0
