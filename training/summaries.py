"""What a scorer reads of whole answers, summed over their tokens: a few numbers an answer, however long it is.

States of every token of every voted answer would fill the memory; these are enough for heads on frozen features.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

IMAGINED_TOKENS = 16
"""So many average tokens count in each mean beside the real ones: one word says little yet, sixty nearly all."""
WINDOW = 8
"""Tokens that the first and the latest few are."""


@dataclass(frozen=True)
class Summaries:
    """Of B answers, in float32."""

    sums: Tensor
    """(B, 3, D): of all tokens' states as embeddings, at the boundary and at the top."""
    first: Tensor
    """(B, D): of the first few tokens' embeddings."""
    latest: Tensor
    """(B, D): of the latest few tokens' embeddings."""
    now: Tensor
    """(B, 2, D): the last state at the boundary and at the top."""
    lengths: Tensor
    """(B, 1): tokens."""

    @classmethod
    def of(cls, depths: tuple[Tensor, Tensor, Tensor], answer_mask: Tensor) -> Summaries:
        """From s₀ … s_T as embeddings, at the boundary and at the top, each (B, T + 1, D); the mask is (B, T)."""
        lengths = answer_mask.sum(-1, keepdim=True)
        words = depths[0][:, 1:]
        places = torch.arange(answer_mask.shape[1])
        first = answer_mask & (places < WINDOW)
        latest = answer_mask & (places >= lengths - WINDOW)
        rows = torch.arange(len(answer_mask))
        return cls(
            torch.stack([_sum(states[:, 1:], answer_mask) for states in depths], 1),
            _sum(words, first),
            _sum(words, latest),
            torch.stack([states[rows, lengths.squeeze(1)] for states in depths[1:]], 1),
            lengths.float(),
        )

    @classmethod
    def cat(cls, parts: list[Summaries]) -> Summaries:
        """One after the other."""
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))

    def take(self, rows: Tensor) -> Summaries:
        """Those of some rows."""
        return Summaries(*(getattr(self, f.name)[rows] for f in fields(self)))

    def centre(self) -> Tensor:
        """The mean of all their tokens: (3, D)."""
        centre: Tensor = self.sums.sum(0) / self.lengths.sum()
        return centre

    def features(self, centre: Tensor) -> Tensor:
        """What `Scorer.features` is at s_T: (B, F)."""
        means = (self.sums - self.lengths[:, None] * centre) / (self.lengths[:, None] + IMAGINED_TOKENS)
        few = self.lengths.clamp(max=WINDOW)
        windows = [(words - few * centre[0]) / WINDOW for words in (self.first, self.latest)]
        return torch.cat([means.flatten(1), *windows, self.now.flatten(1)], 1)


def _sum(states: Tensor, mask: Tensor) -> Tensor:
    """Over the tokens that the mask (B, T) keeps: (B, T, D) → (B, D)."""
    return (states * mask[..., None]).sum(1)
