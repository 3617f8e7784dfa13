"""Pairs of answers, as the votes imply them: what the reward model is fitted to and judged by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from training.preferences import Ranked, voter_weights


@dataclass(frozen=True)
class Pairs:
    """N ordered pairs over the rows of all ranked answers."""

    better: Tensor
    """(N,) row of the preferred answer (or the first of a tie)."""
    worse: Tensor
    """(N,) row of the other."""
    target: Tensor
    """(N,) 1, or ½ for a tie."""
    weight: Tensor
    """(N,) the pairs of one ranking sum to 1."""
    pull: Tensor
    """(N,) the weight in fits, where no voter outweighs the others."""
    ranking: Tensor
    """(N,) which ranking each pair comes from."""
    prompt: Tensor
    """(N,) which prompt."""
    margin: Tensor
    """(N,) by how much the better one's score must be higher; 0 for a tie."""
    voter: Tensor
    """(N,) the number of who voted."""
    side: Tensor
    """(N,) 1 where `better` was shown before `worse`, −1 where after it, 0 where nobody knows."""

    @classmethod
    def of(cls, rankings: Sequence[Ranked], max_voter_share: float, margin: float = 0.0) -> Pairs:
        """All pairs; rows count the answers of the rankings in order. The margin is that of the strongest votes."""
        prompts = {prompt: number for number, prompt in enumerate(dict.fromkeys(r.prompt_id for r in rankings))}
        numbers = {voter: number for number, voter in enumerate(dict.fromkeys(r.voter for r in rankings))}
        shares = voter_weights([r.voter for r in rankings], max_voter_share)
        rows: list[tuple[int, int, float, float, float, int, int, float, int, int]] = []
        start = 0
        for index, (ranked, share) in enumerate(zip(rankings, shares, strict=True)):
            pairs = ranked.pairs()
            weight, voter, prompt = 1 / len(pairs), numbers[ranked.voter], prompts[ranked.prompt_id]
            for i, j, target in pairs:
                asked = margin * (ranked.strength or 0) / 5 if target == 1.0 else 0.0
                left, right = ranked.positions[i], ranked.positions[j]
                side = 0 if min(left, right) < 0 else 1 if left < right else -1
                pull = weight * share
                rows.append((start + i, start + j, target, weight, pull, index, prompt, asked, voter, side))
            start += len(ranked.answers)
        return cls(*(torch.tensor(column) for column in zip(*rows, strict=True)))

    def where(self, chosen: Tensor) -> Pairs:
        """The pairs at the True places of (N,)."""
        return Pairs(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def without(self, leanings: Tensor) -> Pairs:
        """What the place explains, by each voter's leaning to what is shown first (V,), is asked of no score."""
        known = torch.nn.functional.pad(leanings.float(), (0, 1))  # 0 for whoever is not among them
        return replace(self, margin=self.margin - known[self.voter.clamp(max=len(leanings))] * self.side)

    def __len__(self) -> int:
        return len(self.better)
