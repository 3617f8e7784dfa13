"""What was computed is found again, and only that."""

from __future__ import annotations

from torch import Tensor, tensor

from serve.engine.native.blocks import BLOCK
from serve.engine.native.prefixes import Prefixes


def blocks(*numbers: int) -> list[Tensor]:
    return [tensor(number) for number in numbers]


def numbers(found: list[Tensor]) -> list[int]:
    return [int(block) for block in found]


TALK = list(range(3 * BLOCK + 5))


def test_the_longest_beginning_in_whole_blocks_is_found() -> None:
    prefixes = Prefixes(1000)
    prefixes.keep(1, TALK, blocks(1, 2, 3))
    assert numbers(prefixes.find(1, TALK)) == [1, 2, 3]
    assert numbers(prefixes.find(1, TALK[: 2 * BLOCK + 1])) == [1, 2]
    assert numbers(prefixes.find(1, [*TALK[:BLOCK], *([0] * BLOCK)])) == [1]
    assert numbers(prefixes.find(1, TALK[1:])) == []
    assert numbers(prefixes.find(2, TALK)) == []
    assert len(prefixes) == 3 * BLOCK


def test_what_is_there_already_is_kept_and_continued() -> None:
    prefixes = Prefixes(1000)
    prefixes.keep(1, TALK[:BLOCK], blocks(1))
    prefixes.keep(1, TALK, blocks(10, 20, 30))
    prefixes.keep(1, [*TALK[:BLOCK], *([0] * BLOCK)], blocks(10, 40))
    assert numbers(prefixes.find(1, TALK)) == [1, 20, 30]
    assert numbers(prefixes.find(1, [*TALK[:BLOCK], *([0] * BLOCK)])) == [1, 40]


def test_the_least_recently_used_go_first_and_ends_before_beginnings() -> None:
    prefixes = Prefixes(4 * BLOCK)
    prefixes.keep(1, TALK, blocks(1, 2, 3))
    prefixes.keep(2, TALK[:BLOCK], blocks(4))
    prefixes.find(1, TALK[:BLOCK])
    prefixes.keep(3, TALK[: 2 * BLOCK], blocks(5, 6))
    assert numbers(prefixes.find(1, TALK)) == [1]
    assert numbers(prefixes.find(2, TALK)) == [4]
    assert numbers(prefixes.find(3, TALK)) == [5, 6]
    assert len(prefixes) == 4 * BLOCK


def test_a_sequence_longer_than_the_budget_keeps_its_beginning() -> None:
    prefixes = Prefixes(2 * BLOCK + 7)
    prefixes.keep(1, TALK, blocks(1, 2, 3))
    assert numbers(prefixes.find(1, TALK)) == [1, 2]


def test_without_a_budget_nothing_is_kept() -> None:
    prefixes = Prefixes(0)
    prefixes.keep(1, TALK, blocks(1, 2, 3))
    assert numbers(prefixes.find(1, TALK)) == []
    assert len(prefixes) == 0


def test_a_version_is_forgotten_whole_and_alone() -> None:
    prefixes = Prefixes(1000)
    prefixes.keep(1, TALK, blocks(1, 2, 3))
    prefixes.keep(2, TALK, blocks(4, 5, 6))
    prefixes.forget(1)
    prefixes.forget(9)
    assert numbers(prefixes.find(1, TALK)) == []
    assert numbers(prefixes.find(2, TALK)) == [4, 5, 6]
    assert len(prefixes) == 3 * BLOCK


def test_what_another_version_has_better_does_not_keep_the_rest_alive() -> None:
    prefixes = Prefixes(4 * BLOCK)
    prefixes.keep(1, TALK[: 2 * BLOCK], blocks(1, 2))
    prefixes.keep(2, TALK[:BLOCK], blocks(3))
    assert numbers(prefixes.find_any(TALK)) == [1, 2]  # version 2's block has not been used since
    prefixes.keep(3, [0] * 2 * BLOCK, blocks(4, 5))
    assert numbers(prefixes.find(2, TALK)) == []
    assert numbers(prefixes.find(1, TALK)) == [1, 2]
    assert set(prefixes._roots) == {1, 3}
