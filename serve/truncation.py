"""What the model reads of a talk that has grown too long for it.

By default such a prompt is refused. Only if the caller asks (`auto`, as OpenAI's Responses API calls it) the oldest
turns are left out: whole ones, each a user message with the answers to it, as few as make room for the answer. System
messages and the last user message always stay. The record keeps all that was sent, and with each answer how much of it
the model did not read, so that training sees what the model saw.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serve.engine import Engine
from serve.errors import PromptTooLong
from serve.limits import MAX_BYTES, size_of
from serve.records import Message, without_oldest

Truncation = Literal["auto", "disabled"]


@dataclass(frozen=True)
class Reading:
    """A prompt as the model reads it."""

    token_ids: list[int]
    dropped: int = 0
    """How many of the oldest messages it does not read, system messages aside."""


def read(engine: Engine, messages: Sequence[Message], max_tokens: int, truncation: Truncation) -> Reading:
    """The prompt's token ids; blocking, and tokenised O(log turns) times. Raises PromptTooLong."""

    def without(dropped: int) -> Reading | PromptTooLong:
        left = without_oldest(messages, dropped)
        if size_of(left) > MAX_BYTES:
            return PromptTooLong(f"the messages are {size_of(left):,} bytes long, but {MAX_BYTES:,} are allowed")
        ids = engine.encode(left)
        if len(ids) + max_tokens > engine.context_length:
            return PromptTooLong(
                f"the prompt has {len(ids)} tokens and the answer may take {max_tokens}, but the model holds "
                f"{engine.context_length} together"
            )
        return Reading(ids, dropped)

    whole = without(0)
    if isinstance(whole, Reading):
        return whole
    cuts = _cuts(messages)
    last_turn = without(cuts[-1])
    if isinstance(last_turn, PromptTooLong):
        raise PromptTooLong(f"{last_turn if truncation == 'auto' else whole}; shorten the prompt or lower max_tokens")
    if truncation == "disabled":
        fix = 'shorten the prompt, lower max_tokens, or send "truncation": "auto" to leave the oldest turns out'
        raise PromptTooLong(f"{whole}; {fix}", oldest_can_go=True)
    least = bisect_left(cuts, True, hi=len(cuts) - 1, key=lambda cut: isinstance(without(cut), Reading))
    found = without(cuts[least])
    assert isinstance(found, Reading)
    return found


def _cuts(messages: Sequence[Message]) -> list[int]:
    """What can be dropped, the least first: everything before a user message."""
    said = [m for m in messages if m.role != "system"]
    return [i for i, m in enumerate(said) if m.role == "user"]
