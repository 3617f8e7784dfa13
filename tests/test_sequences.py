"""Padding, micro-batches, and which state each role reads."""

from __future__ import annotations

import time

import pytest
import torch

from training.sequences import Sequences

SOME = Sequences.of([(10, 11), (12,), (13, 14, 15)], [(1, 2, 3), (4,), (5, 2)])


@pytest.fixture(autouse=True)
def one_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


def test_rows_are_prompt_then_answer_padded_on_the_right() -> None:
    assert SOME.input_ids.tolist() == [[10, 11, 1, 2, 3], [12, 4, 0, 0, 0], [13, 14, 15, 5, 2]]
    assert SOME.attention_mask.sum(-1).tolist() == [5, 2, 5]
    assert SOME.answer_mask.tolist() == [[True] * 3, [True, False, False], [True, True, False]]


def test_the_first_state_is_the_prompts_last_and_the_last_repeats_past_the_end() -> None:
    places = torch.arange(5).float().expand(3, 5)[..., None]
    assert SOME.answer_states(places).squeeze(-1).tolist() == [[1, 2, 3, 4], [0, 1, 1, 1], [2, 3, 4, 4]]


def test_taking_rows_cuts_padding_that_none_needs() -> None:
    one = SOME.take(torch.tensor([1]))
    assert one.input_ids.tolist() == [[12, 4]]
    assert one.answer_ids.tolist() == [[4]]


def test_micro_batches_hold_each_row_once_sorted_by_length_within_the_bound() -> None:
    batches = list(SOME.micro_batches(10))
    assert [b.tolist() for b in batches] == [[1, 0], [2]]
    assert sorted(i for b in batches for i in b.tolist()) == [0, 1, 2]
    for batch in batches:
        assert len(batch) * int(SOME.lengths[batch].max()) <= 10


def test_two_cores_get_parts_of_like_size_within_half_of_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    rows = Sequences.of([(1,)] * 12, [(1,) * (3 + i % 4) for i in range(12)])
    for most, count in ((1000, 2), (90, 2), (60, 4), (24, 10)):
        batches = rows.micro_batches(most)
        assert len(batches) == count
        assert sorted(i for b in batches for i in b.tolist()) == list(range(12))
        padded = [len(b) * int(rows.lengths[b].max()) for b in batches]
        assert max(padded) <= most // 2
        assert most == 24 or max(padded) < 2 * min(padded)


@pytest.mark.parametrize("seed", range(20))
def test_the_bound_holds_whatever_the_lengths(seed: int) -> None:
    lengths = torch.randint(1, 60, (30,), generator=torch.Generator().manual_seed(seed)).tolist() + [150] * (seed % 3)
    rows = Sequences.of([(1,)] * len(lengths), [(1,) * n for n in lengths])
    batches = rows.micro_batches(100)
    assert sorted(i for b in batches for i in b.tolist()) == list(range(len(lengths)))
    assert all(len(b) == 1 or len(b) * int(rows.lengths[b].max()) <= 100 for b in batches)


def test_a_row_longer_than_the_bound_goes_alone_and_leaves_the_others_together() -> None:
    assert [len(b) for b in SOME.micro_batches(1)] == [1, 1, 1]
    rows = Sequences.of([(1,)] * 21, [(1,) * 9] * 20 + [(1,) * 300])
    assert len(rows.micro_batches(100)) < 10


def test_batches_of_many_rows_are_found_at_once() -> None:
    """Each attempt used to look at every row once for every batch: minutes for a few thousand votes."""
    lengths = torch.randint(257, 512, (5_000,), generator=torch.Generator().manual_seed(0)).tolist()
    rows = Sequences.of([(1,)] * len(lengths), [(1,) * n for n in lengths])
    began = time.perf_counter()
    batches = rows.micro_batches(1_024)
    assert time.perf_counter() - began < 5
    assert torch.equal(torch.cat(batches).sort().values, torch.arange(5_000))
    assert all(len(batch) == 1 or len(batch) * int(rows.lengths[batch].max()) <= 1_024 for batch in batches)


def test_some_rows_alone_can_be_batched() -> None:
    assert sorted(i for b in SOME.micro_batches(100, torch.tensor([0, 2])) for i in b.tolist()) == [0, 2]
