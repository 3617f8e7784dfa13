"""Prompts with their answers as padded tensors, and what of their hidden states each role reads.

A row is [prompt | answer | padding]. The state that predicts answer token t stands one place before it, so an answer of
T tokens has T + 1 states: s₀ (the prompt's last place, which predicts token 0) … s_T (after the last token).
Logprobs and values are read at s₀ … s_{T−1}; the score of the whole answer at s_T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Sequences:
    """B rows of at most L tokens, with answers of at most T tokens."""

    input_ids: Tensor
    """(B, L), padded on the right."""
    lengths: Tensor
    """(B,) tokens of prompt and answer."""
    prompt_lengths: Tensor
    """(B,)"""
    answer_ids: Tensor
    """(B, T), padded on the right."""
    answer_mask: Tensor
    """(B, T), True where an answer has a token: by length, never by `!= pad`, since the real EOS may be the pad."""
    positions = None
    """Each row is one text, whose places count from 0."""

    @classmethod
    def of(cls, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> Sequences:
        """Pad prompts and answers (token ids) together."""
        rows = [torch.tensor([*p, *a]) for p, a in zip(prompts, answers, strict=True)]
        prompt_lengths, answer_lengths = (torch.tensor([len(ids) for ids in texts]) for texts in (prompts, answers))
        return cls(
            input_ids=pad_sequence(rows, batch_first=True),
            lengths=prompt_lengths + answer_lengths,
            prompt_lengths=prompt_lengths,
            answer_ids=pad_sequence([torch.tensor(a, dtype=torch.long) for a in answers], batch_first=True),
            answer_mask=torch.arange(int(answer_lengths.max())) < answer_lengths[:, None],
        )

    def __len__(self) -> int:
        return len(self.input_ids)

    @property
    def attention_mask(self) -> Tensor:
        """(B, L), 1 on real tokens."""
        return (torch.arange(self.input_ids.shape[1]) < self.lengths[:, None]).long()

    def take(self, rows: Tensor) -> Sequences:
        """Some rows, with padding that none of them needs cut off."""
        lengths = self.lengths[rows]
        width = int(self.answer_mask[rows].sum(-1).max())
        return Sequences(
            self.input_ids[rows, : int(lengths.max())],
            lengths,
            self.prompt_lengths[rows],
            self.answer_ids[rows, :width],
            self.answer_mask[rows, :width],
        )

    def micro_batches(self, max_tokens: int, rows: Tensor | None = None) -> list[Tensor]:
        """Row numbers in batches as `micro_batches` makes them."""
        rows = torch.arange(len(self)) if rows is None else rows
        return [rows[part] for part in micro_batches(self.lengths[rows], max_tokens)]

    def answer_states(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, D) → the answers' states s₀ … s_T (B, T + 1, D); past an answer's end s_T repeats."""
        steps = torch.arange(self.answer_ids.shape[1] + 1)
        ends = self.answer_mask.sum(-1)
        places = self.prompt_lengths[:, None] - 1 + torch.minimum(steps[None], ends[:, None])  # (B, T + 1)
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))


def micro_batches(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Numbers of rows (B,) of so many tokens in batches of like length and size, one for each core (`in_parallel`).

    Those at work together have at most `max_tokens` padded tokens; a row longer than a core's share goes alone.
    """
    rows = lengths.argsort(stable=True)
    lengths = lengths[rows]
    cores = torch.get_num_threads()
    most = max_tokens // cores
    middles, tokens = lengths.cumsum(0) - lengths / 2, int(lengths.sum())
    count = cores * -(-tokens // (cores * max(1, most)))  # fewer would not do without padding either
    while count < len(rows):
        share = (middles * count / tokens).long()  # of equally many tokens
        sizes = share.unique_consecutive(return_counts=True)[1]
        longest = lengths[sizes.cumsum(0) - 1]
        if bool(((sizes == 1) | (sizes * longest <= most)).all()):
            return list(rows.split(sizes.tolist()))
        count += cores
    return list(rows.split(1))
