"""The one way from messages to token ids."""

from __future__ import annotations

from serve.policy.chat import answer_ids, render
from serve.records import Message
from tests.tiny import byte_tokenizer


def test_a_prompt_ends_where_the_answer_begins() -> None:
    tokenizer = byte_tokenizer()
    text = tokenizer.decode(render(tokenizer, [Message("user", "hi")]))
    assert text.endswith("<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n")


def test_a_prompt_with_its_answer_is_the_prefix_of_the_next_turn() -> None:
    tokenizer = byte_tokenizer()
    first = [Message("user", "hi")]
    so_far = render(tokenizer, first) + answer_ids(tokenizer, "hello")
    then = render(tokenizer, [*first, Message("assistant", "hello"), Message("user", "more")])
    assert then[: len(so_far)] == so_far


def test_an_answer_closes_with_eos() -> None:
    tokenizer = byte_tokenizer()
    assert answer_ids(tokenizer, "ok")[-1] == tokenizer.eos_token_id
