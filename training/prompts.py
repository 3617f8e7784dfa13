"""Prompts for rollouts and for the gate: what people asked, and what the project ships."""

from __future__ import annotations

import bisect
import hashlib
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
    prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, longest: int, held_out: int
) -> tuple[PromptPool, list[tuple[int, ...]]]:
    """The pool that PPO samples from, and the prompts kept from it for the gate.

    Prompts of more than `longest` tokens are left out, and those that nobody asked but for a test. Equal prompts are
    one. What was imported or demonstrated weighs at most as much as all else together.

    At most half of all are held out, the same in every run, so that no version is judged on prompts that one before it
    learned from; last of all those that are asked all the time, or by nobody here, or whose answer SFT has seen.
    """
    own: dict[tuple[int, ...], float] = {}
    brought: dict[tuple[int, ...], float] = {}
    hashes: dict[tuple[int, ...], bytes] = {}
    demonstrated = set()
    for prompt in prompts:
        ids = tuple(render(tokenizer, prompt.messages))
        weight = float(prompt.asked) or (SHIPPED_WEIGHT if prompt.source == "shipped" else 0.0)
        if not weight or len(ids) > longest:
            continue
        if prompt.source == "demonstrated":
            demonstrated.add(ids)
        group = brought if prompt.source in ("imported", "demonstrated") else own
        group[ids] = group.get(ids, 0.0) + weight
        hashes[ids] = hashlib.sha256(repr(prompt.messages).encode()).digest()
    total, others = sum(own.values()), sum(brought.values())
    scale = min(1.0, total / others) if total and others else 1.0
    weights = {ids: own.get(ids, 0.0) + scale * brought.get(ids, 0.0) for ids in own | brought}
    busy = HELD_OUT_SHARE * sum(weights.values())
    late = {ids for ids in weights if ids in demonstrated or ids not in own or weights[ids] > busy}
    ordered = sorted(weights, key=lambda ids: (ids in late, hashes[ids]))  # a new one displaces none but those held out
    kept = min(held_out, len(ordered) // 2)
    pool = ordered[kept:]
    return PromptPool(tuple(pool), tuple(weights[ids] for ids in pool)), ordered[:kept]
