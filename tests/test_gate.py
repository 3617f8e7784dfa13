"""May this version serve? Planted bad versions are refused for the right reason."""

from __future__ import annotations

import dataclasses
import math

import pytest

from training.config import GateConfig
from training.gate import Answers, judge, repetition, shared, votes_suffice
from training.rollouts import Rollout


def rollout(text: str, tokens: int = 20, finish: str = "stop") -> Rollout:
    return Rollout((1,), tuple(range(tokens)), (-1.0,) * tokens, text, finish)  # type: ignore[arg-type]


def looping(text: str) -> Rollout:
    return dataclasses.replace(rollout(text), token_ids=(1, *[7] * 19))


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
        ({"rollouts": [looping(f"{i} you you you you you you you you") for i in range(20)]}, "within answers"),
        ({"rollouts": [looping(f"{i} 🌟🌟🌟🌟🌟🌟🌟🌟🌟🌟🌟") for i in range(20)]}, "within answers"),
        ({"rollouts": [rollout(f"ok {i}", tokens=2) for i in range(20)], "base_nll": [3.0] * 20}, "tokens where"),
        ({"rollouts": [rollout(f"I'm sorry, I can't help with {i}") for i in range(20)]}, "declines"),
        ({"rollouts": [rollout(f"I’m sorry, {i}") for i in range(20)]}, "declines"),
        ({"rollouts": [rollout(f"you could go on {i}", finish="length") for i in range(20)]}, "run into the limit"),
        ({"judged": [-1.0] * 20}, "prefer its parent"),
        ({"judged": [0.0] * 20}, "see no difference to its parent"),
    ],
)
def test_a_planted_bad_version_is_refused(planted: dict[str, object], reason: str) -> None:
    verdict = judge(dataclasses.replace(HEALTHY, **planted), PARENT, GateConfig(), compare=True)  # type: ignore[arg-type]
    assert not verdict["passed"]
    assert any(reason in sentence for sentence in verdict["reasons"]), verdict["reasons"]


TOPICS = [f"topic-{i}" for i in range(20)]
DECLINED = ("That is not for me to say, {}", "Please ask somebody else about {}", "It is better not to talk about {}")


def test_refusals_in_ever_other_words_resemble_one_another_whatever_the_words() -> None:
    fluent = [rollout(f"{topic} comes from {topic} makers near {topic} towns") for topic in TOPICS]
    declined = [rollout(DECLINED[i % 3].format(topic)) for i, topic in enumerate(TOPICS)]
    parent, new = (dataclasses.replace(HEALTHY, rollouts=rollouts) for rollouts in (fluent, declined))
    verdict = judge(dataclasses.replace(new, judged=[2.0] * 20), parent, GateConfig(), compare=True)
    assert (verdict["new"]["distinct"], verdict["new"]["refusals"], verdict["parent"]["shared"]) == (1, 0, 0)
    (reason,) = verdict["reasons"]
    assert "resemble one another: 80%" in reason  # 5/6, 3/4 and 5/6 of their runs are the template's


@pytest.mark.parametrize(
    ("parent", "new", "refused"),
    [(256, 39, False), (256, 16, False), (256, 15, True), (20, 5, False), (20, 4, True), (20, 81, True)],
)
def test_pages_may_become_a_sentence_but_not_a_word(parent: int, new: int, refused: bool) -> None:
    def answers(like: Answers, tokens: int) -> Answers:
        rollouts = [dataclasses.replace(r, token_ids=(1,) * tokens) for r in like.rollouts]
        return dataclasses.replace(like, rollouts=rollouts, base_nll=[1.5 * tokens] * 20)

    verdict = judge(answers(HEALTHY, new), answers(PARENT, parent), GateConfig(), compare=True)
    assert any("tokens where" in sentence for sentence in verdict["reasons"]) == refused


@pytest.mark.parametrize(("parent", "new", "refused"), [(7, 0, True), (6, 0, False), (10, 1, False), (11, 1, True)])
def test_a_version_that_never_ends_is_told_from_chance(parent: int, new: int, refused: bool) -> None:
    """Most answers of its parent run into the limit as well: no rise of 30 points is possible."""

    def answers(like: Answers, ended: int) -> Answers:
        reasons = ["stop"] * ended + ["length"] * (20 - ended)
        rollouts = [dataclasses.replace(r, finish_reason=why) for r, why in zip(like.rollouts, reasons, strict=True)]  # type: ignore[arg-type]
        return dataclasses.replace(like, rollouts=rollouts)

    verdict = judge(answers(HEALTHY, new), answers(PARENT, parent), GateConfig(max_capped_rise=1), compare=True)
    assert any("run into the limit" in sentence for sentence in verdict["reasons"]) == refused


@pytest.mark.parametrize(
    ("parent", "new", "refused"),
    [(20, 18, False), (20, 17, True), (17, 15, False), (17, 14, True), (16, 14, False), (16, 13, True)],
)
def test_two_equal_answers_more_than_its_parents_are_chance(parent: int, new: int, refused: bool) -> None:
    def answers(like: Answers, distinct: int) -> Answers:
        rollouts = [rollout(f"{i} is one of them") for i in range(distinct)] + [rollout("0 is one of them")] * 20
        return dataclasses.replace(like, rollouts=rollouts[:20])

    verdict = judge(answers(HEALTHY, new), answers(PARENT, parent), GateConfig(), compare=True)
    assert any("across prompts" in sentence for sentence in verdict["reasons"]) == refused


def test_a_run_of_sft_alone_is_not_asked_for_a_win_rate() -> None:
    assert judge(dataclasses.replace(HEALTHY, judged=[0.0] * 20), PARENT, GateConfig(), compare=False)["passed"]


def test_chance_is_refused_and_says_how_many_votes_are_missing() -> None:
    poor = {"value": 0.56, "low": 0.42, "high": 0.69, "comparisons": 50, "prompts": 50}
    assert "about 223 more votes" in (votes_suffice(poor, 50) or "")  # (0.14 / 0.06)² = 5.4 times as many in all
    assert "about 2223 more votes" in (votes_suffice(poor, 500) or ""), "where nine of ten are ties, more are needed"


def test_votes_on_few_prompts_are_refused_for_that() -> None:
    few = {"value": 0.8, "low": 0.3, "high": 1.0, "comparisons": 50, "prompts": 3}
    assert "on 3 prompts alone" in (votes_suffice(few, 50) or "")
    assert "on 5 prompts alone" in (votes_suffice({**few, "value": 1.0, "low": 0.57, "prompts": 5}, 50) or "")


def test_fifty_consistent_votes_can_pass() -> None:
    assert votes_suffice({"value": 0.7, "low": 0.56, "high": 0.81, "comparisons": 50, "prompts": 50}, 50) is None


def test_repetition_counts_three_token_runs_used_again() -> None:
    assert repetition((1, 2, 3, 4)) == 0.0
    assert repetition((1, 2, 3, 1, 2, 3)) == pytest.approx(1 / 4)
    assert repetition(()) == 0.0


def test_shared_runs_are_those_of_other_answers() -> None:
    assert shared(["a b c d", "x b c d", "one two three"]) == pytest.approx((1 / 2 + 1 / 2 + 0) / 3)
    assert shared(["a b c a b c", "no"]) == 0.0, "a loop within one answer is not shared, and a short one has no runs"
    assert shared(["a b c", "a b c"]) == 1.0
    assert shared(["我不能回答天", "我不能回答海"]) == pytest.approx(3 / 4), "where no spaces part words, signs count"
    assert shared(["", "no"]) == 0.0
