"""Drawing the next token of each row, with one uniform number a row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from serve.records import Sampling

GREEDY_BELOW = 1e-4
"""Temperatures below this are greedy: dividing by them would overflow and change nothing."""


def draw(logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float]) -> tuple[list[int], list[float]]:
    """One token a row: logits (N, V), ways of sampling, numbers in [0, 1) → N token ids, N log-probabilities.

    The log-probability is the token's at the row's temperature (at 1 when greedy), before top-k and top-p.
    """
    temperatures = torch.tensor([1.0 if is_greedy(s) else s.temperature for s in sampling], device=logits.device)
    logprobs = torch.log_softmax(logits.float() / temperatures[:, None], dim=-1)  # (N, V)
    tokens = logprobs.argmax(dim=-1)
    u = torch.tensor(uniforms, dtype=torch.float64, device=logits.device)
    drawn = [i for i, s in enumerate(sampling) if not is_greedy(s)]
    filtered = [i for i in drawn if 0 < sampling[i].top_k < logits.shape[-1] or sampling[i].top_p < 1]
    whole = [i for i in drawn if i not in filtered]
    if whole:
        tokens[whole] = _invert(logprobs[whole].exp(), u[whole])
    if filtered:
        tokens[filtered] = _draw_filtered(logprobs[filtered].exp(), [sampling[i] for i in filtered], u[filtered])
    return tokens.tolist(), logprobs.gather(-1, tokens[:, None])[:, 0].tolist()


def is_greedy(sampling: Sampling) -> bool:
    """The likeliest token is taken."""
    return sampling.temperature < GREEDY_BELOW


def _invert(probabilities: Tensor, u: Tensor) -> Tensor:
    """Inverse CDF: probabilities (N, V) in any scale, u (N,) → indices (N,). Never one of probability zero."""
    cdf = probabilities.cumsum(dim=-1, dtype=torch.float64)
    total = cdf[:, -1:]
    height = torch.minimum(u[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(cdf, height, right=True)[:, 0]
    return index.clamp(
        max=probabilities.shape[-1] - 1
    )  # only NaN needs it; the caller sees that by the log-probability


def _draw_filtered(probabilities: Tensor, sampling: Sequence[Sampling], u: Tensor) -> Tensor:
    """Top-k, then top-p on what is left: the smallest set of the likeliest tokens that reaches p."""
    vocabulary = probabilities.shape[-1]
    top_k = torch.tensor([min(s.top_k, vocabulary) or vocabulary for s in sampling], device=u.device)
    top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float64, device=u.device)
    likeliest, ids = probabilities.double().topk(int(top_k.max()), dim=-1)  # (N, K), descending
    likeliest = likeliest.masked_fill(torch.arange(ids.shape[-1], device=u.device) >= top_k[:, None], 0.0)
    before = likeliest.cumsum(dim=-1) - likeliest
    reached = before >= top_p[:, None] * likeliest.sum(dim=-1, keepdim=True)
    likeliest = likeliest.masked_fill(reached & (before > 0), 0.0)  # the likeliest token stays, whatever p is
    return ids.gather(-1, _invert(likeliest, u)[:, None])[:, 0]
