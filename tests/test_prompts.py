"""Which prompts PPO samples, and which the gate keeps."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from serve.records import Message
from tests.tiny import byte_tokenizer
from training.preferences import Prompt
from training.prompts import PromptPool, split_prompts


def prompt(text: str, source: str = "voter", asked: int = 1) -> Prompt:
    return Prompt(1, (Message("user", text),), source, asked)


def texts(prompts: Sequence[Sequence[int]]) -> list[str]:
    return [byte_tokenizer().decode(list(ids)) for ids in prompts]


def test_the_gates_prompts_are_never_sampled() -> None:
    prompts = [prompt(f"question {i}") for i in range(20)]
    pool, held_out = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=6)
    assert len(held_out) == 6
    assert not set(held_out) & set(pool.prompts)
    assert len(pool.prompts) == 14


def test_a_small_record_keeps_half_for_training() -> None:
    pool, held_out = split_prompts([prompt("a"), prompt("b")], byte_tokenizer(), longest=500, held_out=32)
    assert (len(pool.prompts), len(held_out)) == (1, 1)


def test_long_prompts_are_left_out_and_equal_ones_are_one() -> None:
    prompts = [prompt("x" * 900), prompt("same"), prompt("same", asked=3), prompt("other", "shipped", 0)]
    pool, held_out = split_prompts(prompts, byte_tokenizer(), longest=200, held_out=1)
    assert len(pool.prompts) + len(held_out) == 2


def test_a_prompt_weighs_as_often_as_it_was_asked_and_one_of_a_test_not_at_all() -> None:
    prompts = [prompt("shipped", "shipped", 0), prompt("both", "shipped", 20), prompt("often", asked=3)]
    prompts += [prompt("for a test", asked=0), prompt("held")]
    pool, _ = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=0)
    assert sorted(pool.weights) == [0.25, 1.0, 3.0, 20.0]


def test_what_people_ask_is_drawn_more_often_than_what_is_shipped() -> None:
    pool = PromptPool(((1,), (2,)), (4.0, 0.25))
    drawn = Counter(pool.draw(1, seed)[0] for seed in range(200))
    assert drawn[1,] > 160


def test_a_draw_keeps_to_the_weights_however_large_it_is() -> None:
    """20 prompts asked ten times each and 100 that came with the project: 8 of 9 draws are of the former."""
    pool = PromptPool(tuple((i,) for i in range(120)), (10.0,) * 20 + (0.25,) * 100)
    for count, seed in ((16, 1), (64, 2), (256, 3)):
        drawn = Counter(pool.draw(count, seed))
        asked = sum(times for (i,), times in drawn.items() if i < 20)
        assert abs(asked - count * 200 / 225) <= 4
        assert max(drawn.values()) <= count * 10 / 225 + 1
    one = PromptPool(((1,), (2,), (3,)), (20.0, 1.0, 1.0))
    assert Counter(one.draw(22, 5)) == {(1,): 20, (2,): 1, (3,): 1}


def test_what_is_asked_all_the_time_stays_with_ppo() -> None:
    prompts = [prompt(f"question {i}") for i in range(20)] + [prompt("often", asked=10)]
    _, held_out = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=10)
    assert len(held_out) == 10
    assert not any("often" in said for said in texts(held_out))
    few = [prompt("one", asked=5), prompt("two", asked=5)]
    assert len(split_prompts(few, byte_tokenizer(), longest=500, held_out=1)[1]) == 1


def test_what_one_run_learned_from_no_later_one_is_judged_on() -> None:
    asked = [prompt(f"question {i}") for i in range(200)]
    pools = [split_prompts(asked[:count], byte_tokenizer(), longest=500, held_out=30) for count in (60, 90, 200)]
    learned: set[tuple[int, ...]] = set()
    for pool, held_out in pools:
        assert len(held_out) == 30
        assert not learned & set(held_out)
        learned |= set(pool.prompts)


def test_what_was_demonstrated_is_the_last_to_be_held_out() -> None:
    prompts = [prompt(f"question {i}") for i in range(30)] + [prompt(f"shown {i}", "demonstrated") for i in range(30)]
    _, held_out = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=10)
    assert all("question" in said for said in texts(held_out))
    both = [prompt(f"question {i}") for i in range(40)] + [prompt(f"question {i}", "demonstrated") for i in range(20)]
    _, held_out = split_prompts(both, byte_tokenizer(), longest=500, held_out=20)
    rest, _ = split_prompts(both[20:40], byte_tokenizer(), longest=500, held_out=0)
    assert set(held_out) == set(rest.prompts)


@pytest.mark.parametrize("source", ["imported", "demonstrated"])
def test_a_large_import_does_not_outweigh_what_people_ask(source: str) -> None:
    prompts = [prompt(f"question {i}", asked=2) for i in range(30)]
    prompts += [prompt(f"row {i}", source) for i in range(1800)]
    pool, _ = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=0)
    drawn = Counter("question" in said for seed in range(10) for said in texts(pool.draw(32, seed)))
    assert drawn[True] == pytest.approx(160, abs=35)
    few, _ = split_prompts([*prompts[:30], *prompts[-5:]], byte_tokenizer(), longest=500, held_out=0)
    assert sorted(few.weights) == [1.0] * 5 + [2.0] * 30, "a small one weighs what it weighs"


def test_a_draw_repeats_only_when_the_pool_is_spent_and_is_the_same_for_the_same_seed() -> None:
    pool = PromptPool(tuple((i,) for i in range(5)), (1.0,) * 5)
    assert len(set(pool.draw(5, 3))) == 5
    assert max(Counter(pool.draw(12, 3)).values()) == 3
    assert pool.draw(12, 3) == pool.draw(12, 3)
