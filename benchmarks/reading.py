"""What a scorer reads of many answers, each read once: fits on ever other choices of them then cost little."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from training.roles import FrozenLayers
from training.scorer import Scorer
from training.sequences import Sequences
from training.summaries import Summaries

Tokens = tuple[int, ...]


class Answers:
    """Of an untrained scorer; its mean and deviation may change."""

    def __init__(self, frozen: FrozenLayers, scorer: Scorer, micro_batch_tokens: int) -> None:
        self._frozen, self._scorer, self._tokens = frozen, scorer, micro_batch_tokens
        self._row: dict[tuple[Tokens, Tokens], int] = {}
        self._read: Summaries | None = None

    def summaries(self, prompts: Sequence[Tokens], answers: Sequence[Tokens]) -> Summaries:
        """Of these answers, in order."""
        keys = [(tuple(prompt), tuple(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
        new = list(dict.fromkeys(key for key in keys if key not in self._row))
        if new:
            self._row |= {key: len(self._row) + number for number, key in enumerate(new)}
            sequences = Sequences.of(*zip(*new, strict=True))
            read = self._scorer.summarise(self._frozen, sequences, self._tokens)
            self._read = Summaries.cat([self._read, read]) if self._read else read
        assert self._read is not None, "no answers were ever asked for"
        return self._read.take(torch.tensor([self._row[key] for key in keys]))
