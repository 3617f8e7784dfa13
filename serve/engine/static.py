"""The lean forward pass for a GPU: each step in one of few shapes, recorded once as a CUDA graph and played again.

A step of a small model is hundreds of small kernels, and asking for them from Python takes longer than computing them;
a graph asks for all at once. It reads and writes at the addresses it was recorded with, so a step's inputs are copied
to where they lay then, and when keys, values or adapters move it is recorded anew. Prompts go through as they are.
https://pytorch.org/blog/accelerating-pytorch-with-cuda-graphs/
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from serve.engine.decoder import check_ids
from serve.engine.llama import LlamaDecoder, LlamaShape
from serve.engine.slots import StaticSlots

if TYPE_CHECKING:
    from serve.engine.slots import KeyValues
    from serve.policy.base import Backbone


class Recording(Protocol):
    """A step that was recorded."""

    def play(self) -> Tensor:
        """Compute it from what its inputs hold now → logits (rows, V)."""


class Graph:
    """A step as a CUDA graph."""

    def __init__(self, step: Callable[[], Tensor], beside: Graph | None) -> None:
        """`step` must give the same when it is run twice. Intermediate results share memory with those of `beside`."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step()  # kernels and workspaces that come with their first use come now: while recording, they may not
        torch.cuda.current_stream().wait_stream(aside)
        self._graph = torch.cuda.CUDAGraph()
        pool = None if beside is None else beside._graph.pool()
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self._logits = step()

    def play(self) -> Tensor:
        """Compute the step → logits (rows, V), a copy: the next graph may use the same memory."""
        self._graph.replay()
        return self._logits.clone()


class StaticDecoder(LlamaDecoder):
    """The lean forward pass over slots that stay where they are. Without a GPU it computes the same, unrecorded."""

    slots = StaticSlots

    def __init__(self, shape: LlamaShape, backbone: Backbone, *, places: int, max_rank: int) -> None:
        """Raises ModelError for weights that are broken or missing, or do not fit into memory."""
        super().__init__(shape, backbone, places=places, max_rank=max_rank)
        while self.bank.settle(release=True):  # now: later the weights must not move
            pass
        self.record: Callable[..., Recording] | None = Graph if backbone.device.type == "cuda" else None
        """Takes a step, and a recording beside it or None."""

    def forward(self, token_ids: Tensor, cache: KeyValues) -> Tensor:
        """Token ids (rows, T) that follow what the cache holds → logits of the last one (rows, V)."""
        check_ids(token_ids, len(self._embedding))
        if not isinstance(cache, StaticSlots):
            return super().forward(token_ids, cache)
        tokens, places = cache.aim(token_ids, self.bank.routed)
        with self.bank.routed_by(places):
            logits = self._step(functools.partial(super().forward, tokens, cache), cache)
        cache.advance()
        return logits[: len(token_ids)]

    def settle(self) -> bool:
        """There is nothing left to prepare."""
        return False

    def _step(self, step: Callable[[], Tensor], cache: StaticSlots) -> Tensor:
        if self.record is None:
            return step()
        moves = (cache.moves, self.bank.moves)
        if moves != cache.recorded_at:
            cache.recorded.clear()
            cache.recorded_at = moves
        if cache.shape not in cache.recorded:
            beside = next(iter(cache.recorded.values()), None)
            cache.recorded[cache.shape] = self.record(step, beside)
        recording: Recording = cache.recorded[cache.shape]
        return recording.play()
