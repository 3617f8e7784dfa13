"""Which turns of a long talk the model reads."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from serve.errors import PromptTooLong
from serve.limits import MAX_BYTES
from serve.records import Message, without_oldest
from serve.truncation import read
from tests.fakes import FakeEngine
from tests.scenes import assistant, user


class Counting(FakeEngine):
    """Counts how often it tokenises. A token is a byte."""

    encoded = 0

    def encode(self, messages: Sequence[Message]) -> list[int]:
        self.encoded += 1
        return super().encode(messages)


def turns(number: int) -> list[Message]:
    return [m for i in range(number) for m in (user(f"Question {i:4}?"), assistant(f"Answer {i:4}."))]


RULE = Message("system", "Be brief.")


def test_messages_lose_the_oldest_but_never_the_system_messages() -> None:
    talk = [RULE, *turns(2), RULE, user("Now?")]
    assert without_oldest(talk, 0) == tuple(talk)
    assert without_oldest(talk, 2) == (RULE, *turns(2)[2:], RULE, user("Now?"))
    assert without_oldest([user("a"), user("a"), user("b")], 1) == (user("a"), user("b"))


def test_what_fits_is_read_whole_whatever_was_asked() -> None:
    engine = Counting()
    for truncation in ("auto", "disabled"):
        assert read(engine, [*turns(3), user("Now?")], 100, truncation).dropped == 0
    assert engine.encoded == 2


def test_as_few_of_the_oldest_turns_go_as_make_room() -> None:
    engine = Counting()
    talk = [RULE, *turns(1000), user("Now?")]
    reading = read(engine, talk, 100, "auto")
    assert reading.token_ids == FakeEngine().encode(without_oldest(talk, reading.dropped))
    assert len(reading.token_ids) + 100 <= engine.context_length
    assert talk[1 + reading.dropped].role == "user"
    one_turn_more = FakeEngine().encode(without_oldest(talk, reading.dropped - 2))
    assert len(one_turn_more) + 100 > engine.context_length
    assert engine.encoded < 20


def test_turns_of_any_shape_go_whole() -> None:
    half = "x" * 1000
    talk = [assistant(half), user("a"), user(half), assistant("b"), assistant("c"), user("Now?")]
    assert read(FakeEngine(), talk, 100, "auto").dropped == 1
    assert read(FakeEngine(), talk, 1100, "auto").dropped == 5


def test_without_being_asked_nothing_goes_and_the_error_tells_how_to_ask() -> None:
    with pytest.raises(PromptTooLong, match="truncation") as refused:
        read(FakeEngine(), [*turns(1000), user("Now?")], 100, "disabled")
    assert refused.value.oldest_can_go


@pytest.mark.parametrize("truncation", ["auto", "disabled"])
def test_a_last_turn_that_does_not_fit_alone_is_refused(truncation: str) -> None:
    with pytest.raises(PromptTooLong, match="shorten the prompt or lower max_tokens") as refused:
        read(FakeEngine(), [*turns(2), user("x" * 2000)], 100, truncation)  # type: ignore[arg-type]
    assert not refused.value.oldest_can_go
    assert ("the prompt has 2006 tokens" in str(refused.value)) == (truncation == "auto")


def test_more_than_is_taken_at_once_is_never_tokenised() -> None:
    engine = Counting()
    with pytest.raises(PromptTooLong, match="bytes"):
        read(engine, [user("x" * (MAX_BYTES + 1))], 100, "auto")
    assert engine.encoded == 0
    assert read(engine, [user("x" * MAX_BYTES), assistant("y"), user("Now?")], 100, "auto").dropped == 2
    assert engine.encoded <= 3
