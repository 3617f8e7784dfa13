"""Sampling with logprobs, on the engine that also serves: prompts in, whole answers with token ids out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from serve.engine import CandidateRequest, Engine, Finished, Generation, Output
from serve.engine.local import PREFILL_TOKENS, LocalEngine
from serve.errors import Unavailable
from serve.policy.base import Backbone
from serve.records import FinishReason, Sampling
from training.config import MAX_RANK, ROWS_IN_FLIGHT
from training.sequences import Sequences

QUEUED = 64
"""Prompts with an engine at a time: more than are answered at once, so that rows seldom wait for the oldest answer."""


@dataclass(frozen=True)
class Rollout:
    """One answer sampled from a policy."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """With the closing EOS, if the policy ended."""
    logprobs: tuple[float, ...]
    """The sampler's own, at the sampling temperature."""
    text: str
    finish_reason: FinishReason


def open_engine(backbone: Backbone) -> LocalEngine:
    """An engine for many answers at once, which nobody watches: the base, and room for three versions beside it."""
    return LocalEngine(
        backbone, batch_rows=ROWS_IN_FLIGHT, max_lora_rank=MAX_RANK, places=4, turn_tokens=PREFILL_TOKENS,
        queue_limit=QUEUED,
    )  # fmt: skip


def padded_rollouts(rollouts: Sequence[Rollout]) -> tuple[Sequences, Tensor]:
    """Rollouts as one batch, and the sampler's logprobs of their tokens (B, T), zero past an answer's end."""
    sequences = Sequences.of([r.prompt_ids for r in rollouts], [r.token_ids for r in rollouts])
    logprobs = torch.nn.utils.rnn.pad_sequence([torch.tensor(r.logprobs) for r in rollouts], batch_first=True)
    return sequences, logprobs


def sample(
    engine: Engine,
    version: int,
    prompts: Sequence[Sequence[int]],
    *,
    answers_per_prompt: int,
    sampling: Sampling,
    seed: int,
) -> list[Rollout]:
    """`answers_per_prompt` answers to each prompt, in order. Seeds are `seed`, `seed` + 1, …: one call repeats another.

    At most `QUEUED` prompts are with the engine at a time; the rest follow as answers end. Raises Unavailable when the
    engine broke an answer off.
    """
    pending = iter(enumerate(prompts))
    waiting: list[tuple[int, Generation]] = []
    done: dict[int, list[Rollout]] = {}

    def submit(index: int, prompt: Sequence[int]) -> None:
        first = seed + index * answers_per_prompt
        requests = [CandidateRequest(version, first + i) for i in range(answers_per_prompt)]
        waiting.append((index, engine.submit(prompt, requests, sampling)))

    for index, prompt in islice(pending, QUEUED):
        submit(index, prompt)
    while waiting:
        index, generation = waiting.pop(0)
        done[index] = [
            Rollout(tuple(prompts[index]), out.token_ids, out.logprobs, out.text, out.finish_reason)
            for out in _whole(generation)
        ]
        for following, prompt in islice(pending, 1):
            submit(following, prompt)
    return [rollout for index in sorted(done) for rollout in done[index]]


def _whole(generation: Generation) -> tuple[Output, ...]:
    outputs = generation.result()
    for out in outputs:
        if out.finish_reason in ("error", "cancelled"):
            why = next((e.error for e in generation if isinstance(e, Finished) and e.error), out.finish_reason)
            raise Unavailable(f"the engine broke off an answer ({why}); start the run again")
    return outputs
