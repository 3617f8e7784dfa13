"""Keys and values: of a prompt on its way through the model, and of the rows that decode together.

    keys, values of a layer: (rows, kv_heads, capacity, head_dim); row i is filled up to its length

A forward pass begins with `begin`, writes each layer once, and closes with `end`. Positions and mask are explicit, so
nothing is padded or shifted. Memory is taken at the first write: only the model knows its heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

BLOCK = 128
"""Capacity of the running rows grows by this many tokens."""
STATIC_SPAN = 512
"""Of static slots, it is this many tokens, or twice, four times, …"""


class KeyValues(Protocol):
    """What a forward pass asks of its cache."""

    def begin(self, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Before a pass of so many tokens a row → position ids (rows, T), additive mask (rows or 1, 1, T, span)."""

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's new keys and values (rows, kv_heads, T, head_dim) in → all so far (…, span, head_dim) out."""

    def end(self) -> None:
        """After the pass: the new tokens count."""

    @property
    def length(self) -> int:
        """Tokens in the longest row."""


class PromptCache:
    """One prompt's keys and values, a row for each version that reads it, filled chunk by chunk."""

    def __init__(self, rows: int, capacity: int) -> None:
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._rows = rows
        self._capacity = capacity
        self._length = 0
        self._end = 0

    @property
    def length(self) -> int:
        """Tokens of the prompt that are in."""
        return self._length

    def begin(self, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Before a pass of so many tokens a row → position ids (rows, T), causal additive mask (1, 1, T, span)."""
        self._end = self._length + tokens
        positions = torch.arange(self._length, self._end, device=device)
        hidden = torch.arange(self._end, device=device) > positions[:, None]
        return positions.expand(self._rows, -1), _additive(hidden, dtype)[None, None]

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's new keys and values in → all of the prompt so far out."""
        if layer == len(self.layers):
            self.layers.append((_reserved(keys, self._capacity), _reserved(values, self._capacity)))
        for stored, new in zip(self.layers[layer], (keys, values), strict=True):
            stored[:, :, self._length : self._end] = new
        stored_keys, stored_values = self.layers[layer]
        return stored_keys[:, :, : self._end], stored_values[:, :, : self._end]

    def end(self) -> None:
        """After the pass: the new tokens count."""
        self._length = self._end


class Slots:
    """The keys and values of the rows that decode together, each row as long as it is.

    A row joins at the end and a leaving row is replaced by the last one, so the running rows are always the first n and
    a step sees them without copying.
    """

    def __init__(self) -> None:
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        self._lengths: list[int] = []
        self._rows = torch.zeros(0, dtype=torch.long)
        self._positions = torch.zeros(0, dtype=torch.long)
        self._span = 0
        self.moves = 0
        """Changes when keys or values come to lie elsewhere."""

    @property
    def length(self) -> int:
        """Tokens in the longest row."""
        return max(self._lengths, default=0)

    def adopt(self, prompt: PromptCache, source: int) -> None:
        """Append a row: a copy of row `source` of a prompt's cache."""
        length = prompt.length
        if not self._keys:
            keys_of = [_reserved(keys[:1], self._rounded(1)) for keys, _ in prompt.layers]
            values_of = [_reserved(values[:1], self._rounded(1)) for _, values in prompt.layers]
            self._keys, self._values = keys_of, values_of  # both or, if memory ends, neither
        row = len(self._lengths)
        self._reserve(row + 1, length + 1)
        for index, (keys, values) in enumerate(prompt.layers):
            for stored, new in ((self._keys[index], keys), (self._values[index], values)):
                stored[row, :, :length] = new[source, :, :length]
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

    def begin(self, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Make room for one token a row (`tokens` is 1) → position ids (rows, 1), additive mask (rows, 1, 1, span)."""
        assert tokens == 1
        rows, self._span = len(self._lengths), self.length + 1
        self._reserve(rows, self._span)
        return self._look(torch.tensor(self._lengths).to(device), dtype)

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """One layer's new keys and values (rows, kv_heads, 1, head_dim) in → all up to the longest row out."""
        stored_keys, stored_values = self._keys[layer], self._values[layer]
        stored_keys[self._rows, :, self._positions] = keys[:, :, 0]
        stored_values[self._rows, :, self._positions] = values[:, :, 0]
        rows = len(self._rows)
        return stored_keys[:rows, :, : self._span], stored_values[:rows, :, : self._span]

    def end(self) -> None:
        """Every row is one token longer."""
        self._lengths = [length + 1 for length in self._lengths]

    def _reserve(self, rows: int, span: int) -> None:
        """Where memory ends half way, what did not grow grows next time: each tensor is judged by its own shape."""
        for tensors in (self._keys, self._values):
            for index, old in enumerate(tensors):  # one layer at a time: never two whole caches in memory
                old_rows, _, old_span, _ = old.shape
                if rows <= old_rows and span <= old_span:
                    continue
                new_rows = old_rows if rows <= old_rows else max(rows, 2 * old_rows)
                new_span = old_span if span <= old_span else self._rounded(span)
                self.moves += 1
                tensors[index] = old.new_zeros(new_rows, old.shape[1], new_span, old.shape[3])
                tensors[index][:old_rows, :, :old_span] = old

    def _look(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (rows,) of the new tokens → as `begin`."""
        self._rows = torch.arange(len(positions), device=positions.device)
        self._positions = positions
        hidden = torch.arange(self._span, device=positions.device) > positions[:, None]  # (rows, span)
        return positions[:, None], _additive(hidden, dtype)[:, None, None]

    def _rounded(self, span: int) -> int:
        return -(-span // BLOCK) * BLOCK


class StaticSlots(Slots):
    """The same in few shapes, at addresses that stay, so that a step can be recorded and played again.

    A step sees a power of two of rows, and STATIC_SPAN·2ⁿ tokens of each; what rows past the running ones compute is
    not read. Memory stays when rows leave. It is that of the most rows there were, each as long as the longest one was,
    both rounded up in the same way.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recorded: dict[tuple[int, int], Any] = {}
        """Steps that the decoder recorded over these slots, by `shape`."""
        self.recorded_at = (0, 0)
        """`moves` of slots and of the bank when they were."""
        self.shape = (0, 0)
        """Rows and tokens that the coming step sees."""
        self._inputs = torch.zeros(3, 0, dtype=torch.long)  # token id, position and place of each row

    def clear(self) -> None:
        """Drop all rows; the memory stays."""
        self._lengths = []

    def aim(self, token_ids: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Before a step: one token a row (rows, 1) and the rows' places (rows,) → the same where a step reads them."""
        rows = len(self._lengths)
        self._reserve(rows, self.length + 1)
        capacity, device = len(self._keys[0]), self._keys[0].device
        if capacity > self._inputs.shape[1]:
            self._inputs = torch.zeros(3, capacity, dtype=torch.long, device=device)
            self.moves += 1
        self._span = self._rounded(self.length + 1)
        self.shape = (1 << (rows - 1).bit_length(), self._span)
        self._inputs.zero_()
        self._inputs[0, :rows] = token_ids[:, 0]
        self._inputs[1, :rows] = torch.tensor(self._lengths)
        self._inputs[2, :rows] = places
        tokens, _, places = self._inputs[:, : self.shape[0]]
        return tokens[:, None], places

    def begin(self, tokens: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Position ids (rows, 1) and additive mask (rows, 1, 1, span) of the rows that `aim` saw."""
        return self._look(self._inputs[1, : self.shape[0]], dtype)

    def end(self) -> None:
        """Nothing: a step that is played again does not come here. `advance` counts."""

    def advance(self) -> None:
        """After a step: every row is one token longer."""
        super().end()

    def _rounded(self, span: int) -> int:
        return STATIC_SPAN << ((span - 1) // STATIC_SPAN).bit_length()


class PlainCaches:
    """A decoder's caches where nothing of earlier prompts is kept."""

    slots: type[Slots] = Slots

    def prompt(self, versions: Sequence[int], tokens: Sequence[int]) -> PromptCache:
        """A prompt, from its first token."""
        return PromptCache(len(versions), len(tokens))

    def keep(self, cache: PromptCache | Slots, row: int, version: int, tokens: Sequence[int]) -> None:
        """Nothing is kept."""

    def forget(self, version: int) -> None:
        """There is nothing to forget."""


def _reserved(like: Tensor, capacity: int) -> Tensor:
    rows, heads, _, width = like.shape
    return like.new_zeros(rows, heads, capacity, width)


def _additive(hidden: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(hidden.shape, dtype=dtype, device=hidden.device).masked_fill_(hidden, torch.finfo(dtype).min)
