"""Every number that decides a run, validated once.

A run's settings arrive as nested mappings (`{"ppo": {"updates": 20}}`) from the API, the environment or hustings.toml;
`TrainingConfig.parse` turns them into frozen dataclasses or raises InvalidInput naming the field and its bounds.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from serve.errors import InvalidInput

MAX_RANK = 256
"""Largest rank of a LoRA that is trained."""
ROWS_IN_FLIGHT = 32
"""Answers decoded at once while training: a wide batch reads the weights once for all of them."""
MIN_TEMPERATURE = 0.05
"""Lowest temperature of rollouts: logprobs are taken at it, and at 0 there are none."""


def _bounded(default: Any, low: float, high: float) -> Any:
    return field(default=default, metadata={"low": low, "high": high})


@dataclass(frozen=True)
class SFTConfig:
    """Step 1: supervised fine-tuning on demonstrations."""

    epochs: int = _bounded(3, 1, 50)
    """Most passes over the demonstrations; fewer when the held-out loss stops falling."""
    learning_rate: float = _bounded(2e-4, 0, 1)
    """Peak Adam step; LoRA takes about ten times what full fine-tuning does."""
    tokens_per_batch: int = _bounded(2048, 64, 1 << 20)
    """Tokens in one optimizer step, packed."""
    sequence_length: int = _bounded(512, 32, 1 << 16)
    """Length of a packed sequence; a longer demonstration loses its prompt's front down to a quarter, then its end."""
    holdout: float = _bounded(0.1, 0, 0.5)
    """Share of demonstrations held out to stop early (none below ten demonstrations)."""


@dataclass(frozen=True)
class RewardConfig:
    """Step 2: the reward model."""

    layers: int = _bounded(2, 1, 1000)
    """Top layers that carry the reward model's LoRA; those below are run once and kept."""
    epochs: int = _bounded(0, 0, 100)
    """Most passes over all pairs after the head is fitted; as many are made as lower a held-out fold's loss."""
    learning_rate: float = _bounded(2e-4, 0, 1)
    """Adam step of LoRA and head."""
    comparisons_per_batch: int = _bounded(8, 1, 4096)
    """Comparisons in one optimizer step; all pairs of a comparison stay together."""
    folds: int = _bounded(5, 2, 20)
    """Fold models, split by prompt: the gate's judges, and with many votes the judges of accuracy."""
    centring: float = _bounded(0.01, 0, 10)
    """Weight of (score₁ + score₂)², which keeps scores near zero."""
    caution: float = _bounded(1.5, 0, 100)
    """Standard deviations that are taken from a score, of what the votes leave open: what nobody judged pays less."""
    max_voter_share: float = _bounded(0.5, 0.05, 1)
    """Most that one voter's votes may weigh in a fit or a batch, from three voters up."""
    margin: float = _bounded(0.0, 0, 10)
    """Score margin asked for at full voting strength (5), in proportion below; 0 ignores strength."""


@dataclass(frozen=True)
class PPOConfig:
    """Step 3: PPO on the policy's LoRA."""

    updates: int = _bounded(24, 1, 100_000)
    """Rounds of rollouts and optimisation."""
    rollouts: int = _bounded(32, 2, 4096)
    """Answers sampled in each update."""
    answers_per_prompt: int = _bounded(2, 1, ROWS_IN_FLIGHT)
    """Answers to one prompt, which share its prefill."""
    epochs: int = _bounded(1, 1, 50)
    """Passes over each update's rollouts."""
    minibatches: int = _bounded(4, 1, 256)
    """Optimizer steps in a pass."""
    learning_rate: float = _bounded(4e-4, 0, 1)
    """Adam step of the policy's LoRA, at the start."""
    value_learning_rate: float = _bounded(1e-4, 0, 1)
    """Adam step of the value adapter and its head, at the start."""
    learning_rate_end: float = _bounded(0.1, 0, 1)
    """Share of both steps that is left at the end; they fall evenly until then. 1: they stay."""
    value_from_reward: bool = True
    """Whether the value model starts as the reward model; off: from zero."""
    value_warmup: int = _bounded(1, 0, 1000)
    """First updates that train the value model alone."""
    gamma: float = _bounded(1.0, 0, 1)
    """Discount of later rewards."""
    lam: float = _bounded(0.95, 0, 1)
    """λ of GAE: 1 trusts returns, 0 trusts the value model."""
    whiten: bool = True
    """Whether advantages are brought to mean 0 and standard deviation 1 in each update."""
    clip: float | None = _bounded(0.2, 0.001, 10)
    """How far a token's probability ratio may move in an update; none: as far as it likes."""
    value_clip: float | None = _bounded(0.2, 0.001, 100)
    """How far a value may move in an update; none: as far as it likes."""
    gradient_norm: float | None = _bounded(1.0, 0.001, 1000)
    """Gradients are scaled down to this norm; none: never."""
    beta: float = _bounded(0.3, 0, 100)
    """KL coefficient at the start; 0 takes KL out of the reward."""
    adaptive_beta: bool = True
    """Whether the KL coefficient follows the KL; off: it stays as it starts."""
    kl_target: float = _bounded(6.0, 0.001, 1000)
    """KL to the reference that the controller steers to, in nats an answer."""
    kl_ramp: float = _bounded(0.5, 0, 1)
    """Share of the run over which the target rises from 0: at once high, it would let β fall until KL takes off."""
    kl_horizon: int | None = _bounded(None, 1, 10_000_000)
    """Episodes over which the controller acts; none: a tenth of the run's."""
    kl_stop: float = _bounded(15.0, 0.001, 10_000)
    """PPO ends when an update's mean KL passes this, and goes back to the best step within `kl_target` × 1.5."""
    importance_cap: float | None = _bounded(None, 1, 1000)
    """Each token's loss is weighted by how much likelier the trainer finds it than the sampler did, up to this; none:
    not weighted."""
    max_sampler_gap: float = _bounded(0.1, 0.0001, 10)
    """PPO ends when sampler and trainer differ by more, in mean |Δ log-probability| a token: they mean two policies."""
    max_nll_rise: float = _bounded(0.4, 0, 100)
    """The best steps' answers may be this much less likely to the reference, in nats a token, than its own were."""
    eos_penalty: float = _bounded(1.0, 0, 100)
    """Taken from the score of a capped answer, only where the cap is serving's own `max_tokens`."""
    ptx: float = _bounded(0.0, 0, 100)
    """Weight of the demonstrations' language-modelling loss mixed into each step (InstructGPT's PPO-ptx)."""
    max_tokens: int | None = _bounded(None, 1, 65536)
    """Longest rollout, and answer to the gate; none: the voted answers' most common limit, or the server's if it wrote
    none, and for rollouts at most `run.ROLLOUT_TOKENS`."""
    temperature: float | None = _bounded(None, MIN_TEMPERATURE, 5)
    """Sampling temperature of rollouts; none: the voted answers' most common one, or the server's if there is none or
    it is lower than allowed here."""


@dataclass(frozen=True)
class GateConfig:
    """What a version must show before it may serve."""

    held_out_prompts: int = _bounded(32, 4, 1000)
    """Prompts kept from PPO, on which the new version meets its parent."""
    max_kl: float = _bounded(15.0, 0, 10_000)
    """Mean KL to the reference on held-out prompts, in nats an answer."""
    max_nll_rise: float = _bounded(0.5, 0, 100)
    """How much less likely, in nats a token, the base may find its answers than the parent's."""
    min_distinct: float = _bounded(0.9, 0, 1)
    """Share of its answers that must differ from one another, or the parent's share less two answers if lower."""
    max_shared_rise: float = _bounded(0.3, 0, 1)
    """How much the share of an answer's 3-grams that answers to other prompts have, too, may grow."""
    max_repetition_rise: float = _bounded(0.15, 0, 1)
    """How much the share of repeated 3-grams within an answer may grow."""
    length_factor: float = _bounded(4.0, 1, 1000)
    """How many times longer or shorter than the parent's its median answer may be."""
    length_floor: int = _bounded(16, 0, 65536)
    """A median answer of so many tokens is never too short: voters may want brevity, and a parent may write pages."""
    max_refusal_rise: float = _bounded(0.3, 0, 1)
    """How much the share of refusals may grow."""
    max_capped_rise: float = _bounded(0.3, 0, 1)
    """How much the share of answers that run into the token limit may grow."""
    ending_factor: float = _bounded(4.0, 1, 1000)
    """How many times rarer than the parent's answers that end before the limit may be."""


@dataclass(frozen=True)
class TrainingConfig:
    """All of a run."""

    adapted_layers: int | None = _bounded(None, 1, 1000)
    """Top layers that carry the policy's LoRA; none: the top third."""
    rank: int = _bounded(16, 1, MAX_RANK)
    """Rank of every LoRA."""
    alpha: int = _bounded(32, 1, 1024)
    """LoRA's output is scaled by alpha / rank."""
    micro_batch_tokens: int = _bounded(1024, 64, 1 << 20)
    """Padded tokens in one forward pass: bounds memory, changes results by rounding alone."""
    checkpoint_updates: int = _bounded(1, 1, 1000)
    """PPO updates between checkpoints."""
    sft: SFTConfig = SFTConfig()
    reward: RewardConfig = RewardConfig()
    ppo: PPOConfig = PPOConfig()
    gate: GateConfig = GateConfig()

    @classmethod
    def parse(cls, settings: Mapping[str, Any]) -> TrainingConfig:
        """Defaults overridden by nested settings; numbers may come as text (from the environment).

        Raises InvalidInput naming an unknown field, or a value outside its bounds.
        """
        config: TrainingConfig = _parse(cls, settings, "")
        if config.ppo.rollouts % config.ppo.answers_per_prompt:
            raise InvalidInput(
                f"ppo.rollouts must be a multiple of ppo.answers_per_prompt ({config.ppo.answers_per_prompt}), "
                f"not {config.ppo.rollouts}"
            )
        if config.ppo.updates <= config.ppo.value_warmup:
            raise InvalidInput(
                f"ppo.updates must be more than ppo.value_warmup ({config.ppo.value_warmup}), whose updates train the "
                f"value model alone, not {config.ppo.updates}"
            )
        return config


def _parse(kind: Any, settings: Mapping[str, Any], path: str) -> Any:
    if not isinstance(settings, Mapping):
        raise InvalidInput(f"settings.{path.rstrip('.') or 'training'} must be an object of fields")
    known = {f.name: f for f in fields(kind)}
    types_of = typing.get_type_hints(kind)
    values = {}
    for name, value in settings.items():
        if name not in known:
            raise InvalidInput(f"unknown training setting {path}{name}; known here: {', '.join(sorted(known))}")
        if is_dataclass(types_of[name]):
            values[name] = _parse(types_of[name], value, f"{path}{name}.")
        else:
            values[name] = _number(value, types_of[name], known[name].metadata, f"{path}{name}")
    return kind(**values)


def _number(value: Any, kind: Any, bounds: Mapping[str, float], name: str) -> float | int | bool | None:
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if types.NoneType in options and (value is None or value == "none"):
        return None
    if bool in options:
        return _switch(value, name)
    whole = int in options
    wanted = f"{name} must be {'a whole number' if whole else 'a number'} from {bounds['low']:g} to {bounds['high']:g}"
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InvalidInput(f"{wanted}, not {value!r}") from None
    if isinstance(value, bool) or not bounds["low"] <= number <= bounds["high"] or (whole and number != int(number)):
        raise InvalidInput(f"{wanted}, not {value!r}")
    return int(number) if whole else number


def _switch(value: Any, name: str) -> bool:
    known = {"true": True, "on": True, "1": True, "false": False, "off": False, "0": False}
    found = known.get(str(value).lower())
    if found is None:
        raise InvalidInput(f"{name} must be on or off, not {value!r}")
    return found
