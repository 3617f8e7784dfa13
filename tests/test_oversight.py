"""Votes found again, votes that do not count, notes, and the log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.board import board
from serve.errors import Conflict, InvalidInput, NotFound
from serve.feedback.ballots import ballots
from serve.feedback.exchange import import_lines
from serve.feedback.oversight import Search
from serve.feedback.store import Store
from serve.records import Message
from tests.scenes import add_versions, assistant, compare, prefer, say, user


def found(store: Store, **search: object) -> list[str]:
    """The prompts of the votes that are found."""
    return [row["prompt"] for row in store.find_votes(Search(**search))[0]]  # type: ignore[arg-type]


@pytest.fixture
def votes(store: Store) -> list[str]:
    """Three votes by two voters; the last compares versions 1 and 0."""
    add_versions(store, 1)
    return [
        prefer(store, compare(store, prompt="Why is the sea blue?"), 0).id,
        say(store, compare(store, "ben", "100% of what?"), "tie").id,
        prefer(store, compare(store, "ben", "And the sky?", versions=(1, 0)), 1).id,
    ]


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


def test_demonstrations_are_listed_with_the_numbers_of_their_voters(store: Store) -> None:
    store.add_demonstration("anna", [user("Say it.")], "Done.")
    wrong = {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Buy now!"}]}
    import_lines(store, json.dumps(wrong), "sft")
    store.add_demonstration("ben", [user("And?")], "So.")
    first, before = store.find_demonstrations(limit=2)
    rest, end = store.find_demonstrations(before=before, limit=2)
    assert [(row["voter"], row["source"], row["answer"]) for row in (*first, *rest)] == [
        ("voter-3", "voter", "So."),
        ("voter-2", "imported", "Buy now!"),
        ("voter-1", "voter", "Done."),
    ]
    assert end is None and first[1]["messages"] == wrong["messages"][:1]
    store.leave_out(voter="voter-2", kind="exclude", reason="advertises", who="ada")
    store.leave_out(voter="voter-3", kind="flag", reason="look again", who="ada")
    marks = [(row["excluded"], row["flagged"]) for row in store.find_demonstrations()[0]]
    assert marks == [(False, True), (True, False), (False, False)]
    assert store.demonstrations_count() == 2


def test_the_board_needs_neither_prompts_nor_token_ids(store: Store, votes: list[str]) -> None:
    with store.reading() as db:
        whole = list(ballots(db))
    lean = store.ballots()
    assert whole[0].messages and whole[0].answers[0].token_ids
    assert not any(ballot.messages or answer.token_ids for ballot in lean for answer in ballot.answers)
    assert board(lean, store.versions(), 0) == board(whole, store.versions(), 0)


def test_what_is_excluded_teaches_nothing_and_counts_nowhere_until_it_is_lifted(
    store: Store, votes: list[str], tmp_path: Path
) -> None:
    run = store.create_run("votes", ["reward", "ppo"], {})
    store.snapshot(run.id, tmp_path / "before.db")
    version = store.add_version(run=run.id, parent=0, status="staged", report={}, sha256="00")
    store.update_run(run.id, status="succeeded", version=version.number)
    assert store.head_to_head(1, 0).losses == 1

    out = store.leave_out(voter="voter-2", kind="exclude", reason="votes at random", who="ada")
    assert (out.voter, out.vote, out.reason, out.who) == ("voter-2", None, "votes at random", "ada")
    assert store.standing_votes() == 1 and store.head_to_head(1, 0).losses == 0
    assert [ballot.vote_id for ballot in store.ballots()] == votes[:1]
    assert store.touched() == {version.number: 2}
    assert [row["excluded"] for row in store.find_votes(Search())[0]] == [True, True, False]
    assert len(store.me("ben")["votes"]) == 2, "they still see what they gave"
    assert found(store, left_out=True) == ["And the sky?", "100% of what?"]

    store.lift(out.id, who="ada")
    assert store.standing_votes() == 3 and store.touched() == {} and store.exclusions() == []
    store.leave_out(vote=votes[0], kind="exclude", reason="a slip", who="ada")
    assert store.standing_votes() == 2


def test_a_flag_marks_and_changes_nothing(store: Store, votes: list[str]) -> None:
    store.leave_out(vote=votes[2], kind="flag", reason="look again", who="ada")
    assert store.standing_votes() == 3
    assert [row["flagged"] for row in store.find_votes(Search())[0]] == [True, False, False]


def test_leaving_out_needs_one_thing_that_exists_and_a_reason(store: Store, votes: list[str]) -> None:
    for wrong in ({}, {"voter": "voter-1", "vote": votes[0]}, {"vote": votes[0], "reason": " "}):
        with pytest.raises(InvalidInput):
            store.leave_out(**{"kind": "exclude", "reason": "so", "who": "ada", **wrong})  # type: ignore[arg-type]
    for unknown in ({"voter": "voter-9"}, {"vote": "none"}):
        with pytest.raises(NotFound):
            store.leave_out(kind="exclude", reason="so", who="ada", **unknown)
    store.leave_out(vote=votes[0], kind="exclude", reason="so", who="ada")
    with pytest.raises(Conflict, match="already"):
        store.leave_out(vote=votes[0], kind="exclude", reason="so", who="ada")
    with pytest.raises(NotFound):
        store.lift("none", who="ada")


def test_a_forgotten_voter_takes_exclusions_along(store: Store, votes: list[str]) -> None:
    store.leave_out(voter="voter-2", kind="exclude", reason="so", who="ada")
    store.leave_out(vote=votes[1], kind="flag", reason="so", who="ada")
    store.forget("ben")
    assert store.exclusions() == []


def test_versions_have_notes(store: Store) -> None:
    add_versions(store, 1)
    store.note_version(1, "kinder, but longer", who="ada")
    assert store.version_notes() == {1: "kinder, but longer"}
    store.note_version(1, " ", who="ada")
    assert store.version_notes() == {}
    with pytest.raises(NotFound):
        store.note_version(9, "?", who="ada")
    with pytest.raises(InvalidInput):
        store.note_version(1, "x" * 3000, who="ada")
    noted = [("ada", f"noted of version 1: {words}") for words in ("nothing any more", "kinder, but longer")]
    assert [(deed.who, deed.what) for deed in store.deeds()] == noted, "with the deed, or not at all"


def test_the_log_tells_who_did_what_promotions_too(store: Store) -> None:
    add_versions(store, 1)
    store.log_deed("operator page", "started run 1")
    store.set_serving(1, who="scheduler", why="it passed the gate")
    assert [(deed.who, deed.what) for deed in store.deeds()] == [
        ("scheduler", "promoted over version 0: version 1 serves (it passed the gate)"),
        ("operator page", "started run 1"),
    ]


def test_an_excluded_voters_demonstrations_teach_nothing(store: Store, votes: list[str]) -> None:
    store.add_demonstration("ben", [user("Say it.")], "Buy now!")
    store.leave_out(voter="voter-2", kind="exclude", reason="advertises", who="ada")
    assert store.demonstrations_count() == 0
    store.lift(store.exclusions()[0].id, who="ada")
    assert store.demonstrations_count() == 1


def test_an_excluded_vote_does_not_come_back_by_casting_it_anew(store: Store) -> None:
    comparison = compare(store)
    vote = prefer(store, comparison, 0).id
    store.leave_out(vote=vote, kind="exclude", reason="a slip", who="ada")
    store.withdraw_vote(vote, "anna")
    prefer(store, comparison, 1)
    assert store.standing_votes() == 0
    assert found(store, left_out=True) == ["Why is the sea blue?"], "and is shown among what does not count"
