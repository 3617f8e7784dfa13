"""Step 1, supervised fine-tuning: the LoRA learns to write what people wrote.

Demonstrations go through the chat template and are packed several to a row; each token sees only its own text, and only
answer tokens carry loss (Ouyang et al. 2022, section 3.5). The trunk is frozen, so its states are computed once and
every epoch runs the upper layers alone.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serve.errors import InvalidInput
from serve.policy.base import Backbone
from training.config import SFTConfig
from training.preferences import Shown
from training.roles import Policy, are_finite
from training.split import Section

MIN_FOR_HOLDOUT = 10


@dataclass(frozen=True)
class Packed:
    """One row of several texts, S places long."""

    input_ids: Tensor
    """(1, S)"""
    positions: Tensor
    """(1, S), starting at 0 in each text."""
    segments: Tensor
    """(S,), the number of each place's text in the row."""
    targets: Tensor
    """(1, S), the next token where it belongs to an answer, else −1."""

    @property
    def attention_mask(self) -> Tensor:
        """(1, 1, S, S), True where a place may look at another: earlier, and in the same text."""
        return (self.segments[:, None] == self.segments).tril()[None, None]

    @property
    def loss_tokens(self) -> int:
        """Places that carry loss."""
        return int((self.targets >= 0).sum())


def fine_tune(
    policy: Policy,
    trunk: Section,
    demonstrations: Sequence[Shown],
    *,
    config: SFTConfig,
    seed: int,
    progress: Callable[[int, float, dict[str, float]], None],
) -> dict[str, Any]:
    """Train the policy's LoRA on demonstrations; returns a report. Ends early when the held-out loss stops falling.

    Raises InvalidInput when the weights blew up.
    """
    # 1. Hold some out, pack the rest
    length = row_tokens(config, policy.backbone)
    learned, held = hold_out(demonstrations, config.holdout, seed)
    train, validation = pack(policy, learned, length), pack(policy, held, length)
    with torch.no_grad():
        states = {id(row): trunk(row.input_ids, row.attention_mask, row.positions) for row in (*train, *validation)}

    # 2. Epochs over packed rows, each step over about `tokens_per_batch` tokens
    per_step = max(1, config.tokens_per_batch // length)
    steps = config.epochs * math.ceil(len(train) / per_step)
    optimizer = torch.optim.Adam(policy.parameters(), lr=config.learning_rate, eps=1e-5, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.1, 1 - step / steps))
    shuffler = random.Random(seed)
    losses: list[float] = []
    held_out = [_loss(policy, validation, states)] if validation else []
    best = policy.tensors()
    for _ in range(config.epochs):
        shuffler.shuffle(train)
        for start in range(0, len(train), per_step):
            rows = train[start : start + per_step]
            tokens = sum(row.loss_tokens for row in rows)
            optimizer.zero_grad()
            total = 0.0
            for row in rows:
                loss = policy.next_token_loss(states[id(row)], row.attention_mask, row.positions, row.targets)
                (loss * row.loss_tokens / tokens).backward()
                total += loss.item() * row.loss_tokens / tokens
            torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(total)
            progress(len(losses), len(losses) / steps, {"sft_loss": total})
        if not are_finite(policy.parameters()):
            raise InvalidInput("SFT made weights that are not finite; halve sft.learning_rate")
        # 3. Keep the epoch that the held-out demonstrations like best
        if validation:
            held_out.append(_loss(policy, validation, states))
            if held_out[-1] >= min(held_out[:-1]):
                policy.load_tensors(best)
                break
            best = policy.tensors()
    return {
        "demonstrations": len(demonstrations),
        "held_out": len(held),
        "steps": len(losses),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "held_out_losses": held_out,
    }


def row_tokens(config: SFTConfig, backbone: Backbone) -> int:
    """How long a demonstration may be: as asked, but no longer than the model reads."""
    return min(config.sequence_length, backbone.context_length)


def hold_out(demonstrations: Sequence[Shown], share: float, seed: int) -> tuple[list[Shown], list[Shown]]:
    """Those to learn from, and at least that share of all to be asked about.

    Whole conversations, told by their first question: turns of one know each other. Nothing is held out of fewer than
    `MIN_FOR_HOLDOUT`, or where all begin alike.
    """
    talks: dict[str, list[Shown]] = {}
    for shown in demonstrations:
        talks.setdefault(next(m.content for m in shown.messages if m.role == "user"), []).append(shown)
    shuffled = list(talks.values())
    random.Random(seed).shuffle(shuffled)
    shuffled.sort(key=len, reverse=True)  # the shortest are held out, lest one of many turns takes all
    wanted = len(demonstrations) * share if len(demonstrations) >= MIN_FOR_HOLDOUT else 0
    held: list[Shown] = []
    while len(held) < wanted and len(shuffled) > 1:
        held += shuffled.pop()
    return [shown for talk in shuffled for shown in talk], held


def pack(policy: Policy, demonstrations: Sequence[Shown], length: int) -> list[Packed]:
    """First-fit packing of whole texts into rows of `length`; longer texts are cut as `Shown.token_ids` says."""
    tokenizer = policy.backbone.tokenizer
    bins: list[list[tuple[list[int], int]]] = []
    room: list[int] = []
    for shown in demonstrations:
        prompt, answer = shown.token_ids(tokenizer, length)
        text = [*prompt, *answer]
        fitting = next((number for number, left in enumerate(room) if len(text) <= left), len(bins))
        if fitting == len(bins):
            bins.append([])
            room.append(length)
        bins[fitting].append((text, len(prompt)))
        room[fitting] -= len(text)
    return [_packed(texts) for texts in bins]


def _packed(texts: list[tuple[list[int], int]]) -> Packed:
    ids = torch.tensor([t for text, _ in texts for t in text])
    segments = torch.tensor([i for i, (text, _) in enumerate(texts) for _ in text])
    positions = torch.tensor([p for text, _ in texts for p in range(len(text))])
    targets = torch.tensor(
        [
            text[place + 1] if prompt - 1 <= place < len(text) - 1 else -1
            for text, prompt in texts
            for place in range(len(text))
        ]
    )
    return Packed(ids[None], positions[None], segments, targets[None])


@torch.no_grad()
def _loss(policy: Policy, rows: Sequence[Packed], states: dict[int, Tensor]) -> float:
    tokens = sum(row.loss_tokens for row in rows)
    total = 0.0
    for row in rows:
        loss = policy.next_token_loss(states[id(row)], row.attention_mask, row.positions, row.targets)
        total += float(loss) * row.loss_tokens
    return total / tokens
