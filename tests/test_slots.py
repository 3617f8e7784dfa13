from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from serve.engine import slots as slots_module
from serve.engine.slots import BLOCK, STATIC_SPAN, PromptCache, Slots, StaticSlots

CPU = torch.device("cpu")


def _prompt(length: int, value: float) -> PromptCache:
    """One row, one layer, two heads of three."""
    cache = PromptCache(rows=1, capacity=length)
    cache.begin(length, torch.float32, CPU)
    cache.write(0, torch.full((1, 2, length, 3), value), torch.full((1, 2, length, 3), -value))
    cache.end()
    return cache


def _step(slots: Slots, values: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """One token a row → positions (rows,), mask, keys and values (rows, span), these of the first head and feature."""
    positions, mask = slots.begin(1, torch.float32, CPU)
    new = torch.tensor(values)[:, None, None, None].expand(-1, 2, 1, 3)
    keys, stored = slots.write(0, new, -new)
    slots.end()
    return positions[:, 0], mask[:, 0, 0], keys[:, 0, :, 0], stored[:, 0, :, 0]


def test_a_prompt_in_chunks_sees_its_past_and_never_its_future() -> None:
    cache = PromptCache(rows=2, capacity=3)
    for first, tokens in ((0, 2), (2, 1)):
        positions, mask = cache.begin(tokens, torch.float32, CPU)
        keys, _ = cache.write(0, torch.full((2, 1, tokens, 1), 1.0 + first), torch.zeros(2, 1, tokens, 1))
        cache.end()
    assert positions.tolist() == [[2], [2]]
    assert (mask[0, 0] == 0).tolist() == [[True, True, True]]
    assert keys[1, 0, :, 0].tolist() == [1, 1, 3]
    _, mask = PromptCache(rows=1, capacity=2).begin(2, torch.float32, CPU)
    assert (mask[0, 0] == 0).tolist() == [[True, False], [True, True]]


def test_each_row_writes_at_its_own_position_and_sees_its_own_past() -> None:
    slots = Slots()
    slots.adopt(_prompt(2, 1.0), 0)
    slots.adopt(_prompt(4, 2.0), 0)
    positions, mask, keys, values = _step(slots, [8.0, 9.0])
    assert positions.tolist() == [2, 4]
    assert (mask == 0).tolist() == [[True, True, True, False, False], [True] * 5]
    assert keys.tolist() == [[1, 1, 8, 0, 0], [2, 2, 2, 2, 9]]
    assert values.tolist() == (-keys).tolist()


def test_the_last_row_takes_the_number_of_the_one_that_leaves() -> None:
    slots = Slots()
    for length, value in ((1, 1.0), (2, 2.0), (3, 3.0)):
        slots.adopt(_prompt(length, value), 0)
    slots.remove(0)
    positions, _, keys, _ = _step(slots, [8.0, 9.0])
    assert positions.tolist() == [3, 2]
    assert keys.tolist() == [[3, 3, 3, 8], [2, 2, 9, 0]]


def test_capacity_grows_and_keeps_what_is_there() -> None:
    slots = Slots()
    slots.adopt(_prompt(BLOCK - 1, 1.0), 0)
    for _ in range(3):
        _, _, keys, _ = _step(slots, [2.0])
    assert keys.tolist() == [[1.0] * (BLOCK - 1) + [2.0] * 3]


def test_the_memory_goes_with_the_last_row() -> None:
    slots = Slots()
    slots.adopt(_prompt(5, 1.0), 0)
    slots.remove(0)
    assert slots._keys == []
    slots.adopt(_prompt(1, 2.0), 0)
    assert _step(slots, [3.0])[2].tolist() == [[2.0, 3.0]]


def test_nan_that_a_row_leaves_behind_reaches_no_later_row() -> None:
    slots = Slots()
    slots.adopt(_prompt(1, 1.0), 0)
    slots.adopt(_prompt(6, math.nan), 0)
    slots.adopt(_prompt(2, 2.0), 0)
    slots.remove(1)  # row 2 moves onto the broken one
    slots.adopt(_prompt(7, 3.0), 0)  # makes the span long again
    assert _step(slots, [4.0, 4.0, 4.0])[2].isfinite().all()


def test_memory_that_ends_in_the_first_row_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    slots, prompt, calls = Slots(), _prompt(2, 1.0), iter(range(10))
    reserved = slots_module._reserved

    def fail_for_the_values(like: Tensor, capacity: int) -> Tensor:
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        return reserved(like, capacity)

    monkeypatch.setattr(slots_module, "_reserved", fail_for_the_values)
    with pytest.raises(RuntimeError):
        slots.adopt(prompt, 0)
    slots.adopt(prompt, 0)
    assert _step(slots, [3.0])[2].tolist() == [[1.0, 1.0, 3.0]]


def test_growth_that_memory_stops_half_way_is_finished_by_the_next_step(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots()
    slots.adopt(_prompt(BLOCK - 1, 1.0), 0)
    _step(slots, [3.0])
    new_zeros, calls = Tensor.new_zeros, iter(range(10))

    def fail_for_the_values(like: Tensor, *shape: int) -> Tensor:
        if next(calls) == 1:
            raise RuntimeError("out of memory")
        return new_zeros(like, *shape)

    monkeypatch.setattr(Tensor, "new_zeros", fail_for_the_values)
    with pytest.raises(RuntimeError):
        _step(slots, [3.0])
    _, _, keys, values = _step(slots, [4.0])
    assert keys.tolist() == [[1.0] * (BLOCK - 1) + [3.0, 4.0]]
    assert values.tolist() == (-keys).tolist()


def _aimed(slots: StaticSlots, values: list[float]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `_step`, of as many rows as the step sees."""
    places = torch.arange(len(values)) + 5
    tokens, seen = slots.aim(torch.arange(len(values))[:, None] + 7, places)
    padding = [0.0] * (len(tokens) - len(values))
    stepped = _step(slots, values + padding)
    assert tokens[:, 0].tolist() == [7 + i for i in range(len(values))] + [0] * len(padding)
    assert seen.tolist() == [*places.tolist(), *[0] * len(padding)]
    slots.advance()
    return stepped


def test_a_static_step_sees_a_power_of_two_of_rows_and_a_whole_span() -> None:
    slots = StaticSlots()
    for length in (2, 4, 1):
        slots.adopt(_prompt(length, float(length)), 0)
    for _ in range(2):
        positions, mask, keys, values = _aimed(slots, [8.0, 9.0, 7.0])
    assert slots.shape == (4, STATIC_SPAN)
    assert positions.tolist() == [3, 5, 2, 0]
    assert (mask == 0).sum(1).tolist() == [4, 6, 3, 1]
    assert keys.shape == (4, STATIC_SPAN)
    assert keys[:3, :6].tolist() == [[2, 2, 8, 8, 0, 0], [4, 4, 4, 4, 9, 9], [1, 7, 7, 0, 0, 0]]
    assert values.tolist() == (-keys).tolist()


def test_static_slots_move_only_to_grow() -> None:
    slots = StaticSlots()
    slots.adopt(_prompt(STATIC_SPAN - 2, 1.0), 0)
    _aimed(slots, [2.0])
    moves, where = slots.moves, slots._keys[0].data_ptr()
    slots.remove(0)
    slots.adopt(_prompt(STATIC_SPAN - 1, 1.0), 0)
    _aimed(slots, [2.0])
    assert (slots.moves, slots._keys[0].data_ptr()) == (moves, where)
    keys = _aimed(slots, [3.0])[2]
    assert slots.moves > moves
    assert keys[0, : STATIC_SPAN + 1].tolist() == [1.0] * (STATIC_SPAN - 1) + [2.0, 3.0]
    assert slots.shape == (1, 2 * STATIC_SPAN)
