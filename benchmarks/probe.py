"""The probe that one would write first, beside our reward model: ridge regression of votes on frozen states.

It reads the last state and the mean over the answer after a third, two thirds, five sixths and all of the layers, and
takes the best of four penalties by cross-validation.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from serve.policy.base import Backbone
from training.preferences import Ranked
from training.reward import ranked_sequences
from training.sequences import Sequences

RIDGES = (0.1, 1.0, 10.0, 100.0)
"""Tried on features of unit variance, each divided by the root of their number."""


class Probe:
    """Reads each answer once; fits are cheap then."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._read: dict[tuple[int, ...], Tensor] = {}

    def accuracy(self, rankings: Sequence[Ranked], folds: Sequence[int], held_out: Sequences) -> dict[str, float]:
        """On clean held-out pairs (every two of the 2 · N rows), and on the votes themselves, out of fold.

        `folds` gives each ranking's.
        """
        answers = self._states_of(ranked_sequences(rankings))
        mean, spread = answers.mean(0), answers.std(0) + 1e-6
        width = answers.shape[1] ** 0.5
        features, asked = ((x - mean) / spread / width for x in (answers, self._states_of(held_out)))
        starts = list(itertools.accumulate((len(r.answers) for r in rankings), initial=0))
        pairs = [(start + i, start + j, n) for n, (start, r) in enumerate(zip(starts, rankings, strict=False))
                 for i, j, target in r.pairs() if target == 1.0]  # fmt: skip
        better, worse, of = (torch.tensor(column) for column in zip(*pairs, strict=True))
        differences = features[better] - features[worse]
        fold = torch.tensor(folds)[of]
        kernel = differences.double() @ differences.double().T

        def head(chosen: Tensor, ridge: float) -> Tensor:
            some = kernel[chosen][:, chosen]
            dual = torch.linalg.solve(some + ridge * torch.eye(len(some)), torch.ones(len(some)).double())
            found: Tensor = differences[chosen].T @ dual.float()
            return found

        def out_of_fold(ridge: float) -> float:
            told = (differences[fold == f] @ head(fold != f, ridge) > 0 for f in fold.unique().tolist())
            return float(torch.cat(list(told)).double().mean())

        tried = {ridge: out_of_fold(ridge) for ridge in RIDGES}
        best = max(tried, key=tried.__getitem__)
        scores = asked @ head(torch.ones(len(of), dtype=torch.bool), best)
        return {"probe": right(scores), "probe out of fold": tried[best], "probe's ridge": best}

    @torch.no_grad()
    def _states_of(self, sequences: Sequences) -> Tensor:
        """Last and mean states of four depths of every answer (B, 8 · D)."""
        found = []
        layers = self._backbone.layer_count
        for row in range(len(sequences)):
            length, start = int(sequences.lengths[row]), int(sequences.prompt_lengths[row])
            ids = sequences.input_ids[row, :length]
            key = tuple(ids.tolist())
            if key not in self._read:
                states = self._backbone.model(ids[None], output_hidden_states=True).hidden_states
                depths = [states[layers * k // 6][0, start:].float() for k in (2, 4, 5, 6)]
                self._read[key] = torch.cat([part for x in depths for part in (x[-1], x.mean(0))])
            found.append(self._read[key])
        return torch.stack(found)


def right(scores: Tensor) -> float:
    """Share of pairs (every two of the 2 · N scores) whose first answer scores higher."""
    return float((scores[::2] > scores[1::2]).double().mean())
