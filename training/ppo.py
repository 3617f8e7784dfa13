"""Step 3, PPO on the policy's LoRA against the reward model.

    for each update: sample answers on the engine → one frozen pass → logprobs, values, scores → KL-shaped rewards, GAE
                     → clipped policy and value steps → adapt β → remember the best step at bounded KL

Left out: rollouts from more than one policy (each update's answers come from the policy it improves, so the ratio
starts at 1), and dropout. Ouyang et al. 2022; Ziegler et al. 2019; Huang et al. 2024, arXiv 2403.17031.
"""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve.engine.local import LocalEngine
from serve.errors import AdapterError, Unavailable
from serve.records import Sampling
from training.config import GateConfig, PPOConfig
from training.gate import collapsed, describe
from training.parallel import in_parallel, set_gradients
from training.ppo_math import (
    adapt_beta,
    answer_kl,
    clipped_policy_loss,
    clipped_value_loss,
    explained,
    gae,
    importance_weights,
    kl_rewards,
    masked_mean,
    ramp,
    whiten,
)
from training.prompts import PromptPool
from training.roles import FrozenLayers, FrozenStates, Policy, are_finite
from training.rollouts import Rollout, padded_rollouts, sample
from training.scorer import Scorer
from training.sequences import Sequences

POLICY_PLACE = -1
"""The engine's name for the policy in training: no published version has it."""

KL_SLACK = 1.5
"""The best step may have this many times the target KL."""

START_UPDATES = 4
"""So many updates' worth of answers describe the policy before its first step: one's differ too much by chance."""

PTX_DEMONSTRATIONS = 4
"""So many demonstrations are mixed into each step."""

LENGTH_ROOM = 1.25
"""How far within the gate's bounds the best step's length must be: medians of a few dozen answers differ by chance."""


@dataclass(frozen=True)
class Roles:
    """Everything PPO runs over the same frozen layers: the policy in training, the reference, and two scorers."""

    policy: Policy
    reference_logprobs: Callable[[FrozenStates, Sequences], Tensor]
    """Frozen states and sequences → logprobs of the reference (B, T), at the rollouts' temperature."""
    reward: Scorer
    value: Scorer
    frozen: FrozenLayers


@dataclass
class Batch:
    """One update's rollouts, and everything measured on them before the first step. Tensors are (B, T)."""

    rollouts: list[Rollout]
    scores: Tensor
    """(B,): of whole answers."""
    sequences: Sequences
    states: FrozenStates
    logprobs: Tensor
    """In nats, by the trainer."""
    values: Tensor
    advantages: Tensor
    returns: Tensor
    metrics: dict[str, float]


@dataclass
class Progress:
    """Where PPO stands between updates; all that a checkpoint holds beside weights and optimizers."""

    update: int = 0
    beta: float = 0.0
    best_score: float | None = None
    best_update: int | None = None
    best_kl: float = 0.0
    start: dict[str, float] = field(default_factory=dict)
    """The policy before its first step, described: what later ones are held against."""
    smoothed: dict[str, float] = field(default_factory=dict)
    """Score and what the gate asks of text: half is the latest policy's, a quarter the one's before, and so on."""
    faults: list[str] = field(default_factory=list)
    """Why the policy measured last may not be kept; empty where it may."""
    stopped: str | None = None
    """Why it ended; None while it goes on."""
    last: dict[str, float] = field(default_factory=dict)
    """What was measured last."""


class PPO:
    """The training state and its two verbs, `collect` and `improve`. `run` alternates them and yields each batch."""

    def __init__(
        self,
        *,
        roles: Roles,
        engine: LocalEngine,
        pool: PromptPool,
        config: PPOConfig,
        gate: GateConfig,
        sampling: Sampling,
        penalise_cap: bool,
        demonstrations: Sequences | None,
        micro_batch_tokens: int,
        seed: int,
    ) -> None:
        self.roles, self.engine, self.pool, self.config = roles, engine, pool, config
        self.sampling, self.penalise_cap, self.demonstrations = sampling, penalise_cap, demonstrations
        self.micro_batch_tokens, self.seed = micro_batch_tokens, seed
        self.policy_optimizer = torch.optim.Adam(
            roles.policy.parameters(), lr=config.learning_rate, eps=1e-5, fused=True
        )
        self.value_optimizer = torch.optim.Adam(
            roles.value.trained(), lr=config.value_learning_rate, eps=1e-5, fused=True
        )
        self.bounds = replace(
            gate,
            max_nll_rise=config.max_nll_rise,
            length_factor=max(1.0, gate.length_factor / LENGTH_ROOM),
            length_floor=math.ceil(gate.length_floor * LENGTH_ROOM),
        )
        self.progress = Progress(beta=config.beta)
        self.best = roles.policy.tensors()

    def run(self) -> Iterator[Batch]:
        """What each policy on the way answered, the last included; `progress.stopped` says why it ended."""
        state, config = self.progress, self.config
        horizon = config.kl_horizon or max(1, config.updates * config.rollouts // 10)
        state.start = state.start or self._describe_start()
        while state.stopped is None:
            try:
                batch = self.collect(state.update)
            except (AdapterError, Unavailable) as error:
                if state.update == 0:  # it is the engine, not what was learned
                    raise
                state.stopped = f"the engine cannot answer after update {state.update}: {error}"
                return
            kl, gap = batch.metrics["kl"], batch.metrics["sampler_gap"]
            self._remember_best(batch)
            if not (math.isfinite(kl) and math.isfinite(gap)):
                state.stopped = f"the policy after update {state.update} has probabilities that are no numbers"
            elif kl > config.kl_stop:
                state.stopped = f"KL of {kl:.1f} nats an answer passed the stop at {config.kl_stop:g}"
            elif gap > config.max_sampler_gap:
                state.stopped = (
                    f"sampler and trainer differ by {gap:.2g} nats a token, more than {config.max_sampler_gap:g}"
                )
            elif state.update == config.updates:
                state.stopped = "all updates are done"
            else:
                self._set_learning_rates(state.update / config.updates)
                losses = self.improve(batch, state.update, train_policy=state.update >= config.value_warmup)
                batch.metrics.update(losses, beta=state.beta)
                if are_finite([*self.roles.policy.parameters(), *self.roles.value.trained()]):
                    if config.adaptive_beta and state.update > config.value_warmup:  # else it is the reference's
                        target = config.kl_target * ramp((state.update + 1) / config.updates, config.kl_ramp)
                        state.beta = adapt_beta(
                            state.beta, kl, target=target, episodes=config.rollouts, horizon=horizon
                        )
                    state.update += 1
                else:  # now, so that no checkpoint holds such a policy
                    state.stopped = f"update {state.update + 1} made weights that are not finite"
                    self.roles.policy.load_tensors(self.best)
            state.last = batch.metrics
            yield batch

    def collect(self, update: int) -> Batch:
        """Sample answers from the policy as it stands, and measure them."""
        config, roles = self.config, self.roles
        # 1. Rollouts on the engine, with this update's LoRA
        self.engine.load_tensors(POLICY_PLACE, roles.policy.tensors(), scaling=roles.policy.scaling)
        seed = self.seed * 1_000_003 + update * config.rollouts
        prompts = self.pool.draw(config.rollouts // config.answers_per_prompt, seed)
        rollouts = self._sample(prompts, seed)
        sequences, sampled = padded_rollouts(rollouts)
        mask = sequences.answer_mask

        # 2. One pass of the frozen layers, then each role's own upper layers
        states = roles.frozen(sequences, self.micro_batch_tokens)
        logprobs = roles.policy.all_logprobs(
            states.boundary, sequences, self.sampling.temperature, self.micro_batch_tokens
        )
        reference = roles.reference_logprobs(states, sequences)
        scores = roles.reward.all_values(states, sequences, self.micro_batch_tokens)[1]
        values = roles.value.all_values(states, sequences, self.micro_batch_tokens)[0]

        # 3. The score of the answer, less a penalty for running into serving's own limit
        capped = torch.tensor([r.finish_reason == "length" for r in rollouts])
        penalised = scores - config.eos_penalty * capped if self.penalise_cap else scores

        # 4. Per-token rewards, advantages, returns
        rewards = kl_rewards(penalised, logprobs, reference, mask, self.progress.beta)
        advantages, returns = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
        if config.whiten:
            advantages = whiten(advantages, mask)
        if config.importance_cap is not None:  # a factor of each token's loss, so of its advantage
            advantages = advantages * importance_weights(logprobs, sampled, mask, cap=config.importance_cap)

        metrics = {
            "score": float(scores.mean()),
            "kl": float(answer_kl(logprobs, reference, mask).mean()),
            "length": float(mask.sum(-1).double().mean()),
            "capped": float(capped.double().mean()),
            "nll": -float(masked_mean(reference, mask)),
            "entropy": -float(masked_mean(logprobs, mask)),
            "value_explained": explained(values, returns, mask),
            "sampler_gap": float(masked_mean((sampled - logprobs).abs(), mask)),
            "sampler_kl": float(masked_mean(sampled - logprobs, mask)),
        }
        return Batch(rollouts, scores, sequences, states, logprobs, values, advantages, returns, metrics)

    def _sample(self, prompts: Sequence[Sequence[int]], seed: int) -> list[Rollout]:
        """Answers to each prompt by the policy that the engine holds."""
        return sample(
            self.engine,
            POLICY_PLACE,
            prompts,
            answers_per_prompt=self.config.answers_per_prompt,
            sampling=self.sampling,
            seed=seed,
        )

    def improve(self, batch: Batch, update: int, *, train_policy: bool) -> dict[str, float]:
        """Clipped steps on one batch; the mean of each metric over its minibatches.

        `ratio_gap` is what the first of them found before it stepped: |Δ log-probability| a token, which is rounding.
        """
        totals: dict[str, list[float]] = {}
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + update)
        for _ in range(self.config.epochs):
            order = torch.randperm(len(batch.sequences), generator=generator)
            for rows in order.tensor_split(self.config.minibatches):
                if len(rows):
                    for name, value in self._step(batch, rows, train_policy, generator).items():
                        totals.setdefault(name, []).append(value)
        first = totals.pop("ratio_gap")[0]
        return {name: sum(values) / len(values) for name, values in totals.items()} | {"ratio_gap": first}

    def _step(self, batch: Batch, rows: Tensor, train_policy: bool, generator: torch.Generator) -> dict[str, float]:
        """One optimizer step on some rows, in micro-batches whose gradients add up to the whole minibatch's."""
        config, roles = self.config, self.roles
        tokens = int(batch.sequences.answer_mask[rows].sum())
        of_value, of_policy = roles.value.trained(), roles.policy.parameters()

        def run(part: Tensor) -> tuple[list[Tensor], dict[str, float]]:
            """Gradients of value model and policy, and metrics, each as a share of the minibatch's."""
            some = batch.sequences.take(part)
            mask, width = some.answer_mask, some.answer_mask.shape[1]
            share = int(mask.sum()) / tokens
            boundary, near = batch.states.boundary_of(part), batch.states.near_of(part)
            old_values, returns = batch.values[part, :width], batch.returns[part, :width]

            values = roles.value(boundary, near, some)[:, :-1]
            value_loss = clipped_value_loss(values, old_values, returns, mask, clip=config.value_clip)
            gradients = [*torch.autograd.grad(value_loss * share, of_value)]
            metrics = {"value_loss": value_loss.item() * share, "policy_loss": 0.0, "clipped": 0.0, "ratio_gap": 0.0}

            if train_policy:
                logprobs = roles.policy.logprobs(boundary, some, self.sampling.temperature)
                old, advantages = batch.logprobs[part, :width], batch.advantages[part, :width]
                policy_loss, clipped = clipped_policy_loss(logprobs, old, advantages, mask, clip=config.clip)
                gradients += torch.autograd.grad(policy_loss * share, of_policy)
                metrics["policy_loss"] = policy_loss.item() * share
                metrics["clipped"] = clipped.item() * share
                metrics["ratio_gap"] = float(masked_mean((logprobs.detach() - old).abs(), mask)) * share
            return gradients, metrics

        found = in_parallel(run, batch.sequences.micro_batches(self.micro_batch_tokens, rows))
        set_gradients([*of_value, *of_policy] if train_policy else of_value, [gradients for gradients, _ in found])
        sums = {name: sum(metrics[name] for _, metrics in found) for name in found[0][1]}
        self._clip_gradients(of_value)
        self.value_optimizer.step()
        if train_policy:
            if self.demonstrations is not None and config.ptx > 0:
                sums["ptx_loss"] = self._ptx_backward(generator)
            self._clip_gradients(of_policy)
            self.policy_optimizer.step()
        return sums

    def _ptx_backward(self, generator: torch.Generator) -> float:
        """Add the gradient of the demonstrations' language-modelling loss (Ouyang et al. 2022, eq. 2)."""
        assert self.demonstrations is not None
        count = min(len(self.demonstrations), PTX_DEMONSTRATIONS)
        rows = torch.randperm(len(self.demonstrations), generator=generator)[:count]
        some = self.demonstrations.take(rows)
        states = self.roles.frozen(some, self.micro_batch_tokens)
        boundary = states.boundary_of(torch.arange(count))
        loss = -masked_mean(self.roles.policy.logprobs(boundary, some, 1.0), some.answer_mask)
        (self.config.ptx * loss).backward()
        return loss.item()

    def _set_learning_rates(self, done: float) -> None:
        left = 1 - done * (1 - self.config.learning_rate_end)
        for optimizer, start in (
            (self.policy_optimizer, self.config.learning_rate),
            (self.value_optimizer, self.config.value_learning_rate),
        ):
            for group in optimizer.param_groups:
                group["lr"] = start * left

    def _clip_gradients(self, parameters: Sequence[Tensor]) -> None:
        if self.config.gradient_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.config.gradient_norm)

    def _remember_best(self, batch: Batch) -> None:
        """Keep the LoRA that made these rollouts if its smoothed score is the best so far, and it may pass the gate.

        KL is bounded by the answer. That alone would let short answers go astray (nine nats over ten tokens read very
        unlike the reference), so the gate's bounds hold for each step, a little stricter, against the start: for what
        it wrote, and smoothed, or the luckiest of many steps would be kept; likelihood smoothed alone, because prompts
        move it by a third of the bound. Where sampler and trainer differ too much nothing is sure.
        """
        state, metrics = self.progress, batch.metrics
        described = describe(batch.rollouts, metrics["nll"] * int(batch.sequences.answer_mask.sum()))
        for name, value in {"score": metrics["score"], **described}.items():
            state.smoothed[name] = 0.5 * value + 0.5 * state.smoothed.get(name, value)
        described["nll"] = state.smoothed["nll"]
        bound = min(self.config.kl_target * KL_SLACK, self.bounds.max_kl)
        state.faults = []
        if not metrics["sampler_gap"] <= self.config.max_sampler_gap:
            state.faults.append("sampler and trainer differ")
        if not metrics["kl"] <= bound:  # nor where it is no number
            state.faults.append(f"it moved {metrics['kl']:.1f} nats an answer from the reference, more than {bound:g}")
        asked = (state.start, len(batch.rollouts), self.bounds)
        state.faults += collapsed(described, *asked) or collapsed(state.smoothed, *asked)
        if state.faults:
            return
        if state.best_score is None or state.smoothed["score"] >= state.best_score:
            state.best_score, state.best_update, state.best_kl = state.smoothed["score"], state.update, metrics["kl"]
            self.best = self.roles.policy.tensors()

    def _describe_start(self) -> dict[str, float]:
        """The policy before its first step, each figure a mean over `START_UPDATES` updates' worth of answers.

        It is still the reference, so that the sampler says how likely the reference finds them.
        """
        config = self.config
        self.engine.load_tensors(POLICY_PLACE, self.roles.policy.tensors(), scaling=self.roles.policy.scaling)
        count = config.rollouts // config.answers_per_prompt
        prompts = [prompt for part in range(START_UPDATES) for prompt in self.pool.draw(count, self.seed + part)]
        rollouts = self._sample(prompts, self.seed)
        parts = [rollouts[start : start + config.rollouts] for start in range(0, len(rollouts), config.rollouts)]
        found = [describe(part, -sum(sum(rollout.logprobs) for rollout in part)) for part in parts]
        return {name: statistics.fmean(each[name] for each in found) for name in found[0]}

    def save(self, path: Path) -> None:
        """Write a checkpoint, whole or not at all."""
        content = {
            "progress": asdict(self.progress),
            "policy": self.roles.policy.tensors(),
            "value": self.roles.value.tensors(),
            "best": self.best,
            "policy_optimizer": self.policy_optimizer.state_dict(),
            "value_optimizer": self.value_optimizer.state_dict(),
        }
        partial = path.with_suffix(".partial")
        with partial.open("wb") as stream:
            torch.save(content, stream)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)

    def load(self, path: Path) -> bool:
        """Go on from a checkpoint; False, and nothing is taken over, where another release wrote it."""
        content: dict[str, Any] = torch.load(path, weights_only=True)
        if content["progress"].keys() != asdict(self.progress).keys():
            return False
        self.progress = Progress(**content["progress"])
        self.roles.policy.load_tensors(content["policy"])
        self.roles.value.load(content["value"])
        self.best = content["best"]
        self.policy_optimizer.load_state_dict(content["policy_optimizer"])
        self.value_optimizer.load_state_dict(content["value_optimizer"])
        return True
