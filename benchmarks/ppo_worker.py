"""Our PPO, one update at a time, for `benchmarks/ppo.py`: `python -m benchmarks.ppo_worker SETTINGS.json`.

A line of JSON in, a line out, as benchmarks/peers/trl_ppo_speed.py.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import peak_memory
from serve.policy.base import Backbone, ModelFolder, load_backbone
from serve.records import Sampling
from training import ppo as ppo_module
from training.config import GateConfig, PPOConfig
from training.ppo import PPO, Roles
from training.prompts import PromptPool
from training.roles import FrozenLayers, FrozenStates, LoraShape, Policy
from training.rollouts import open_engine, sample
from training.scorer import Scorer
from training.sequences import Sequences
from training.split import boundary

MICRO_BATCH = 1024
VOTES = 300
"""So many directions are known to the reward model, whose caution costs as after that many votes."""


def open_ppo(settings: dict[str, Any]) -> PPO:
    """PPO as a run builds it, without an EOS so that all answers are equally long, against a random reward model."""
    folder = Path(settings["model"])
    backbone: Backbone = replace(
        load_backbone(
            ModelFolder(folder, folder.name, settings["hash"], Path(settings["cache"])), dtype=settings["dtype"]
        ),
        eos_token_ids=frozenset(),
    )
    layers = backbone.layer_count
    first = boundary(layers, settings["policy_layers"])
    value_first = boundary(layers, settings["value_layers"] or settings["policy_layers"])
    frozen = FrozenLayers(backbone, first, value_first)
    policy_shape, value_shape = LoraShape(first, 16, 32), LoraShape(value_first, 16, 32)
    base = Policy(backbone, LoraShape(value_first, 1, 1), seed=0)
    reward = Scorer(backbone, value_shape, seed=0)
    generator = torch.Generator().manual_seed(0)
    torch.nn.init.normal_(reward.weight, std=0.01, generator=generator)
    reward.known = torch.nn.init.orthogonal_(torch.empty(VOTES, len(reward.weight)), gain=0.5, generator=generator)
    reward.caution.fill_(1.5)

    def reference_logprobs(states: FrozenStates, sequences: Sequences) -> torch.Tensor:
        return base.all_logprobs(states.near, sequences, settings["temperature"], MICRO_BATCH)

    config = PPOConfig(
        rollouts=settings["episodes"],
        answers_per_prompt=1,
        epochs=settings["epochs"],
        minibatches=settings["minibatches"],
        learning_rate=1e-5,
        value_warmup=0,
    )
    return PPO(
        roles=Roles(
            policy=Policy(backbone, policy_shape, seed=0),
            reference_logprobs=reference_logprobs,
            reward=reward,
            value=reward.twin(backbone),
            frozen=frozen,
        ),
        engine=open_engine(backbone),
        pool=PromptPool(tuple(map(tuple, settings["prompts"])), (1.0,) * len(settings["prompts"])),
        config=config,
        gate=GateConfig(),
        sampling=Sampling(max_tokens=settings["tokens"], temperature=settings["temperature"]),
        penalise_cap=False,
        demonstrations=None,
        micro_batch_tokens=MICRO_BATCH,
        seed=0,
    )


def main(settings: dict[str, Any]) -> None:
    """Update whenever a line comes; answer with the seconds of each phase and the peak memory in bytes."""
    torch.set_num_threads(settings["threads"])
    ppo = open_ppo(settings)
    written: list[float] = []

    def timed(*given: Any, **options: Any) -> Any:
        result = sample(*given, **options)
        written[:] = [time.perf_counter()]
        return result

    vars(ppo_module)["sample"] = timed
    say = partial(print, flush=True)
    say(json.dumps({"ready": True}))
    for update, _ in enumerate(sys.stdin):
        began = time.perf_counter()
        batch = ppo.collect(update)
        assert int(batch.sequences.answer_mask.sum()) == settings["episodes"] * settings["tokens"]
        scored = time.perf_counter()
        ppo.improve(batch, update, train_policy=True)
        answer = {
            "generate": written[0] - began,
            "score": scored - written[0],
            "update": time.perf_counter() - scored,
            "peak": peak_memory(),
        }
        say(json.dumps(answer))
    ppo.engine.close()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
