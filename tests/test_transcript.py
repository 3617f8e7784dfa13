from __future__ import annotations

import pytest

from serve.engine.transcript import Transcript
from tests.tiny import byte_tokenizer

TOKENIZER = byte_tokenizer()


def _ids(text: str) -> list[int]:
    return list(TOKENIZER.encode(text, add_special_tokens=False))


def _pieces(text: str, *stop: str) -> tuple[list[str], Transcript]:
    transcript = Transcript(TOKENIZER.backend_tokenizer, stop)
    pieces = []
    for token_id in _ids(text):
        pieces.append(transcript.add(token_id))
        if transcript.stopped:
            break
    return pieces, transcript


def test_a_character_of_several_tokens_comes_whole() -> None:
    pieces, transcript = _pieces("aé🙂b")
    assert pieces == ["a", "", "é", "", "", "", "🙂", "b"]
    assert transcript.text == "aé🙂b"


def test_an_unfinished_character_is_replaced_at_the_end() -> None:
    ids = _ids("a🙂")[:-1]
    transcript = Transcript(TOKENIZER.backend_tokenizer, ())
    assert [transcript.add(i) for i in ids] == ["a", "", "", ""]
    assert transcript.close(ids) == "\ufffd"
    assert transcript.text == TOKENIZER.decode(ids)


def test_special_tokens_are_not_text() -> None:
    transcript = Transcript(TOKENIZER.backend_tokenizer, ())
    ids = [*_ids("a"), TOKENIZER.eos_token_id, *_ids("b")]
    assert [transcript.add(i) for i in ids] == ["a", "", "b"]


def test_what_may_begin_a_stop_string_is_held_until_it_is_clear() -> None:
    pieces, transcript = _pieces("one\nUs\nUser: two", "\nUser:")
    assert transcript.stopped
    assert transcript.text == "".join(pieces) == "one\nUs"
    assert pieces[3:7] == ["", "", "", "\nUs"]


@pytest.mark.parametrize("stop", [("END", "ND"), ("ND", "END")])
def test_the_stop_string_that_begins_first_counts(stop: tuple[str, ...]) -> None:
    _, transcript = _pieces("the END", *stop)
    assert transcript.text == "the "


def test_what_was_held_back_comes_when_the_answer_ends_without_the_stop_string() -> None:
    pieces, transcript = _pieces("over\nUse", "\nUser:")
    assert "".join(pieces) == "over"
    assert transcript.close(_ids("over\nUse")) == "\nUse"
    assert not transcript.stopped
    assert transcript.text == "over\nUse"
