"""What our reward model reads of many answers, each read once: fits on ever other choices of them then cost little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.roles import FrozenLayers
from training.scorer import GROUPS, IMAGINED_TOKENS, WINDOW, Scorer
from training.sequences import Sequences


class Answers:
    """What a scorer reads of B answers, each read once: its features at s_T for any average token (tests hold that)."""

    def __init__(self, frozen: FrozenLayers, scorer: Scorer, micro_batch_tokens: int) -> None:
        self._frozen, self._scorer, self._tokens = frozen, scorer, micro_batch_tokens
        self._row: dict[tuple[int, ...], int] = {}
        self._parts = torch.empty(0)

    def rows(self, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Tensor:
        """Where these answers are kept (B,)."""
        keys = [(*prompt, -1, *answer) for prompt, answer in zip(prompts, answers, strict=True)]
        new = list(dict.fromkeys(key for key in keys if key not in self._row))
        if new:
            texts = [(key[: key.index(-1)], key[key.index(-1) + 1 :]) for key in new]
            parts = self._read(Sequences.of([prompt for prompt, _ in texts], [answer for _, answer in texts]))
            self._row |= {key: len(self._row) + number for number, key in enumerate(new)}
            self._parts = torch.cat([self._parts, parts]) if len(self._parts) else parts
        return torch.tensor([self._row[key] for key in keys])

    def centre(self, rows: Tensor) -> Tensor:
        """An average token of these answers (3, D)."""
        sums, *_, lengths = self._split(rows)
        centre: Tensor = sums.sum(0) / lengths.sum()
        return centre

    def features(self, rows: Tensor, centre: Tensor) -> Tensor:
        """As `Scorer.all_features`: (B, F)."""
        sums, first, latest, now, lengths = self._split(rows)
        means = (sums - lengths[:, None] * centre) / (lengths[:, None] + IMAGINED_TOKENS)
        some = lengths.clamp(max=WINDOW)
        windows = [(words - some * centre[0]) / WINDOW for words in (first, latest)]
        return torch.cat([means.flatten(1), *windows, now.flatten(1)], 1)

    def _split(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Sums of all tokens' states at three depths (B, 3, D), of the first and the latest embeddings (B, D), the last
        states (B, 2, D) and the lengths (B, 1).
        """
        parts = self._parts[rows]
        size = (parts.shape[1] - 1) // 7
        sums, first, latest, now, lengths = parts.split([3 * size, size, size, 2 * size, 1], 1)
        return sums.view(-1, 3, size), first, latest, now.view(-1, 2, size), lengths

    @torch.no_grad()
    def _read(self, sequences: Sequences) -> Tensor:
        states = self._frozen(sequences, self._tokens)
        found = torch.empty(len(sequences), 7 * self._scorer.centre.shape[1] + 1)
        for rows in sequences.micro_batches(self._tokens):
            batch = sequences.take(rows)
            depths = self._scorer.depths(states.boundary_of(rows), states.near_of(rows), batch)
            for place, (row, length) in enumerate(zip(rows.tolist(), batch.answer_mask.sum(-1).tolist(), strict=True)):
                words, boundary, top = (depth[place, : length + 1] for depth in depths)
                found[row] = torch.cat([
                    *(depth[1:].sum(0) for depth in (words, boundary, top)),
                    words[1 : WINDOW + 1].sum(0), words[1:][-WINDOW:].sum(0), boundary[-1], top[-1],
                    torch.tensor([float(length)]),
                ])  # fmt: skip
        return found


@dataclass(frozen=True)
class Reader:
    """What a reward model reads, brought to one scale by the answers that were voted on."""

    answers: Answers
    centre: Tensor
    mean: Tensor
    std: Tensor

    @classmethod
    def of(cls, answers: Answers, rows: Tensor) -> Reader:
        """As `Scorer.standardise` does it."""
        centre = answers.centre(rows)
        raw = answers.features(rows, centre)
        weights = torch.tensor(list(GROUPS.values())).repeat_interleave(centre.shape[1])
        return cls(answers, centre, raw.mean(0), (raw.std(0) + 1e-6) * weights.norm() / weights)

    def __call__(self, rows: Tensor) -> Tensor:
        """Standardised features (B, F)."""
        return (self.answers.features(rows, self.centre) - self.mean) / self.std
