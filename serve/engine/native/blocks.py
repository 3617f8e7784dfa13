"""Keys and values as llama.c keeps them: blocks of 32 tokens, shared by the sequences that begin alike.

A full block is never written again, so any number of sequences may hold it; it goes when the last of them does.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Tokens in a block; llama.c has the same constant."""


class BlockSequence:
    """One row's blocks, and how many tokens are in them."""

    def __init__(self, blocks: list[Tensor], length: int, trunk: int) -> None:
        """Of the first `length` tokens all is there. The states lie above `trunk` layers."""
        self.blocks = blocks
        self.length = length
        self.trunk = trunk

    def reserve(self, length: int, block_size: int) -> None:
        """Make room for so many tokens; `block_size` counts half floats."""
        while len(self.blocks) * BLOCK < length:
            self.blocks.append(torch.empty(block_size, dtype=torch.float16))

    def fork(self) -> BlockSequence:
        """Another sequence that begins as this one: full blocks are shared, the last one is copied."""
        full = self.length // BLOCK
        return BlockSequence(
            self.blocks[:full] + [block.clone() for block in self.blocks[full:]], self.length, self.trunk
        )

    def addresses(self, width: int) -> list[int]:
        """Where the blocks lie, filled up with zeros."""
        return [block.data_ptr() for block in self.blocks] + [0] * (width - len(self.blocks))


class BlockPrompt:
    """A prompt on its way through the model, a sequence for each version that reads it."""

    def __init__(self, sequences: list[BlockSequence], trunk_length: int = 0) -> None:
        """All of the same length; the trunk's part is there for `trunk_length` tokens."""
        self.sequences = sequences
        self.trunk_length = trunk_length

    @property
    def length(self) -> int:
        """Tokens of the prompt that are in."""
        return self.sequences[0].length


class BlockSlots:
    """The sequences that decode together."""

    def __init__(self) -> None:
        self.sequences: list[BlockSequence] = []

    def adopt(self, prompt: BlockPrompt, source: int) -> None:
        """Append a row that goes on from row `source` of a prompt."""
        self.sequences.append(prompt.sequences[source].fork())

    def remove(self, row: int) -> None:
        """Drop a row; the last one takes its number."""
        self.sequences[row] = self.sequences[-1]
        self.sequences.pop()
