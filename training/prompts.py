"""Prompts for rollouts and for the gate: what people asked, and what the project ships."""

from __future__ import annotations

import bisect
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serve.policy.chat import render
from training.preferences import Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SHIPPED_WEIGHT = 0.25
"""A shipped prompt is drawn a quarter as often as one that somebody asked once."""
HELD_OUT_SHARE = 0.05
"""What makes up more of all that is asked is the last to be kept from PPO."""


@dataclass(frozen=True)
class PromptPool:
    """Prompts to sample from (token ids), and how likely each is."""

    prompts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    def draw(self, count: int, seed: int) -> list[tuple[int, ...]]:
        """`count` prompts, each as often as its share of the weights says, rounded up or down (systematic sampling)."""
        rng = random.Random(seed)
        order = rng.sample(range(len(self.prompts)), len(self.prompts))
        ends = list(itertools.accumulate(self.weights[i] for i in order))
        start = rng.random()
        marks = [(start + n) * ends[-1] / count for n in range(count)]
        return [self.prompts[order[bisect.bisect_right(ends, mark, hi=len(ends) - 1)]] for mark in marks]


def split_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, longest: int, held_out: int, seed: int
) -> tuple[PromptPool, list[tuple[int, ...]]]:
    """The pool that PPO samples from, and the prompts kept from it for the gate.

    Prompts of more than `longest` tokens are left out, and those that nobody asked but for a test. Equal prompts are
    one. At most half of all are held out, each as likely as any other, but first those that are not asked all the time.
    """
    weights: dict[tuple[int, ...], float] = {}
    for prompt in prompts:
        ids = tuple(render(tokenizer, prompt.messages))
        weight = float(prompt.asked) or (SHIPPED_WEIGHT if prompt.source == "shipped" else 0.0)
        if weight and len(ids) <= longest:
            weights[ids] = weights.get(ids, 0.0) + weight
    shuffled = sorted(weights)
    random.Random(seed).shuffle(shuffled)
    total = sum(weights.values())
    shuffled.sort(key=lambda ids: weights[ids] > HELD_OUT_SHARE * total)
    kept = min(held_out, len(shuffled) // 2)
    pool = shuffled[kept:]
    return PromptPool(tuple(pool), tuple(weights[ids] for ids in pool)), shuffled[:kept]
