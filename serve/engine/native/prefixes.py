"""Blocks of earlier prompts and answers, found again by the version that computed them and the tokens they hold.

A tree for each version: a node is one full block, its place in the tree the tokens before it. The next turn of a
conversation begins with all that was said, so only what is new goes through the model. What is found is what would be
computed, bit for bit. What only another version has computed is found too: its trunk part is the same for all. The
least recently used blocks go first, and never before those that follow them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor

from serve.engine.native.blocks import BLOCK

Tokens = tuple[int, ...]


class _Node:
    """One block, and those that follow it."""

    def __init__(self, parent: _Node | None, tokens: Tokens, block: Tensor | None) -> None:
        self.parent = parent
        self.tokens = tokens
        self.block = block
        self.children: dict[Tokens, _Node] = {}


class Prefixes:
    """At most `budget` tokens of keys and values. One thread uses it."""

    def __init__(self, budget: int) -> None:
        self._capacity = budget // BLOCK
        self._roots: dict[int, _Node] = {}
        self._used: OrderedDict[_Node, None] = OrderedDict()
        """Nodes, the least recently used first; a node always comes before its parent."""

    def __len__(self) -> int:
        """Tokens kept."""
        return len(self._used) * BLOCK

    def find(self, version: int, tokens: Sequence[int]) -> list[Tensor]:
        """The blocks of the longest beginning that this version has computed."""
        return self._use(self._path(self._roots.get(version), _chunks(tokens)))

    def find_any(self, tokens: Sequence[int]) -> list[Tensor]:
        """The blocks of the longest beginning that any version has computed. Only those count as used."""
        chunks = _chunks(tokens)
        return self._use(max((self._path(root, chunks) for root in self._roots.values()), key=len, default=[]))

    def keep(self, version: int, tokens: Sequence[int], blocks: Sequence[Tensor]) -> None:
        """Remember a sequence's full blocks; they are never written again."""
        node = self._roots.setdefault(version, _Node(None, (), None))
        path: list[_Node] = []
        for chunk, block in zip(_chunks(tokens), blocks, strict=False):
            node = node.children.setdefault(chunk, _Node(node, chunk, block))
            path.append(node)
        self._touch(path)
        while len(self._used) > self._capacity:
            oldest, _ = self._used.popitem(last=False)
            assert oldest.parent is not None and not oldest.children
            del oldest.parent.children[oldest.tokens]
        self._roots = {version: root for version, root in self._roots.items() if root.children}

    def forget(self, version: int) -> None:
        """The version's weights are others now."""
        waiting = [self._roots.pop(version)] if version in self._roots else []
        while waiting:
            node = waiting.pop()
            self._used.pop(node, None)
            waiting.extend(node.children.values())

    def clear(self) -> None:
        """Forget everything."""
        self._roots.clear()
        self._used.clear()

    @staticmethod
    def _path(node: _Node | None, chunks: Sequence[Tokens]) -> list[_Node]:
        """The nodes below a root that hold these tokens, as far as there are any."""
        path: list[_Node] = []
        for chunk in chunks:
            node = node and node.children.get(chunk)
            if node is None:
                break
            path.append(node)
        return path

    def _use(self, path: Sequence[_Node]) -> list[Tensor]:
        """The path's blocks; they count as used."""
        self._touch(path)
        return [node.block for node in path if node.block is not None]

    def _touch(self, path: Sequence[_Node]) -> None:
        for node in reversed(path):
            self._used[node] = None
            self._used.move_to_end(node)


def _chunks(tokens: Sequence[int]) -> list[Tokens]:
    return [tuple(tokens[i : i + BLOCK]) for i in range(0, len(tokens) - BLOCK + 1, BLOCK)]
