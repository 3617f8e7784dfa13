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
    compare,
    finish,
    prefer,
    say,
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


def test_a_conversation_can_be_renamed_found_and_deleted_by_its_author_alone(store: Store) -> None:
    bread = store.record_prompt("anna", [user("How do I bake bread?")])
    other = store.record_prompt("anna", [user("100% rye_flour?"), assistant("Yes."), user("And yeast?")])
    store.record_prompt("ben", [user("How do I bake bread?")])

    def found(search: str) -> list[str]:
        return [talk.id for talk in store.conversations("anna", search)]

    assert found("BAKE") == [bread.conversation_id]
    assert found("yeast") == [other.conversation_id], "whatever was said counts"
    assert found("0%") == found("e_f") == [other.conversation_id] and found("%r") == found("h_w") == []
    assert len(found(" ")) == 2
    greek = store.record_prompt("anna", [user("Πού είναι η Αθήνα; Äpfel?")])
    assert found("ΑΘΉΝΑ") == found("äPFEL") == [greek.conversation_id], "in any alphabet"
    store.delete_conversation(greek.conversation_id, "anna")

    store.rename_conversation(bread.conversation_id, "anna", "  Baking\nday ")
    assert store.conversations("anna", "baking day")[0].title == "Baking day"
    for title in ("", " ", "x" * 61):
        with pytest.raises(InvalidInput, match="1 to 60"):
            store.rename_conversation(bread.conversation_id, "anna", title)
    for act in (lambda: store.rename_conversation(bread.conversation_id, "ben", "Mine"),
                lambda: store.delete_conversation(bread.conversation_id, "ben")):  # fmt: skip
        with pytest.raises(NotFound):
            act()

    store.delete_conversation(bread.conversation_id, "anna")
    assert found("") == [other.conversation_id] and len(store.conversations("ben")) == 1
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM messages").fetchone()[0] == 4


def test_a_list_says_how_many_votes_go_with_a_conversation(store: Store) -> None:
    comparison = compare(store)
    assert store.conversations("anna")[0].votes == 0
    say(store, comparison, "both_bad")
    assert store.conversations("anna")[0].votes == 1
    skipped = compare(store, prompt="And rain?", conversation_id=comparison.conversation_id)
    say(store, skipped, "skip")
    preferred = compare(store, prompt="And snow?", conversation_id=comparison.conversation_id)
    prefer(store, preferred, 0)
    store.leave_out(voter=1, kind="exclude", reason="A bot.", who="ada")
    assert store.conversations("anna")[0].votes == 2, "excluded ones go, too; a skip says nothing"
    store.delete_conversation(comparison.conversation_id, "anna")
    with store.reading() as db:
        assert db.execute("SELECT count(*) FROM votes").fetchone()[0] == 0


def test_branches_stay_and_can_be_gone_back_to(store: Store) -> None:
    first = store.record_prompt("anna", [user("One?")])
    talk = first.conversation_id
    said = [user("One?"), assistant("1."), user("More?")]
    more = store.record_prompt("anna", said, conversation_id=talk)
    edited = store.record_prompt("anna", [user("Two?")], conversation_id=talk)
    assert store.branches(talk, "anna") == {edited.message_id: (first.message_id, edited.message_id)}
    store.switch_branch(first.message_id, "anna")
    assert _texts(store, talk) == ["One?", "1.", "More?"], "where that branch was last"
    assert store.branches(talk, "anna")[more.message_id] == (more.message_id,)
    for act in (
        lambda: store.switch_branch(edited.message_id, "ben"),
        lambda: store.branches(talk, "ben"),
        lambda: store.answered_before(talk, "ben"),
    ):
        with pytest.raises(NotFound):
            act()


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
