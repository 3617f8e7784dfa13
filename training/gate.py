"""May this version serve? Four checks; each refusal is a plain sentence.

1. Before PPO: the reward model's out-of-fold accuracy has a 95% lower bound above one half, on six prompts or more.
2. KL to the reference is bounded and everything is finite.
3. Nothing has collapsed: length, repetition, distinct answers, endings, refusals, likelihood under the base.
4. The fold models, which PPO did not train on, prefer its answers to its parent's on prompts that PPO did not see.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.feedback.statistics import win_rate
from training.config import GateConfig
from training.rollouts import Rollout

REFUSAL = re.compile(
    r"\b(?:i(?:['’]m| am) (?:sorry|unable|not able)|i (?:can(?:no|['’])t|won['’]t|will not)|as an ai)\b", re.IGNORECASE
)

UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Signs of Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
FEW_PROMPTS = 6
"""With votes on fewer prompts, a reward model that knows nothing is often right on all of them by luck."""
UNABLE = "the engine can answer with its parent, but not with it: its weights are broken"


@dataclass(frozen=True)
class Answers:
    """What one version answered to the held-out prompts, and what the models say of it; one number an answer."""

    rollouts: Sequence[Rollout]
    kl: Sequence[float]
    """Nats to the reference."""
    base_nll: Sequence[float]
    """Negative log-likelihood under the base, in nats, summed over the answer."""
    judged: Sequence[float]
    """The fold models' score."""


def votes_suffice(accuracy: dict[str, float], rankings: int) -> str | None:
    """Check 1: None, or the sentence that refuses. `accuracy` is what `reward.accuracy_of` gives, of so many votes."""
    if 0 < accuracy["prompts"] < FEW_PROMPTS:
        return (
            f"the votes that prefer an answer are on {accuracy['prompts']:.0f} prompts alone, too few to hold some out "
            f"and judge by them: vote on others, too, {FEW_PROMPTS} at the least"
        )
    if accuracy["low"] > 0.5:
        return None
    lead = accuracy["value"] - 0.5
    if lead < 0.02:
        return (
            f"the reward model cannot yet tell chosen from rejected answers ({accuracy['value']:.0%} of "
            f"{accuracy['comparisons']:.0f} unseen comparisons): about {max(50, rankings)} more votes, or clearer ones"
        )
    # The interval narrows with the root of the votes: with so many times as many it would end at one half
    times = ((accuracy["value"] - accuracy["low"]) / lead) ** 2
    missing = max(10, math.ceil(rankings * (times - 1)))
    return (
        f"the reward model is right on {accuracy['value']:.0%} of {accuracy['comparisons']:.0f} unseen comparisons, "
        f"which could still be chance (at least {accuracy['low']:.0%}): about {missing} more votes"
    )


def judge(new: Answers, parent: Answers, config: GateConfig, *, compare: bool) -> dict[str, Any]:
    """Checks 2–4 → {"passed", "reasons", "win_rate", "new": {...}, "parent": {...}}.

    Without `compare` there are no fold models (a run of SFT alone), and check 4 is left out.
    """
    after, before = (
        describe(answers.rollouts, sum(answers.base_nll)) | {"kl": statistics.fmean(answers.kl)}
        for answers in (new, parent)
    )
    wins = sum(a > b for a, b in zip(new.judged, parent.judged, strict=True))
    losses = sum(a < b for a, b in zip(new.judged, parent.judged, strict=True))
    rate = win_rate(wins, losses)
    reasons = []

    def refuse(bad: bool, sentence: str) -> None:
        if bad:
            reasons.append(sentence)

    finite = all(math.isfinite(x) for x in (*after.values(), *new.judged))
    refuse(not finite, "its numbers are not finite: the weights are broken")
    refuse(
        after["kl"] > config.max_kl,
        f"it moved {after['kl']:.1f} nats an answer from the reference; the bound is {config.max_kl:g}",
    )
    reasons += collapsed(after, before, len(new.rollouts), config)
    refuse(
        compare and wins + losses == 0,
        f"the fold models see no difference to its parent on any of {len(new.judged)} held-out prompts",
    )
    refuse(
        compare and wins + losses > 0 and rate.value <= 0.5,
        f"the fold models prefer its parent: it wins {rate.value:.0%} of {wins + losses} held-out prompts",
    )
    return {
        "passed": not reasons,
        "reasons": reasons,
        "win_rate": {"value": rate.value, "low": rate.low, "high": rate.high, "prompts": wins + losses},
        "new": after,
        "parent": before,
    }


def describe(rollouts: Sequence[Rollout], nll: float) -> dict[str, float]:
    """What check 3 looks at, as shares and means over answers. `nll`: of all of them together, in nats."""
    lengths = [len(r.token_ids) for r in rollouts]
    return {
        "nll": nll / sum(lengths),
        "length": statistics.median(lengths),
        "distinct": len({r.text.strip() for r in rollouts}) / len(rollouts),
        "shared": shared([r.text for r in rollouts]),
        "repetition": statistics.fmean(repetition(r.token_ids) for r in rollouts),
        "refusals": statistics.fmean(bool(REFUSAL.search(r.text)) for r in rollouts),
        "capped": statistics.fmean(r.finish_reason == "length" for r in rollouts),
    }


def collapsed(after: Mapping[str, float], before: Mapping[str, float], answers: int, config: GateConfig) -> list[str]:
    """Check 3: what is wrong with a policy beside the one before it, both described by so many answers."""
    reasons = []

    def refuse(bad: bool, sentence: str) -> None:
        if bad:
            reasons.append(sentence)

    refuse(
        after["nll"] > before["nll"] + config.max_nll_rise,
        f"the base finds its text unlikely: {after['nll']:.2f} nats a token against its parent's {before['nll']:.2f}",
    )
    refuse(  # two more that are equal are chance
        round(after["distinct"] * answers)
        < min(config.min_distinct * answers, round(before["distinct"] * answers) - 2),
        f"it repeats itself across prompts: only {after['distinct']:.0%} of its answers differ",
    )
    refuse(
        after["shared"] > before["shared"] + config.max_shared_rise,
        f"its answers resemble one another: {after['shared']:.0%} of their three-word runs stand in answers to other "
        f"prompts, too, its parent's {before['shared']:.0%}",
    )
    refuse(
        after["repetition"] > before["repetition"] + config.max_repetition_rise,
        f"it repeats itself within answers: {after['repetition']:.0%} of its three-token runs come again",
    )
    shortest = min(before["length"] / config.length_factor, config.length_floor)
    refuse(
        not shortest <= after["length"] <= before["length"] * config.length_factor,
        f"its answers have {after['length']:.0f} tokens where its parent's have {before['length']:.0f}",
    )
    refuse(
        after["refusals"] > before["refusals"] + config.max_refusal_rise,
        f"it declines {after['refusals']:.0%} of prompts, its parent {before['refusals']:.0%}",
    )
    ended, ended_before = (round((1 - x["capped"]) * answers) for x in (after, before))
    refuse(
        after["capped"] > before["capped"] + config.max_capped_rise
        or (ended + 2) * config.ending_factor < ended_before + 2,  # two more each: chance with few is no reason
        f"{after['capped']:.0%} of its answers run into the limit, its parent's {before['capped']:.0%}",
    )
    return reasons


def repetition(tokens: Sequence[int]) -> float:
    """Share of an answer's three-token runs that it has used before: 0 for fresh text, towards 1 for a loop.

    Of tokens, for not all that repeats itself is made of words.
    """
    runs = list(zip(tokens, tokens[1:], tokens[2:], strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def shared(texts: Sequence[str]) -> float:
    """Share of an answer's three-word runs that other answers have, too; the mean over answers.

    Towards 1 where prompts no longer matter: one answer for all, or refusals in ever other words, in any language. A
    sign of a script without spaces between words counts as one.
    """
    by_answer = [_runs(text) for text in texts]
    answers_with = Counter(run for runs in by_answer for run in set(runs))
    shares = [sum(answers_with[run] > 1 for run in runs) / len(runs) for runs in by_answer if runs]
    return statistics.fmean(shares) if shares else 0.0


def _runs(text: str) -> list[tuple[str, ...]]:
    words = UNSPACED.sub(r" \g<0> ", text.lower()).split()
    return list(zip(words, words[1:], words[2:], strict=False))
