"""Parts run on several threads, in order, as the caller would run them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from training.parallel import in_parallel


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_with_one_core_each() -> None:
    meeting = threading.Barrier(2, timeout=10)  # passes only when two are at work at once

    def run(part: int) -> tuple[int, int]:
        meeting.wait()
        return part, torch.get_num_threads()

    assert in_parallel(run, range(4)) == [(0, 1), (1, 1), (2, 1), (3, 1)]
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("mode", [True, False])
def test_gradients_are_on_where_the_caller_has_them_on(mode: bool) -> None:
    with torch.set_grad_enabled(mode):
        assert in_parallel(lambda _: torch.is_grad_enabled(), range(3)) == [mode] * 3


def test_one_parts_error_reaches_the_caller() -> None:
    def run(part: int) -> int:
        if part == 1:
            raise ValueError("broken part")
        return part

    with pytest.raises(ValueError, match="broken part"):
        in_parallel(run, range(3))
