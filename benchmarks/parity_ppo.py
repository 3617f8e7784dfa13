"""Our PPO beside TRL's, the last version that has it being 1.12, for `benchmarks/parity.py`.

TRL samples answers from a policy with a LoRA, measures them and takes some steps. Ours computes the log-probabilities
of the same tokens with the same weights, and `training.ppo_math` all that follows from them: rewards, advantages, both
losses and their gradients. Scores and values are TRL's own, for its models for them are built otherwise.

Not compared, because TRL has no such thing or has it elsewhere: the adaptive β, the penalty of capped answers, PTX, the
clamp of log-ratios at ±20, the norm of gradients (TRL does not clip), and one optimizer over both losses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.findings import Findings
from benchmarks.prompts import held_out_prompts
from serve.policy import chat
from serve.policy.base import Backbone
from serve.records import Message
from training import ppo_math
from training.roles import FrozenLayers, LoraShape, Policy
from training.sequences import Sequences
from training.split import boundary

PEER = "trl-ppo"
SETTINGS: dict[str, Any] = {
    "episodes": 16, "tokens": 128, "minibatches": 4, "epochs": 2, "temperature": 0.8, "beta": 0.05, "gamma": 0.98,
    "lam": 0.95, "clip": 0.2, "value_clip": 0.2, "learning_rate": 1e-3,
    "pad_token": "<|endoftext|>",  # TRL tells an answer's end by one that no answer has; the model's own is its EOS
}  # fmt: skip
MICRO_BATCH = 1024


def asked(backbone: Backbone) -> dict[str, Any]:
    """The shortest prompts."""
    prompts = [chat.render(backbone.tokenizer, [Message("user", text)]) for text in held_out_prompts()]
    return {"prompts": sorted(prompts, key=len)[: SETTINGS["episodes"]]}


def compare(trl: Mapping[str, Any], backbone: Backbone, adapter: Path) -> Findings:
    """All quantities, in the order in which a round computes them."""
    found = Findings()

    # 1. The same tokens: TRL pads prompts on the left, and marks places past an answer's last token
    pad = backbone.tokenizer.convert_tokens_to_ids(SETTINGS["pad_token"])
    mask, one_more = ~trl["padding_mask"], ~trl["padding_mask_p1"]
    lengths = (trl["sequence_lengths"] + 1).tolist()
    sequences = Sequences.of(
        [[token for token in query if token != pad] for query in trl["queries"].tolist()],
        [answer[:length] for answer, length in zip(trl["responses"].tolist(), lengths, strict=True)],
    )
    assert torch.equal(sequences.answer_mask, mask[:, : sequences.answer_mask.shape[1]])
    width = mask.shape[1]

    # 2. Log-probabilities of policy and reference
    first = boundary(backbone.layer_count, None)
    shape = LoraShape(first, rank=16, alpha=32)
    states = FrozenLayers(backbone, first, first)(sequences, MICRO_BATCH)
    policy, reference = (Policy(backbone, shape, seed=0, start=start) for start in (adapter, None))
    logprobs, reference_logprobs = (
        _widened(role.all_logprobs(states.boundary, sequences, SETTINGS["temperature"], MICRO_BATCH), width)
        for role in (policy, reference)
    )
    found.compare("old logprobs", logprobs, trl["logprobs"], mask)
    found.compare("reference logprobs", reference_logprobs, trl["ref_logprobs"], mask)

    # 3. Rewards, advantages and returns
    scores, beta = trl["scores"], SETTINGS["beta"]
    kl = ppo_math.kl_rewards(torch.zeros_like(scores), logprobs, reference_logprobs, mask, beta)
    found.compare("KL rewards", kl, trl["non_score_reward"], mask)
    rewards = ppo_math.kl_rewards(scores, logprobs, reference_logprobs, mask, beta)
    moved = kl.clone()
    moved[torch.arange(len(kl)), ppo_math.last_index(one_more)] += scores
    place = "the score, and one more value, at the place after the last token"
    for convention, given, places in (("", rewards, mask), (place, moved, one_more)):
        advantages, returns = ppo_math.gae(given, trl["values"], places, gamma=SETTINGS["gamma"], lam=SETTINGS["lam"])
        found.compare("rewards", given, trl["rewards"], convention=convention)
        found.compare("advantages", advantages, trl["advantages"], mask, convention)
        found.compare("returns", returns, trl["returns"], mask, convention)
    whitened = ppo_math.whiten(advantages, mask)
    found.compare("whitened advantages", whitened, trl["whitened"], mask, "the same")
    count = int(mask.sum())
    whitened = whitened * math.sqrt((count - 1) / count)
    found.compare("whitened advantages", whitened, trl["whitened"], mask, "the same; the variance over n − 1")
    found.occurs("answers that end before the limit", trl["sequence_lengths"] + 1 < width, least=4)

    # 4. Losses and their gradients: of the first step with our own log-probabilities, of later ones with TRL's
    for number, step in enumerate(trl["steps"], 1):
        name = "first" if number == 1 else "later"
        rows = step["micro_batch_inds"]
        some, more = mask[rows], one_more[rows]
        new = (logprobs[rows] if number == 1 else step["new_logprobs"]).requires_grad_()
        policy_loss, _ = ppo_math.clipped_policy_loss(new, logprobs[rows], whitened[rows], some, clip=SETTINGS["clip"])
        found.compare(f"{name} policy loss", policy_loss, step["pg_loss"], convention="the same")
        (gradient,) = torch.autograd.grad(policy_loss, new)
        found.compare_gradient(f"{name} policy loss", gradient, step["pg_gradient"], some, "the same")
        values, old_values = step["vpred"].requires_grad_(), trl["values"][rows]
        value_loss = ppo_math.clipped_value_loss(values, old_values, returns[rows], more, clip=SETTINGS["value_clip"])
        found.compare(f"{name} value loss", value_loss, step["vf_loss"], convention="the same")
        (gradient,) = torch.autograd.grad(value_loss, values)
        found.compare_gradient(f"{name} value loss", gradient, step["vf_gradient"], more, "the same")
        ratios = (new.detach() - logprobs[rows]).exp()[some]
        found.occurs("ratios that left the clip, over all steps", (ratios - 1).abs() > SETTINGS["clip"])
        moves = (values.detach() - old_values).abs()[more]
        found.occurs("values that left the clip, over all steps", moves > SETTINGS["value_clip"])
    return found


def _widened(x: Tensor, width: int) -> Tensor:
    """(B, T) → (B, width), filled up with zeros."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))
