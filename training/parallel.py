"""Parts of a batch on all cores at once, each part on one.

Torch also shares out every single operation, but those of a few hundred tokens are too small for that: two threads
wait for each other as long as the second one helps (docs/log.md has the figures).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_parallel(function: Callable[[Part], Result], parts: Iterable[Part]) -> list[Result]:
    """What `function` makes of each part, in order. Parts must not write to the same place."""
    threads, gradients = torch.get_num_threads(), torch.is_grad_enabled()
    if threads == 1:
        return [function(part) for part in parts]

    def work(part: Part) -> Result:
        with torch.set_grad_enabled(gradients):  # each thread has a mode of its own
            return function(part)

    return list(_pool(threads).map(work, parts))


def set_gradients(parameters: Sequence[Tensor], parts: Sequence[Sequence[Tensor]]) -> None:
    """Each parameter's gradient becomes the sum over the parts, always in the same order, so to the same bits."""
    for parameter, (first, *others) in zip(parameters, zip(*parts, strict=True), strict=True):
        parameter.grad = sum(others, start=first)


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "part", initializer=torch.set_num_threads, initargs=(1,))
