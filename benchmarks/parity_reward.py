"""Our reward model's loss beside TRL 1.16's, for `benchmarks/parity.py`.

TRL takes a few steps with all pairs of a few votes: plain, with margins, and with centring. Ours makes the scores of
the first step from the same tokens and weights, the losses from TRL's scores of each step, and the gradients of both.

Not compared, because TRL has no such thing: ties; answers cut off at the limit (it closes each with EOS); the head's
features besides the last state at the top, and its exact start. TRL gets prompts as text, rendered by our
template: of messages it would make its own text, with a line break after the answer's EOS, and score that.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from benchmarks.findings import Findings
from benchmarks.prompts import voted_prompts
from serve.policy import chat
from serve.policy.adapters import WEIGHTS
from serve.policy.base import Backbone
from serve.records import Message
from training.pairs import Pairs
from training.preferences import Ranked
from training.reward import bradley_terry_loss, centring_loss, ranked_sequences
from training.roles import FrozenLayers, LoraShape, load_lora_tensors
from training.scorer import GROUPS, Scorer
from training.split import boundary

PEER = "trl-reward"
SETTINGS: dict[str, Any] = {"steps": 3, "learning_rate": 1e-3}
LOSSES = {"plain loss": (0.0, 0.0), "loss with margins": (0.8, 0.0), "loss with centring": (0.0, 0.1)}
"""Margin at full strength, and the weight of centring."""
MICRO_BATCH = 1024
LAST_AT_THE_TOP = list(GROUPS).index("top now")
"""Which of the scorer's groups of features TRL's head reads."""

VOTES: tuple[tuple[int | None, tuple[str, ...]], ...] = (
    (None, ("So much matter in one place that not even light gets away.", "They are stars that died.", "Holes.")),
    (5, ("Take somebody along who knows cars.", "Think about it, and then think about it once more. " * 5)),
    (3, ("Speak often, to a few friends first, and listen to a recording of yourself.", "Just do it.")),
    (4, ("Leaves turn red. The air smells of rain and smoke.", "Autumn is a season of the year. " * 8)),
    (1, ("Fewer headaches and a clearer mind.", "Water is wet, and good.")),
    (None, ("Call an old friend, or go where people are: a library, a café, a class.", "No idea!")),
    (2, ("Dark clouds, a flash, then the roar.", "It rains.")),
)
"""How strongly they were meant, and the answers to the first prompts that voters ask, best first."""


def rankings(tokenizer: PreTrainedTokenizerBase) -> list[Ranked]:
    """The votes."""
    return [
        Ranked(
            prompt_id=number,
            voter="v",
            prompt_ids=tuple(chat.render(tokenizer, [Message("user", prompt)])),
            answers=tuple(tuple(chat.answer_ids(tokenizer, text)) for text in texts),
            groups=tuple(range(len(texts))),
            positions=(-1,) * len(texts),
            finish_reasons=("stop",) * len(texts),
            strength=strength,
        )
        for number, (prompt, (strength, texts)) in enumerate(zip(voted_prompts(), VOTES, strict=False))
    ]


def asked(backbone: Backbone) -> dict[str, Any]:
    """Each pair as text, and what each loss is made of."""
    given = rankings(backbone.tokenizer)
    pairs = Pairs.of(given, max_voter_share=1.0, margin=1.0)
    texts = [text for _, texts in VOTES for text in texts]
    return {
        "pairs": {
            "prompt": [backbone.tokenizer.decode(given[i].prompt_ids) for i in pairs.ranking],
            "chosen": [texts[i] for i in pairs.better],
            "rejected": [texts[i] for i in pairs.worse],
        },
        "losses": {
            name: {"margin": (margin * pairs.margin).tolist(), "centring": centring}
            for name, (margin, centring) in LOSSES.items()
        },
    }


def compare(trl: Mapping[str, Any], backbone: Backbone, adapter: Path) -> Findings:
    """All quantities, in the order in which a step computes them."""
    found = Findings()
    given = rankings(backbone.tokenizer)
    pairs = Pairs.of(given, max_voter_share=1.0, margin=1.0)
    rows = torch.cat([pairs.better, pairs.worse])
    first_step = trl["plain loss"]["steps"][0]

    # 1. Tokens: TRL makes its own of the texts, and closes each with EOS
    sequences = ranked_sequences(given)
    mask = sequences.attention_mask[rows]
    assert torch.equal(mask, first_step["attention_mask"])
    found.compare("tokens", sequences.input_ids[rows], first_step["input_ids"], mask.bool())
    lengths = sequences.answer_mask.sum(-1)[torch.stack([pairs.better, pairs.worse])]
    found.occurs("pairs of which one answer has 4 times the tokens", lengths.amax(0) >= 4 * lengths.amin(0))
    found.occurs("pairs of a ranking of three", pairs.weight < 1)
    found.occurs("pairs with a margin", pairs.margin > 0)

    # 2. Scores
    first = boundary(backbone.layer_count, None)
    scorer = Scorer(backbone, LoraShape(first, rank=16, alpha=32), seed=0)
    load_lora_tensors(scorer.lora, load_file(str(adapter / WEIGHTS)))
    with torch.no_grad():
        scorer.weight.view(len(GROUPS), -1)[LAST_AT_THE_TOP] = trl["plain loss"]["head"]
    without_eos = [replace(r, answers=tuple(answer[:-1] for answer in r.answers)) for r in given]
    place = "read before the EOS, which TRL pads with and takes for padding"
    for convention, votes in (("", given), (place, without_eos)):
        sequences, every = ranked_sequences(votes), torch.arange(len(sequences))
        states = FrozenLayers(backbone, first, first)(sequences, MICRO_BATCH)
        scores = scorer.score(states.boundary_of(every), states.near_of(every), sequences)[rows]
        found.compare("scores", scores, first_step["rewards"], convention=convention)
    better, worse = scores.detach().chunk(2)
    found.occurs("pairs scored the wrong way round", better < worse)

    # 3. Losses and their gradients: to TRL's scores in each step, to our weights in the first, when TRL's are the same
    lora = {name: p for name, p in scorer.lora.named_parameters() if p.requires_grad}
    alike = torch.ones_like(pairs.weight)
    for name, (margin, centring) in LOSSES.items():
        for number, step in enumerate(trl[name]["steps"]):
            rewards = step["rewards"].requires_grad_()
            better, worse = rewards.chunk(2)
            for convention, weight in (("", pairs.weight), ("a ranking's pairs weigh 1 each, not together", alike)):
                loss = bradley_terry_loss(better, worse, pairs.target, weight, margin * pairs.margin)
                loss = loss + centring * centring_loss(better, worse, weight)
                found.compare(name, loss, step["loss"], convention=convention)
            (gradient,) = torch.autograd.grad(loss, rewards)
            found.compare_gradient(name, gradient, step["gradient"], convention="the same")
            if number == 0:
                head, *ours = torch.autograd.grad(scores, [scorer.weight, *lora.values()], gradient, retain_graph=True)
                head, both = head.view(len(GROUPS), -1)[LAST_AT_THE_TOP], "both switched"
                found.compare_gradient(f"{name} to the head", head, step["to_head"], convention=both)
                assert step["to_lora"].keys() == lora.keys()
                for key, mine in zip(lora, ours, strict=True):
                    found.compare_gradient(f"{name} to the LoRA", mine, step["to_lora"][key], convention=both)
    return found
