"""Prompts for rollouts and for the gate: what people asked, and what the project ships."""

from __future__ import annotations

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


@dataclass(frozen=True)
class PromptPool:
    """Prompts to sample from (token ids), and how likely each is."""

    prompts: tuple[tuple[int, ...], ...]
    weights: tuple[float, ...]

    def draw(self, count: int, seed: int) -> list[tuple[int, ...]]:
        """`count` prompts, without repeats while the pool lasts."""
        rng = random.Random(seed)
        drawn: list[tuple[int, ...]] = []
        while len(drawn) < count:  # weighted, without replacement: largest u^(1/w) first (Efraimidis & Spirakis 2006)
            keys = [rng.random() ** (1 / weight) for weight in self.weights]
            order = sorted(range(len(keys)), key=keys.__getitem__, reverse=True)
            drawn += [self.prompts[i] for i in order[: count - len(drawn)]]
        return drawn


def split_prompts(
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, longest: int, held_out: int, seed: int
) -> tuple[PromptPool, list[tuple[int, ...]]]:
    """The pool that PPO samples from, and the prompts kept from it for the gate.

    Prompts of more than `longest` tokens are left out, and those that nobody asked but for a test. Equal prompts are
    one. At most half of all are held out.
    """
    weights: dict[tuple[int, ...], float] = {}
    for prompt in prompts:
        ids = tuple(render(tokenizer, prompt.messages))
        weight = float(prompt.asked) or (SHIPPED_WEIGHT if prompt.source == "shipped" else 0.0)
        if weight and len(ids) <= longest:
            weights[ids] = weights.get(ids, 0.0) + weight
    shuffled = sorted(weights)
    random.Random(seed).shuffle(shuffled)
    kept = min(held_out, len(shuffled) // 2)
    pool = shuffled[kept:]
    return PromptPool(tuple(pool), tuple(weights[ids] for ids in pool)), shuffled[:kept]
