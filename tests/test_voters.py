"""Demonstrations, what a voter gave, and forgetting it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from serve.errors import (
    InvalidInput,
    NotFound,
)
from serve.feedback.ballots import pseudonyms
from serve.feedback.entries import Consent
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.records import Message
from tests.scenes import (
    assistant,
    compare,
    finish,
    open_comparison,
    prefer,
    user,
)


@pytest.mark.parametrize(("messages", "answer"), [([user("Hi")], " \n"), ([], "Hello."), ([assistant("Hi")], "Hello.")])
def test_an_empty_demonstration_is_refused(store: Store, messages: list[Message], answer: str) -> None:
    with pytest.raises(InvalidInput):
        store.add_demonstration("anna", messages, answer)
    assert store.demonstrations_count() == 0


def test_an_edited_answer_is_the_history_from_here_on(store: Store) -> None:
    comparison = compare(store, prompt="Hi")
    prefer(store, comparison, 0)
    place = comparison.conversation_id
    store.add_demonstration("anna", [user("Hi")], "Hello, and welcome.", conversation_id=place)
    turns = store.conversation(place, "anna")
    assert [turn.message for turn in turns] == [user("Hi"), assistant("Hello, and welcome.")]
    assert turns[-1].version is None, "a person wrote it"
    with pytest.raises(NotFound):
        store.add_demonstration("ben", [user("Hi")], "Mine.", conversation_id=place)
    assert store.demonstrations_count() == 1


def test_a_corrected_answer_takes_the_place_of_the_one_before(store: Store) -> None:
    place = compare(store, prompt="Hi").conversation_id
    for answer in ("Helo.", "Hello."):
        store.add_demonstration("anna", [user("Hi")], answer, conversation_id=place)
    for answer in ("Bye.", "Goodbye."):  # a program's, at no place: two answers to one prompt
        store.add_demonstration("anna", [user("Hi")], answer)
    mine = [d["answer"] for d in store.me("anna")["demonstrations"]]
    assert mine == ["Hello.", "Bye.", "Goodbye."]
    assert store.demonstrations_count() == 3


def test_an_answer_is_taken_back_by_whoever_wrote_it_and_its_talk_stays(store: Store) -> None:
    place = compare(store, prompt="Hi").conversation_id
    made = store.add_demonstration("anna", [user("Hi")], "Hello.", conversation_id=place)
    with pytest.raises(NotFound):
        store.withdraw_demonstration(made.id, "ben")
    store.withdraw_demonstration(made.id, "anna")
    assert store.demonstrations_count() == 0
    assert [turn.message for turn in store.conversation(place, "anna")] == [user("Hi"), assistant("Hello.")]
    with pytest.raises(NotFound):
        store.withdraw_demonstration(made.id, "anna")


def test_me_says_what_i_gave_and_what_it_trained(store: Store, tmp_path: Path) -> None:
    receipt = prefer(store, compare(store), 0)
    demonstration = store.add_demonstration("anna", [user("Hi")], "Hello.")
    run = store.create_run("votes", ["reward", "ppo"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    version = store.add_version(run=run.id, parent=0, status="staged", report={}, sha256="00")
    gate = {"win_rate": {"value": 0.75, "low": 0.6, "high": 0.9}}
    report = {"gate": gate, "reasons": ["no better", "and too long"]}
    store.update_run(run.id, status="succeeded", version=version.number, report=report)
    me = store.me("anna")
    assert me["counts"] == {"conversations": 1, "comparisons": 1, "votes": 1, "demonstrations": 1}
    assert [vote["id"] for vote in me["votes"]] == [receipt.id]
    (lesson,) = me["votes"][0]["trained"]
    assert (lesson["run"], lesson["status"], lesson["version"]) == (run.id, "succeeded", 1)
    assert (lesson["win_rate"], lesson["reason"]) == (0.75, "no better")
    assert me["versions"] == [{"version": 1, "status": "staged", "parent": 0}]
    assert me["votes"][0]["prompt"] == "Why is the sea blue?"
    assert [d["id"] for d in me["demonstrations"]] == [demonstration.id]
    assert store.me("nobody")["counts"] == {"conversations": 0, "comparisons": 0, "votes": 0, "demonstrations": 0}


def test_a_vote_that_an_operator_left_out_says_so(store: Store) -> None:
    receipt = prefer(store, compare(store), 0)
    prefer(store, compare(store), 0)
    store.leave_out(vote=receipt.id, kind="exclude", reason="a slip", who="operator")
    assert [vote["excluded"] for vote in store.me("anna")["votes"]] == [True, False]


def test_a_better_answer_is_kept_only_for_what_its_voter_may_see(store: Store) -> None:
    own = compare(store, "anna", "My own?")
    store.give_consent("anna", share=True)
    compare(store, "anna", "A riddle?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    store.give_consent("anna", share=False)
    for comparison in (own, waiting):
        with pytest.raises(NotFound, match="this prompt is there no more"):
            store.add_demonstration("ben", comparison.messages, "Mine.", comparison_id=comparison.id)
    assert store.demonstrations_count() == 0


def test_a_voter_agrees_to_share_or_not_and_may_think_again(store: Store) -> None:
    assert store.consent("anna") == Consent(given=False, share=False)
    store.give_consent("anna", share=True)
    assert store.consent("anna") == Consent(given=True, share=True)
    prefer(store, compare(store, prompt="A riddle?", share=True), 0)
    store.give_consent("anna", share=False)
    assert store.consent("anna") == Consent(given=True, share=False)
    assert store.next_in_queue("ben") is None, "what was shared before is shown to nobody any more"


def test_everything_of_a_voter_can_be_taken_home(store: Store) -> None:
    prefer(store, compare(store, prompt="Hi"), 1)
    compare(store, prompt="Still open?")
    store.add_demonstration("anna", [user("Say it.")], "Done.")
    prefer(store, compare(store, "ben", "Not mine."), 0)
    mine = store.everything("anna")
    assert json.loads(json.dumps(mine)) == mine
    said = [[message["content"] for message in talk["messages"]] for talk in mine["conversations"]]
    assert said == [["Hi", "Water."], ["Still open?"]]
    (vote,) = mine["votes"]
    assert [(c["text"], c["version"]) for c in vote["candidates"]] == [("Light.", 0), ("Water.", 0)]
    (waits,) = mine["comparisons"]
    assert waits["prompt"] == "Still open?"
    assert [(c["text"], c["version"]) for c in waits["candidates"]] == [("Light.", None), ("Water.", None)], "blind"
    assert mine["withdrawn_votes"] == mine["exclusions"] == []
    assert [d["answer"] for d in mine["demonstrations"]] == ["Done."]
    assert "Not mine." not in json.dumps(mine)


def test_what_was_withdrawn_and_what_was_excluded_is_taken_home_too(store: Store) -> None:
    receipt = prefer(store, compare(store, prompt="Hi"), 1)
    store.note_vote(receipt.id, "anna", strength=4)
    store.leave_out(vote=receipt.id, kind="exclude", reason="a slip", who="operator")
    store.withdraw_vote(receipt.id, "anna")
    mine = store.everything("anna")
    assert mine["votes"] == []
    (withdrawn,) = mine["withdrawn_votes"]
    (comparison,) = mine["comparisons"]
    assert (withdrawn["id"], withdrawn["strength"], withdrawn["comparison"]) == (receipt.id, 4, comparison["id"])
    assert withdrawn["created"] < withdrawn["withdrawn"]
    assert [c["version"] for c in comparison["candidates"]] == [0, 0], "the vote revealed them"
    (exclusion,) = mine["exclusions"]
    assert (exclusion["vote"], exclusion["kind"], exclusion["reason"]) == (receipt.id, "exclude", "a slip")
    assert exclusion["lifted"] is None


def test_nobody_is_called_as_a_forgotten_voter_was(store: Store) -> None:
    for voter in ("anna", "ben", "carl"):
        store.record_prompt(voter, [user("Hi")])
    store.forget("ben")
    store.forget("carl")
    store.record_prompt("dora", [user("Hi")])
    with store.reading() as db:
        assert pseudonyms(db) == {"anna": "voter-1", "dora": "voter-4"}


def test_forgetting_takes_everything_a_voter_gave_and_what_others_said_of_it(store: Store, folder: DataFolder) -> None:
    comparison = compare(store, prompt="My secret is Rumpelstiltskin.", share=True)
    prefer(store, comparison, 0)
    store.add_demonstration("anna", [user("Say it.")], "Rumpelstiltskin!")
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    prefer(store, waiting, 0)
    kept = compare(store, "ben", "Hello?")
    prefer(store, kept, 0)
    store.forget("anna")
    store.forget("anna")
    assert store.standing_votes() == 1
    assert store.demonstrations_count() == 0
    assert store.comparison(kept.id, "ben").status == "voted"
    with pytest.raises(NotFound):
        store.comparison(waiting.id, "ben")
    with store.reading() as db:
        assert db.execute("PRAGMA foreign_key_check").fetchall() == []
    for file in folder.root.iterdir():
        assert b"Rumpelstiltskin" not in file.read_bytes(), file.name


def test_an_answer_that_ends_after_its_voter_was_forgotten_is_told_so(store: Store) -> None:
    comparison = open_comparison(store)
    store.forget("anna")
    with pytest.raises(NotFound):
        finish(store, comparison.candidates[0].answer.id, "Too late.")


def test_a_run_keeps_how_many_votes_it_had_when_a_voter_is_forgotten(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store), 0)
    prefer(store, compare(store, "ben"), 0)
    run = store.create_run("votes", ["reward"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    store.update_run(run.id, status="succeeded")
    store.forget("anna")
    with store.reading() as db:
        assert db.execute("SELECT count(*), count(vote_id) FROM run_votes").fetchone()[:] == (2, 1)
    assert store.standing_votes() == 1
    assert store.votes_since_last_run() == 0
