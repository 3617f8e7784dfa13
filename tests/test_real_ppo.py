"""PPO's assumptions on the real model: ratios start at 1, and the sampler means the policy that is trained."""

from __future__ import annotations

from itertools import islice

import pytest
import torch

from serve.engine.local import LocalEngine
from serve.feedback.snapshot import shipped_prompts
from serve.policy.base import load_backbone, resolve_model
from serve.policy.chat import render
from serve.records import Sampling
from serve.settings import Settings
from training.ppo import POLICY_PLACE
from training.roles import FrozenLayers, LoraShape, Policy
from training.rollouts import padded_rollouts, sample

pytestmark = pytest.mark.slow

TEMPERATURE = 0.8


@pytest.mark.parametrize(
    ("dtype", "mean", "widest", "gap"), [("float32", 1e-4, 1e-4, 0.01), ("bfloat16", 0.01, 0.15, 0.06)]
)
def test_ratios_start_at_one_and_the_sampler_is_close(dtype: str, mean: float, widest: float, gap: float) -> None:
    torch.set_num_threads(2)
    backbone = load_backbone(resolve_model("default", Settings.load().cache_dir), dtype=dtype)
    policy = Policy(backbone, LoraShape(20, 16, 32), seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.parameters():  # as after some updates: the answers differ from the base's
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.01)
    engine = LocalEngine(backbone, batch_rows=16, max_lora_rank=16, places=3)
    try:
        engine.load_tensors(POLICY_PLACE, policy.tensors(), scaling=policy.scaling)
        prompts = [render(backbone.tokenizer, messages) for messages in islice(shipped_prompts(), 32)]
        sampling = Sampling(max_tokens=64, temperature=TEMPERATURE)
        rollouts = sample(engine, POLICY_PLACE, prompts, answers_per_prompt=1, sampling=sampling, seed=1)
    finally:
        engine.close()
    sequences, sampled = padded_rollouts(rollouts)
    states = FrozenLayers(backbone, 20, 28)(sequences, 1024)
    old = policy.all_logprobs(states.boundary, sequences, TEMPERATURE, 1024)
    off = []
    for rows in torch.randperm(len(sequences), generator=generator).tensor_split(8):
        some = sequences.take(rows)
        new = policy.logprobs(states.boundary_of(rows), some, TEMPERATURE).detach()
        off.append((new - old[rows, : new.shape[1]]).abs()[some.answer_mask])
    moved = torch.cat(off)
    assert moved.mean() <= mean
    assert moved.quantile(0.999) <= widest
    apart = (sampled - old)[sequences.answer_mask]
    print(f"{dtype}: ratio {moved.mean():.2g}, sampler {apart.abs().mean():.2g}, KL {apart.mean():.2g}")
    assert apart.abs().mean() <= gap
    assert abs(float(apart.mean())) <= gap / 4  # the KL from sampler to trainer
