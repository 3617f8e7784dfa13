"""Held-out answers to figures: is the text still text, who wins, and what is said of it?"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from benchmarks import loop_result
from benchmarks.fluency import Fluency, SavedAnswer, complaints, mean_nll, measure
from benchmarks.voters import (
    PREFERENCES,
)
from serve.policy.base import load_backbone, resolve_model


def saved(*texts: str, version: int = 0, reason: str = "stop") -> list[SavedAnswer]:
    return [SavedAnswer(i, f"prompt {i}", version, 100 + i, text, reason) for i, text in enumerate(texts)]


def test_fluency_figures_by_hand() -> None:
    figures = measure([*saved("one two three", "One, two three!"), *saved("a", reason="length")], nll=1.5)
    assert figures == Fluency(distinct=2 / 3, median_words=3, nll=1.5, capped=1 / 3)


def test_text_that_is_no_longer_text_is_complained_about() -> None:
    base = Fluency(distinct=1.0, median_words=40, nll=1.0, capped=0.5)
    assert complaints(Fluency(0.9, 8, 1.5, 0.0), base) == []
    found = complaints(Fluency(0.5, 7, 1.6, 0.0), base)
    assert len(found) == 3 and "50%" in found[0] and "7 words" in found[1] and "0.60 nats" in found[2]
    assert complaints(Fluency(1.0, 40, math.nan, 0.0), base)


def test_likelihood_counts_the_answers_tokens_and_the_eos_only_where_it_ended_by_itself(tiny_model: Path) -> None:
    from serve.policy.chat import render
    from serve.records import Message

    torch.set_num_threads(1)
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")
    prompt = render(backbone.tokenizer, [Message("user", "prompt 0")])

    def by_hand(ids: list[int]) -> float:
        total, sequence = 0.0, list(prompt)
        for token in ids:
            with torch.no_grad():
                total -= float(backbone.model(torch.tensor([sequence])).logits[0, -1].log_softmax(-1)[token])
            sequence.append(token)
        return total / len(ids)

    text = list(backbone.tokenizer.encode("abc", add_special_tokens=False))
    assert mean_nll(backbone, saved("abc", reason="length")) == pytest.approx(by_hand(text), abs=1e-4)
    assert mean_nll(backbone, saved("abc")) == pytest.approx(by_hand([*text, 2]), abs=1e-4)
    assert math.isnan(mean_nll(backbone, saved("", reason="length")))


def test_a_contest_counts_ties_beside_the_win_rate() -> None:
    ours = saved("a", "a b c d", "a b", "a", version=3)
    base = saved("a b c", "a", "a b", "a b c d")
    found = loop_result.contest(loop_result.outcomes(PREFERENCES["brevity"], ours, base))
    assert (found.wins, found.losses, found.ties) == (2, 1, 1)
    assert found.win_rate == pytest.approx(2 / 3)
    assert found.low == pytest.approx(0.2077, abs=1e-3) and found.high == pytest.approx(0.9385, abs=1e-3)


def test_a_contest_needs_the_same_prompts_and_seeds() -> None:
    with pytest.raises(ValueError, match="same prompts"):
        loop_result.outcomes(PREFERENCES["brevity"], saved("a", "b"), saved("a"))


def test_pooled_chains_keep_a_prompts_answers_together() -> None:
    chain: loop_result.Outcomes = {i: 0 if i % 4 else 1 for i in range(100)}  # three of four won
    rate, low, high = loop_result.pooled([chain, chain, chain])
    alone = loop_result.contest(chain)
    assert rate == 0.75 and alone.low is not None and alone.high is not None
    assert high - low == pytest.approx(alone.high - alone.low, abs=0.03), "thrice the same prompts tell no more"
    assert loop_result.pooled([chain, dict.fromkeys(range(100))])[0] == pytest.approx(0.625)


def test_a_difference_of_chains_is_on_the_same_prompts() -> None:
    good: loop_result.Outcomes = dict.fromkeys(range(30), 0)
    bad: loop_result.Outcomes = dict.fromkeys(range(30), 1)
    half: loop_result.Outcomes = {prompt: prompt % 2 for prompt in range(30)}
    assert loop_result.difference([good, good], [bad]) == (1.0, 1.0, 1.0)
    assert loop_result.difference([half], [half]) == (0.0, 0.0, 0.0), "a prompt that was won is won in both"
    rate, low, high = loop_result.difference([good], [half])
    assert rate == 0.5 and low < 0.5 < high


def test_verdicts_follow_the_issue() -> None:
    def contest(rate: float, low: float, high: float) -> loop_result.Contest:
        return loop_result.Contest(1, 1, 1, rate, low, high)

    good, thin, bad = contest(0.86, 0.8, 0.9), contest(0.6, 0.49, 0.75), contest(0.3, 0.2, 0.4)
    for arm, votes, status, found, wrong, holds in (
        ("real", 100, "succeeded", good, [], True),
        ("real", 300, "succeeded", good, [], True),
        ("real", 1000, "succeeded", good, [], False),
        ("real", 100, "rejected", good, [], False),
        ("real", 100, "succeeded", thin, [], False),
        ("real", 100, "succeeded", good, ["the median answer has 2 words"], False),
        ("real", 100, "rejected", None, [], False),
        ("flipped", 300, "succeeded", bad, [], True),
        ("flipped", 300, "succeeded", thin, [], False),
        ("random", 300, "succeeded", thin, [], True),
        ("random", 300, "succeeded", good, [], False),
        ("random", 300, "rejected", None, [], True),
    ):
        assert loop_result.verdict(arm, votes, status, found, wrong)[0] == holds, (arm, votes, status)
