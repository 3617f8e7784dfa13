"""The keys and values of the rows that decode together, each row as long as it is.

    keys, values of a layer: (rows, kv_heads, capacity, head_dim); row i is filled up to lengths[i]

A row joins at the end and a leaving row is replaced by the last one, so the running rows are always the first n and a
step sees them without copying. Positions and mask are explicit, so nothing is padded or shifted.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

BLOCK = 128
"""Capacity grows by this many tokens."""


class Slots(Cache):
    """A transformers cache whose rows have lengths of their own. One new token a row and step."""

    def __init__(self) -> None:
        super().__init__(layers=[])
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []
        self._rows = torch.zeros(0, dtype=torch.long)
        self._positions = torch.zeros(0, dtype=torch.long)
        self._span = 0

    def adopt(self, prefilled: DynamicCache, source: int) -> None:
        """Append a row: a copy of row `source` of a prompt's cache."""
        length = prefilled.get_seq_length()
        layers: list[tuple[Tensor, Tensor]] = [
            (layer.keys, layer.values) for layer in cast(list[Any], prefilled.layers)
        ]
        if not self._keys:
            self._keys = [_first_block(keys) for keys, _ in layers]
            self._values = [_first_block(values) for _, values in layers]
        row = len(self._lengths)
        self._reserve(row + 1, length + 1)
        for index, (keys, values) in enumerate(layers):
            for stored, new in ((self._keys[index], keys), (self._values[index], values)):
                stored[row, :, :length] = new[source]
                # What an earlier row left behind is masked, but NaN times zero would still be NaN.
                stored[row, :, length:] = 0
        self._lengths.append(length)

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its number. With the last row all memory goes."""
        last = len(self._lengths) - 1
        if last == 0:
            return self.clear()
        length = self._lengths[row] = self._lengths[last]
        self._lengths.pop()
        if row != last:
            for stored in (*self._keys, *self._values):
                stored[row, :, :length] = stored[last, :, :length]
                stored[row, :, length:] = 0
        return None

    def clear(self) -> None:
        """Drop all rows and their memory."""
        self._keys, self._values, self._lengths = [], [], []

    def begin_step(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Make room for one token a row → its position ids (rows, 1) and additive mask (rows, 1, 1, span)."""
        rows, self._span = len(self._lengths), max(self._lengths) + 1
        self._reserve(rows, self._span)
        device = self._keys[0].device
        self._rows = torch.arange(rows, device=device)
        self._positions = torch.tensor(self._lengths, device=device)
        hidden = torch.arange(self._span, device=device) > self._positions[:, None]  # (rows, span)
        mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, torch.finfo(dtype).min)
        return self._positions[:, None], mask[:, None, None]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer: (rows, kv_heads, 1, head_dim) in → all up to the longest row out."""
        keys, values = self._keys[layer_idx], self._values[layer_idx]
        keys[self._rows, :, self._positions] = key_states[:, :, 0]
        values[self._rows, :, self._positions] = value_states[:, :, 0]
        rows = len(self._rows)
        return keys[:rows, :, : self._span], values[:rows, :, : self._span]

    def end_step(self) -> None:
        """Every row is one token longer."""
        self._lengths = [length + 1 for length in self._lengths]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the longest row."""
        return max(self._lengths, default=0)

    def _reserve(self, rows: int, span: int) -> None:
        old_rows, _, old_span, _ = self._keys[0].shape
        if rows <= old_rows and span <= old_span:
            return
        rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
        span = old_span if span <= old_span else -(-span // BLOCK) * BLOCK
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):  # one layer at a time: never two whole caches in memory
                tensors[index] = old.new_zeros(rows, old.shape[1], span, old.shape[3])
                tensors[index][:old_rows, :, :old_span] = old


def _first_block(prompt: Tensor) -> Tensor:
    return prompt.new_zeros(1, prompt.shape[1], BLOCK, prompt.shape[3])
