"""Votes and demonstrations found again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from serve.board import board
from serve.feedback.ballots import ballots
from serve.feedback.browsing import Search
from serve.feedback.exchange import import_lines
from serve.feedback.store import Store
from serve.records import Message
from tests.scenes import assistant, compare, open_comparison, prefer, say, three_votes, user


def found(store: Store, **search: object) -> list[str]:
    """The prompts of the votes that are found."""
    return [row["prompt"] for row in store.find_votes(Search(**search))[0]]  # type: ignore[arg-type]


@contextmanager
def queries(store: Store) -> Iterator[list[str]]:
    """What is asked of the database meanwhile."""
    asked: list[str] = []
    with store.reading() as db:
        db.set_trace_callback(asked.append)
    try:
        yield asked
    finally:
        with store.reading() as db:
            db.set_trace_callback(None)


@pytest.fixture
def votes(store: Store) -> list[str]:
    return three_votes(store)


def test_votes_are_found_by_what_is_known_of_them(store: Store, votes: list[str]) -> None:
    assert found(store) == ["And the sky?", "100% of what?", "Why is the sea blue?"]
    assert found(store, voter=2) == ["And the sky?", "100% of what?"]
    assert found(store, version=1) == ["And the sky?"]
    assert found(store, verdict="tie") == found(store, text="0% OF") == ["100% of what?"]
    assert len(found(store, text="Light.")) == 3, "what was answered counts, too"
    assert found(store, evidence=False) == found(store, until="2026-01-01") == found(store, left_out=True) == []
    assert len(found(store, since="2026-07-04")) == 3
    first, before = store.find_votes(Search(), limit=2)
    rest, end = store.find_votes(Search(), before=before, limit=2)
    assert [row["id"] for row in (*first, *rest)] == votes[::-1] and end is None
    assert first[0]["voter"] == "voter-2" and [a["version"] for a in first[0]["answers"]] == [1, 0]


def test_a_vote_is_found_by_all_that_was_said_before_it_and_shows_that(store: Store) -> None:
    talk = [Message("system", "Be kind."), user("Hi?"), assistant("Hello there."), user("And now?")]
    prefer(store, compare(store, prompt=talk), 0)
    prefer(store, compare(store, "ben", "Hi!"), 0)
    for words in ("be KIND", "Hi?", "hello there", "and now"):
        assert found(store, text=words) == ["And now?"]
    assert found(store, text="nobody said this") == []
    (row,) = store.find_votes(Search(text="kind"))[0]
    assert [Message(**said) for said in row["messages"]] == talk


def test_a_vote_tells_who_asked_and_is_found_by_that(store: Store) -> None:
    say(store, compare(store, "anna", "Buy now?", share=True), "tie")
    pair = store.next_in_queue("ben")
    assert pair is not None
    prefer(store, pair, 0)
    prefer(store, compare(store, "ben", "My own."), 0)
    told = [(row["voter"], row["asked_by"], row["prompt"]) for row in store.find_votes(Search())[0]]
    assert told == [
        ("voter-2", "voter-2", "My own."),
        ("voter-2", "voter-1", "Buy now?"),
        ("voter-1", "voter-1", "Buy now?"),
    ]
    assert found(store, asked_by=1) == ["Buy now?"] * 2
    assert found(store, asked_by=1, voter=2) == ["Buy now?"]


def test_nobody_asked_what_came_along(store: Store) -> None:
    prefer(store, compare(store, "anna", "A shipped prompt."), 0)
    store.writing(lambda db: db.execute("UPDATE conversations SET source = 'shipped'"))
    (row,) = store.find_votes(Search())[0]
    assert row["asked_by"] is None
    assert found(store, asked_by=1) == []


def test_skips_that_nobody_cast_are_found_among_skips_alone(store: Store) -> None:
    first = open_comparison(store, prompt="Hi?")
    talk = [user("Hi?"), assistant("Well."), user("And?")]
    say(store, compare(store, prompt=talk, conversation_id=first.conversation_id), "skip")
    assert found(store) == ["And?"]
    told = {row["prompt"]: row["source"] for row in store.find_votes(Search(verdict="skip"))[0]}
    assert told == {"And?": "voter", "Hi?": "server"}


def test_a_page_of_votes_takes_as_many_queries_as_one_vote(store: Store, votes: list[str]) -> None:
    with queries(store) as one:
        store.find_votes(Search(), limit=1)
    with queries(store) as all_of_them:
        assert len(store.find_votes(Search())[0]) == 3
    assert 0 < len(all_of_them) == len(one)


def test_demonstrations_are_listed_with_the_numbers_of_their_voters(store: Store) -> None:
    store.add_demonstration("anna", [user("Say it.")], "Done.")
    wrong = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Buy now!"}]}
    import_lines(store, json.dumps(wrong), "sft")
    store.add_demonstration("ben", [user("And?")], "So.")
    first, before = store.find_demonstrations(Search(), limit=2)
    rest, end = store.find_demonstrations(Search(), before=before, limit=2)
    assert [(row["voter"], row["source"], row["answer"]) for row in (*first, *rest)] == [
        ("voter-3", "voter", "So."),
        ("voter-2", "imported", "Buy now!"),
        ("voter-1", "voter", "Done."),
    ]
    assert end is None and first[1]["messages"] == wrong["messages"][:1]
    store.leave_out(voter=2, kind="exclude", reason="advertises", who="ada")
    store.leave_out(voter=3, kind="flag", reason="look again", who="ada")
    marks = [(row["excluded"], row["flagged"]) for row in store.find_demonstrations(Search())[0]]
    assert marks == [(False, True), (True, False), (False, False)]
    assert store.demonstrations_count() == 2


def test_demonstrations_are_found_by_words_voter_date_and_marks(store: Store) -> None:
    store.add_demonstration("anna", [user('Say "héllo" to the user.')], "Done.")
    store.add_demonstration("ben", [user("And?")], "So much content.")
    store.leave_out(voter=1, kind="flag", reason="look again", who="ada")

    def answers(**search: object) -> list[str]:
        return [row["answer"] for row in store.find_demonstrations(Search(**search))[0]]  # type: ignore[arg-type]

    assert answers(text='"HÉLLO"') == answers(voter=1) == answers(left_out=True) == ["Done."]
    assert answers(text="content") == ["So much content."], "not the names of what is stored"
    assert answers(until="2026-01-01") == answers(since="2027-01-01") == []
    assert len(answers(since="2026-07-04")) == 2


def test_the_board_needs_neither_prompts_nor_token_ids(store: Store, votes: list[str]) -> None:
    with store.reading() as db:
        whole = list(ballots(db))
    lean = store.ballots()
    assert whole[0].messages and whole[0].answers[0].token_ids
    assert not any(ballot.messages or answer.token_ids for ballot in lean for answer in ballot.answers)
    assert board(lean, store.versions(), 0) == board(whole, store.versions(), 0)
