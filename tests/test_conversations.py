"""Prompts in, answers out."""

from __future__ import annotations

import pytest

from serve.errors import (
    InvalidInput,
    NotFound,
)
from serve.feedback.store import NewCandidate, Store
from serve.records import Message, Sampling
from tests.scenes import (
    assistant,
    finish,
    user,
)


def _texts(store: Store, conversation_id: str, voter: str = "anna") -> list[str]:
    return [turn.message.content for turn in store.conversation(conversation_id, voter)]


def test_the_same_messages_are_found_again_and_new_ones_branch_off(store: Store) -> None:
    first = store.record_prompt("anna", [user("One?")])
    again = store.record_prompt("anna", [user("One?")], conversation_id=first.conversation_id)
    other = store.record_prompt("anna", [user("Two?")], conversation_id=first.conversation_id)
    assert again == first
    assert other.message_id != first.message_id
    assert _texts(store, first.conversation_id) == ["Two?"]
    store.record_prompt("anna", [user("One?")], conversation_id=first.conversation_id)
    assert _texts(store, first.conversation_id) == ["One?"], "the talk stands where somebody asked last"


@pytest.mark.parametrize(
    "messages",
    [[], [assistant("Hello!")], [user("Hi"), assistant("Hello!")], [user("  \n")], [user("\ud800")]],
)
def test_what_cannot_be_answered_is_refused(store: Store, messages: list[Message]) -> None:
    with pytest.raises(InvalidInput):
        store.record_prompt("anna", messages)
    assert store.conversations("anna") == []


def test_a_conversation_of_somebody_else_is_not_found(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    with pytest.raises(NotFound):
        store.record_prompt("ben", [user("Hello?")], conversation_id=ref.conversation_id)
    with pytest.raises(NotFound):
        store.conversation(ref.conversation_id, "ben")
    with pytest.raises(NotFound):
        store.create_answer("ben", ref, 0, 1, Sampling())
    with pytest.raises(NotFound):
        store.create_comparison("ben", ref, [NewCandidate(0, 1), NewCandidate(0, 2)], Sampling(), evidence=True)


def test_conversations_are_listed_by_their_first_question_the_latest_first(store: Store) -> None:
    store.record_prompt("anna", [Message("system", "Be kind."), user("How do\n I  bake bread?")])
    store.record_prompt("anna", [user("x" * 100)])
    titles = [c.title for c in store.conversations("anna")]
    assert titles == ["x" * 60, "How do I bake bread?"]
    assert len(store.conversations("anna", limit=1)) == 1


def test_an_unasked_answer_becomes_the_reply_once_and_names_its_version(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    answer = store.create_answer("anna", ref, 0, 42, Sampling(max_tokens=8))
    assert (answer.finish_reason, answer.seed, answer.sampling.max_tokens) == (None, 42, 8)
    reply = store.add_reply(ref, answer.id)
    finish(store, answer.id, "Hi!")
    assert store.add_reply(ref, answer.id) == reply
    turns = store.conversation(ref.conversation_id, "anna")
    assert [(t.message.content, t.version, t.answer_id) for t in turns] == [
        ("Hello?", None, None),
        ("Hi!", 0, answer.id),
    ]


def test_an_answer_replies_only_to_its_own_prompt(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    other = store.record_prompt("anna", [user("Bye?")])
    answer = store.create_answer("anna", ref, 0, 1, Sampling())
    with pytest.raises(NotFound):
        store.add_reply(other, answer.id)


def test_history_sent_by_a_client_is_known_as_our_answer(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    answer = store.create_answer("anna", ref, 0, 1, Sampling())
    finish(store, answer.id, "Hi!")
    store.record_prompt(
        "anna", [user("Hello?"), assistant("Hi!"), user("And now?")], conversation_id=ref.conversation_id
    )
    assert [t.answer_id for t in store.conversation(ref.conversation_id, "anna")] == [None, answer.id, None]


def test_a_version_that_does_not_exist_cannot_answer(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    with pytest.raises(NotFound, match="version 9"):
        store.create_answer("anna", ref, 9, 1, Sampling())


def test_a_talk_of_two_thousand_turns_can_be_kept_and_forgotten(store: Store) -> None:
    talk = [user("On?"), assistant("On.")] * 1000 + [user("End?")]
    ref = store.record_prompt("anna", talk)
    assert len(store.conversation(ref.conversation_id, "anna")) == 2001
    store.forget("anna")
    assert store.conversations("anna") == []
