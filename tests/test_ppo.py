"""Which step PPO keeps, and when it ends; what it does to a real policy is in test_run.py."""

from __future__ import annotations

import math
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from serve.feedback.snapshot import shipped_prompts
from serve.policy.base import load_backbone, resolve_model
from serve.policy.chat import render
from serve.records import Sampling
from serve.settings import Settings
from training.config import GateConfig, PPOConfig
from training.gate import describe
from training.ppo import POLICY_PLACE, PPO
from training.prompts import PromptPool
from training.roles import FrozenLayers, FrozenStates, LoraShape, Policy
from training.rollouts import Rollout, open_engine, padded_rollouts, sample
from training.sequences import Sequences


def answers(tokens: int, text: str | None) -> list[Rollout]:
    return [Rollout((1,), tuple(range(tokens)), (), text or f"answer {i}", "stop") for i in range(32)]


class Scripted(PPO):
    """PPO whose 32 rollouts measure what the script says; its one weight counts the updates.

    `tokens`: of each answer. `text`: of all answers, which else differ.
    """

    def __init__(self, script: list[dict[str, Any]], config: PPOConfig) -> None:
        self.weight = torch.nn.Parameter(torch.zeros(1))
        role = SimpleNamespace(
            parameters=lambda: [self.weight],
            trained=lambda: [self.weight],
            tensors=lambda: {"weight": self.weight.detach().clone()},
        )
        super().__init__(
            roles=SimpleNamespace(policy=role, value=role),  # type: ignore[arg-type]
            engine=None,  # type: ignore[arg-type]
            pool=PromptPool((), ()),
            config=config,
            gate=GateConfig(),
            sampling=Sampling(),
            penalise_cap=False,
            demonstrations=None,
            micro_batch_tokens=1,
            seed=0,
        )
        self.script = script
        self.trained: list[bool] = []
        self.progress.start = describe(answers(80, None), nll=32 * 80 * 1.5)

    def collect(self, update: int) -> Any:
        wanted = {"kl": 1.0, "nll": 1.5, "score": 0.0, "sampler_gap": 0.0, **self.script[update]}
        tokens, text = wanted.pop("tokens", 80), wanted.pop("text", None)
        return SimpleNamespace(
            metrics=wanted,
            rollouts=answers(tokens, text),
            sequences=SimpleNamespace(answer_mask=torch.ones(32, tokens, dtype=torch.bool)),
        )

    def improve(self, batch: Any, update: int, *, train_policy: bool) -> dict[str, float]:
        self.trained.append(train_policy)
        with torch.no_grad():
            self.weight.add_(1)
        return {}


def test_the_last_policy_is_measured_too_and_may_be_the_best() -> None:
    ppo = Scripted([{"score": float(i)} for i in range(4)], PPOConfig(updates=3, value_warmup=1))
    assert len(list(ppo.run())) == 4
    assert ppo.trained == [False, True, True]
    assert ppo.progress.best_update == 3
    assert ppo.best["weight"].item() == 3


@pytest.mark.parametrize("far", [{"kl": 7.0}, {"nll": 2.1}, {"tokens": 19}, {"text": "Great question!"}])
def test_a_step_that_went_too_far_is_not_kept_however_high_its_score(far: dict[str, Any]) -> None:
    """20 tokens are the least: a quarter above the 16 that the gate takes from any parent."""
    script = [{"score": 0.0}, {"score": 1.0, "tokens": 20}, {"score": 9.0, **far}]
    ppo = Scripted(script, PPOConfig(updates=2, kl_target=4.0, max_nll_rise=0.25))
    list(ppo.run())
    assert ppo.progress.best_update == 1
    assert ppo.best["weight"].item() == 1


def test_one_update_of_unlikely_prompts_does_not_keep_a_step_from_being_the_best() -> None:
    """A step's likelihood is smoothed: by itself each of the last two would be beyond the bound."""
    script = [{"nll": 1.2}, {"nll": 1.5, "score": 1.0}, {"nll": 1.8, "score": 2.0}, {"nll": 1.8, "score": 3.0}]
    ppo = Scripted(script, PPOConfig(updates=3, max_nll_rise=0.25))
    list(ppo.run())
    assert ppo.progress.best_update == 3


def test_the_luckiest_of_many_steps_is_not_kept() -> None:
    """Where most steps write 15 tokens one may happen to write the 20 that are the least."""
    script: list[dict[str, Any]] = [{}] + [
        {"score": 2.0, "tokens": n} for n in (80, 40, 15, 15, 15, 15, 15, 21, 15, 25, 30)
    ]
    ppo = Scripted(script, PPOConfig(updates=11))
    kept = [ppo.progress.best_update for _ in ppo.run()]
    assert kept[:3] == [0, 1, 2], "shrinking answers are kept while they are long enough"
    assert kept[3:10] == [2] * 7, "21 after many of 15: smoothed 18.7"
    assert kept[10:] == [10, 11], "25, then 30: smoothed 20.9 and 25.5"


@pytest.mark.parametrize(
    ("measured", "why"),
    [
        ({"kl": 99.0}, "passed the stop"),
        ({"kl": math.nan}, "no numbers"),
        ({"sampler_gap": math.nan}, "no numbers"),
        ({"sampler_gap": 0.3}, "sampler and trainer differ by 0.3"),
    ],
)
def test_what_cannot_be_trusted_ends_it_at_once_and_is_not_kept(measured: dict[str, float], why: str) -> None:
    ppo = Scripted([{}, {"score": 9.0, **measured}, {}], PPOConfig(updates=2, kl_stop=15))
    assert len(list(ppo.run())) == 2
    assert why in (ppo.progress.stopped or "")
    assert ppo.progress.faults
    assert ppo.progress.best_update == 0


def test_a_step_that_the_gate_would_refuse_for_its_kl_is_not_kept() -> None:
    ppo = Scripted(
        [{}, {"kl": 12.0, "score": 1.0}, {"kl": 16.0, "score": 2.0}], PPOConfig(updates=2, kl_target=20, kl_stop=50)
    )
    list(ppo.run())
    assert ppo.progress.best_update == 1, "gate.max_kl is 15"
    assert ppo.progress.faults == ["it moved 16.0 nats an answer from the reference, more than 15"]


def test_beta_waits_while_the_policy_stands_still() -> None:
    ppo = Scripted([{"kl": 0.0}] * 6, PPOConfig(updates=5, value_warmup=3, beta=0.1))
    betas = [batch.metrics.get("beta") for batch in ppo.run()]
    assert betas[:5] == [0.1] * 5, "the fifth batch is the first that a step was made before"
    assert ppo.progress.beta < 0.1


def test_beta_rises_while_kl_is_above_its_target() -> None:
    ppo = Scripted([{"kl": 8.0}] * 5, PPOConfig(updates=4, value_warmup=0, kl_target=4.0, beta=0.1))
    list(ppo.run())
    assert ppo.progress.beta > 0.5, "where KL is twice its target β doubles within three updates"


def test_beta_waits_while_the_target_rises_and_stays_where_it_is_not_adaptive() -> None:
    script = [{"kl": kl} for kl in (1.0, 2.0, 3.0, 4.0, 4.0)]
    ppo = Scripted(script, PPOConfig(updates=4, kl_target=4.0, kl_ramp=1.0, beta=0.1))
    list(ppo.run())
    assert ppo.progress.beta == pytest.approx(0.1), "KL rose as its target did"
    fixed = Scripted([{"kl": 9.0}] * 5, PPOConfig(updates=4, kl_target=4.0, adaptive_beta=False, beta=0.1))
    list(fixed.run())
    assert fixed.progress.beta == 0.1


# -- on real weights ---------------------------------------------------------------------------------------------------


def perturbed(policy: Policy, generator: torch.Generator, scale: float) -> Policy:
    """The policy as after some updates."""
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return policy


def moved(
    policy: Policy, states: FrozenStates, sequences: Sequences, old: torch.Tensor, *, parts: int, temperature: float,
    generator: torch.Generator,
) -> list[torch.Tensor]:  # fmt: skip
    """|Δ log-probability| of each token in shuffled minibatches, against that of the whole batch."""
    found = []
    for rows in torch.randperm(len(sequences), generator=generator).tensor_split(parts):
        some = sequences.take(rows)
        new = policy.logprobs(states.boundary_of(rows), some, temperature).detach()
        found.append((new - old[rows, : new.shape[1]]).abs()[some.answer_mask])
    return found


@pytest.mark.parametrize(("dtype", "mean", "widest"), [("float32", 1e-4, 1e-4), ("bfloat16", 0.01, 0.15)])
def test_a_shuffled_minibatch_starts_at_ratio_one(
    tiny_model: Path, tmp_path: Path, dtype: str, mean: float, widest: float
) -> None:
    """Whatever rows meet in a micro-batch: their log-probabilities are those that were taken of the whole batch."""
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    policy = perturbed(Policy(backbone, LoraShape(2, 4, 8), seed=0), generator, 0.1)
    lengths = [int(n) for n in torch.randint(1, 40, (24,), generator=generator)]
    texts = [torch.randint(3, 200, (n,), generator=generator).tolist() for n in lengths]
    sequences = Sequences.of(texts[:12], texts[12:])
    states = FrozenLayers(backbone, 2, 3)(sequences, 256)
    old = policy.all_logprobs(states.boundary, sequences, 0.8, 256)
    for off in moved(policy, states, sequences, old, parts=4, temperature=0.8, generator=generator):
        assert off.mean() <= mean
        assert off.quantile(0.999) <= widest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "mean", "widest", "gap"), [("float32", 1e-4, 1e-4, 0.01), ("bfloat16", 0.01, 0.15, 0.06)]
)
def test_on_the_real_model_ratios_start_at_one_and_the_sampler_is_close(
    dtype: str, mean: float, widest: float, gap: float
) -> None:
    torch.set_num_threads(2)
    backbone = load_backbone(resolve_model("default", Settings.load().cache_dir), dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    policy = perturbed(Policy(backbone, LoraShape(20, 16, 32), seed=0), generator, 0.01)
    engine = open_engine(backbone)
    try:
        engine.load_tensors(POLICY_PLACE, policy.tensors(), scaling=policy.scaling)
        prompts = [render(backbone.tokenizer, messages) for messages in islice(shipped_prompts(), 32)]
        sampling = Sampling(max_tokens=64, temperature=0.8)
        rollouts = sample(engine, POLICY_PLACE, prompts, answers_per_prompt=1, sampling=sampling, seed=1)
    finally:
        engine.close()
    sequences, sampled = padded_rollouts(rollouts)
    states = FrozenLayers(backbone, 20, 28)(sequences, 1024)
    old = policy.all_logprobs(states.boundary, sequences, 0.8, 1024)
    off = torch.cat(moved(policy, states, sequences, old, parts=8, temperature=0.8, generator=generator))
    assert off.mean() <= mean
    assert off.quantile(0.999) <= widest
    apart = (sampled - old)[sequences.answer_mask]
    print(f"{dtype}: ratio {off.mean():.2g}, sampler {apart.abs().mean():.2g}, KL {apart.mean():.2g}")
    assert apart.abs().mean() <= gap
    assert abs(float(apart.mean())) <= gap / 4  # the KL from sampler to trainer
