"""The one way from messages to token ids, for serving and training alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serve.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """A prompt's token ids, ready for the assistant's answer to follow."""
    text = tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in messages], tokenize=False, add_generation_prompt=True
    )
    return list(tokenizer.encode(text, add_special_tokens=False))


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """A human-written answer's token ids, closed with EOS. Generated answers keep the ids they were sampled with."""
    return [*tokenizer.encode(text, add_special_tokens=False), int(tokenizer.eos_token_id)]
