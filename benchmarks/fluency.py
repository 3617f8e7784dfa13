"""Is the text still text? Measured on saved answers, after the servers have gone: a win rate alone proves nothing."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.voters import words
from serve.policy.base import Backbone
from serve.policy.chat import answer_ids, render
from serve.records import Message

MIN_DISTINCT = 0.9
MIN_MEDIAN_WORDS = 8
MAX_NLL_RISE = 0.5
"""Nats a token above the base's own answers."""


@dataclass(frozen=True)
class SavedAnswer:
    """One held-out prompt, answered."""

    index: int
    prompt: str
    version: int
    seed: int
    text: str
    finish_reason: str


@dataclass(frozen=True)
class Fluency:
    """Figures of one version's answers to the held-out prompts."""

    distinct: float
    """Share of answers that no other prompt was given."""
    median_words: float
    nll: float
    """Mean negative log-likelihood under the base, in nats a token."""
    capped: float
    """Share of answers that ran into the token limit."""

    def as_json(self) -> dict[str, float]:
        """The figures by name."""
        return asdict(self)


def measure(answers: Sequence[SavedAnswer], nll: float) -> Fluency:
    """All figures; `nll` comes from `mean_nll`."""
    return Fluency(
        distinct=len({" ".join(words(answer.text)) for answer in answers}) / len(answers),
        median_words=statistics.median(len(words(answer.text)) for answer in answers),
        nll=nll,
        capped=sum(answer.finish_reason == "length" for answer in answers) / len(answers),
    )


def complaints(ours: Fluency, base: Fluency) -> list[str]:
    """Why a win rate of these answers would not count; empty if it does."""
    found = []
    if ours.distinct < MIN_DISTINCT:
        found.append(f"only {ours.distinct:.0%} of answers are distinct")
    if ours.median_words < MIN_MEDIAN_WORDS:
        found.append(f"the median answer has {ours.median_words:g} words")
    if not ours.nll <= base.nll + MAX_NLL_RISE:  # also catches nan
        found.append(f"{ours.nll - base.nll:.2f} nats a token less likely under the base than its own answers")
    return found


def mean_nll(
    backbone: Backbone, answers: Sequence[SavedAnswer], *, progress: Callable[[str], None] = lambda _: None
) -> float:
    """Mean negative log-likelihood of the answers' tokens under the base, given their prompts.

    The closing EOS counts where the answer ended by itself. One sequence at a time: no padding can blur it.
    """
    import torch

    total, tokens = 0.0, 0
    with torch.inference_mode():
        for done, answer in enumerate(answers):
            progress(f"likelihood of answer {done + 1} of {len(answers)}")
            prompt = render(backbone.tokenizer, [Message("user", answer.prompt)])
            ids = answer_ids(backbone.tokenizer, answer.text)
            if answer.finish_reason != "stop":
                ids = ids[:-1]
            if not ids:
                continue
            sequence = torch.tensor([prompt + ids])  # (1, P + A)
            keep: dict[str, Any] = {"logits_to_keep": len(ids) + 1}
            logits = backbone.model(sequence, **keep).logits[0, :-1].float()  # (A, V), each predicts the next token
            logprobs = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])  # (A, 1)
            total -= float(logprobs.sum())
            tokens += len(ids)
    return total / tokens if tokens else float("nan")
