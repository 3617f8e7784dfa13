"""What simulated voters ask, and what is held out from them."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.prompts import (
    HELD_OUT,
    HELD_OUT_HARMFUL,
    VOTED,
    VOTED_HARMFUL,
    held_out_harmful,
    held_out_prompts,
    voted_harmful,
    voted_prompts,
)
from benchmarks.voters import (
    words,
)

ROOT = Path(__file__).parent.parent


def runs_of_words(prompts: list[str], length: int) -> set[tuple[str, ...]]:
    split = [words(prompt) for prompt in prompts]
    return {tuple(found[i : i + length]) for found in split for i in range(len(found) - length + 1)}


ALL_VOTED = [*voted_prompts(), *voted_harmful()]
ALL_HELD_OUT = [*held_out_prompts(), *held_out_harmful()]


def test_there_are_enough_different_prompts() -> None:
    voted, held_out = ALL_VOTED, ALL_HELD_OUT
    assert len(voted) == len(set(voted)) >= 170
    assert len(held_out) == len(set(held_out)) >= 200
    assert not [prompt for prompt in voted + held_out if "{" in prompt or "|" in prompt or "  " in prompt]


def test_held_out_prompts_share_no_wording_with_voted_or_shipped_ones() -> None:
    file = ROOT / "serve" / "feedback" / "shipped" / "prompts.jsonl"
    shipped = [json.loads(line)["prompt"] for line in file.read_text(encoding="utf-8").splitlines()]
    held_out = runs_of_words(ALL_HELD_OUT, 4)
    assert not held_out & runs_of_words(ALL_VOTED, 4)
    assert not held_out & runs_of_words(shipped, 4)
    assert not runs_of_words(ALL_VOTED, 4) & runs_of_words(shipped, 4)


def test_held_out_prompts_share_no_template_and_no_topic_with_voted_ones() -> None:
    openings = [
        {tuple(words(template)[:2]) for template, _ in families}
        for families in (VOTED + VOTED_HARMFUL, HELD_OUT + HELD_OUT_HARMFUL)
    ]
    assert not openings[0] & openings[1]
    topics = [
        {word for _, fillings in families for filling in fillings for word in words(filling) if len(word) > 3}
        for families in (VOTED + VOTED_HARMFUL, HELD_OUT + HELD_OUT_HARMFUL)
    ]
    assert not topics[0] & topics[1]


def test_the_first_held_out_prompts_are_a_mixture_of_all_templates() -> None:
    first = held_out_prompts()[: len(HELD_OUT)]
    assert len({words(prompt)[0] + words(prompt)[1] for prompt in first}) > len(HELD_OUT) * 0.9
