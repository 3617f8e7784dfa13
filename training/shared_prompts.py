"""Answers to one prompt in one row, so that the prompt is read once.

A row is [prompt | answer | answer | … | padding]. Each answer sees the prompt and itself, at the places that it has in
a row of its own, so its states are those of `Sequences`, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from training.sequences import Sequences

ROW_TOKENS, LONGEST_ROW = 512, 2048
"""A row takes more answers up to the first, or twice its prompt, but not beyond the second: looking back at other
answers would cost more than reading the prompt again."""
ROW_ANSWERS = 8
"""Answers are padded to the longest one, and a prompt that is read for eight of them costs little already."""


@dataclass(frozen=True)
class SharedPrompts:
    """B rows of at most L tokens, with N answers of at most T tokens."""

    input_ids: Tensor
    """(B, L), padded on the right."""
    positions: Tensor
    """(B, L): each token's place in its own text."""
    attention_mask: Tensor
    """(B, 1, L, L), True where a place may look at another: at the prompt and, earlier, in the same answer."""
    answer_mask: Tensor
    """(N, T), True where an answer has a token."""
    places: Tensor
    """(N, T + 1): of each answer's states s₀ … s_T among all B · L; past an answer's end s_T repeats."""

    @classmethod
    def of(cls, sequences: Sequences, rows: Sequence[Sequence[int]]) -> SharedPrompts:
        """Rows as `rows_by_prompt` gives them; the answers come in the order in which `rows` names them."""
        ids, segments, positions, starts = [], [], [], []
        for row in rows:
            prompt = int(sequences.prompt_lengths[row[0]])
            ends = [int(sequences.lengths[i]) for i in row]
            texts = [sequences.input_ids[i, prompt:end] for i, end in zip(row, ends, strict=True)]
            ids.append(torch.cat([sequences.input_ids[row[0], :prompt], *texts]))
            sizes = torch.tensor([prompt, *map(len, texts)])
            segments.append(torch.arange(len(sizes)).repeat_interleave(sizes))
            positions.append(torch.cat([torch.arange(prompt), *(torch.arange(prompt, end) for end in ends)]))
            starts += sizes.cumsum(0)[:-1].tolist()
        segment = pad_sequence(segments, batch_first=True, padding_value=-1)
        same = segment[:, :, None] == segment[:, None]
        width = segment.shape[1]
        flat = torch.tensor([i for row in rows for i in row])
        answer_lengths = sequences.lengths[flat] - sequences.prompt_lengths[flat]
        steps = torch.minimum(torch.arange(int(answer_lengths.max()) + 1), answer_lengths[:, None])  # (N, T + 1)
        after = torch.tensor(starts)[:, None] + steps - 1
        row_of = torch.arange(len(rows)).repeat_interleave(torch.tensor([len(row) for row in rows]))
        places = torch.where(steps == 0, sequences.prompt_lengths[flat][:, None] - 1, after) + row_of[:, None] * width
        return cls(
            input_ids=pad_sequence(ids, batch_first=True),
            positions=pad_sequence(positions, batch_first=True),
            attention_mask=(same | (segment == 0)[:, None]).tril()[:, None],
            answer_mask=torch.arange(steps.shape[1] - 1) < answer_lengths[:, None],
            places=places,
        )

    def answer_states(self, hidden: Tensor) -> Tensor:
        """Hidden states (B, L, D) → the answers' states s₀ … s_T (N, T + 1, D)."""
        return hidden.flatten(0, 1)[self.places]


def rows_by_prompt(sequences: Sequences) -> tuple[list[list[int]], Tensor]:
    """Which answers share a row, and the tokens of each row: those to an equal prompt, as many as may."""
    rows: list[list[int]] = []
    lengths: list[int] = []
    latest: dict[tuple[int, ...], int] = {}
    sizes = zip(sequences.prompt_lengths.tolist(), sequences.lengths.tolist(), strict=True)
    for i, (prompt, length) in enumerate(sizes):
        key = tuple(sequences.input_ids[i, :prompt].tolist())
        row = latest.get(key)
        most = max(ROW_TOKENS, min(2 * prompt, LONGEST_ROW))
        if row is None or lengths[row] + length - prompt > most or len(rows[row]) == ROW_ANSWERS:
            row = latest[key] = len(rows)
            rows.append([])
            lengths.append(prompt)
        rows[row].append(i)
        lengths[row] += length - prompt
    return rows, torch.tensor(lengths)
