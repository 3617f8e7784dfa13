"""Which prompts PPO samples, and which the gate keeps."""

from __future__ import annotations

from collections import Counter

from serve.records import Message
from tests.tiny import byte_tokenizer
from training.preferences import Prompt
from training.prompts import PromptPool, split_prompts


def prompt(text: str, source: str = "voter", asked: int = 1) -> Prompt:
    return Prompt(1, (Message("user", text),), source, asked)


def test_the_gates_prompts_are_never_sampled() -> None:
    prompts = [prompt(f"question {i}") for i in range(20)]
    pool, held_out = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=6, seed=1)
    assert len(held_out) == 6
    assert not set(held_out) & set(pool.prompts)
    assert len(pool.prompts) == 14


def test_a_small_record_keeps_half_for_training() -> None:
    pool, held_out = split_prompts([prompt("a"), prompt("b")], byte_tokenizer(), longest=500, held_out=32, seed=1)
    assert (len(pool.prompts), len(held_out)) == (1, 1)


def test_long_prompts_are_left_out_and_equal_ones_are_one() -> None:
    prompts = [prompt("x" * 900), prompt("same"), prompt("same", asked=3), prompt("other", "shipped", 0)]
    pool, held_out = split_prompts(prompts, byte_tokenizer(), longest=200, held_out=1, seed=1)
    assert len(pool.prompts) + len(held_out) == 2


def test_a_prompt_weighs_as_often_as_it_was_asked_and_one_of_a_test_not_at_all() -> None:
    prompts = [prompt("shipped", "shipped", 0), prompt("both", "shipped", 20), prompt("often", asked=3)]
    prompts += [prompt("for a test", asked=0), prompt("held")]
    pool, _ = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=0, seed=1)
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
    for seed in range(20):
        _, held_out = split_prompts(prompts, byte_tokenizer(), longest=500, held_out=10, seed=seed)
        assert len(held_out) == 10
        assert not any("often" in byte_tokenizer().decode(list(ids)) for ids in held_out)
    few = [prompt("one", asked=5), prompt("two", asked=5)]
    assert len(split_prompts(few, byte_tokenizer(), longest=500, held_out=1, seed=1)[1]) == 1


def test_a_draw_repeats_only_when_the_pool_is_spent_and_is_the_same_for_the_same_seed() -> None:
    pool = PromptPool(tuple((i,) for i in range(5)), (1.0,) * 5)
    assert len(set(pool.draw(5, 3))) == 5
    assert max(Counter(pool.draw(12, 3)).values()) == 3
    assert pool.draw(12, 3) == pool.draw(12, 3)
