"""The snapshot: what a run may learn from, and nothing else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve.errors import NotFound
from serve.feedback.exchange import import_lines
from serve.feedback.snapshot import shipped_prompts
from serve.feedback.store import NewCandidate, SnapshotCounts, Store
from serve.folder import DataFolder
from serve.records import Judgement, Sampling
from tests.scenes import Clock, assistant, compare, finish, open_comparison, prefer, ranking, say, user


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(DataFolder(tmp_path / "feedback.db"), clock=Clock()) as store:
        store.create_run("operator", ["reward"], {})
        yield store


class Read:
    """A snapshot, read back."""

    def __init__(self, store: Store, folder: Path) -> None:
        path = folder / "snapshot.db"
        self.counts = store.snapshot(1, path)
        db = sqlite3.connect(path)
        db.row_factory = sqlite3.Row
        for table in ("prompts", "answers", "votes", "demonstrations"):
            rows = [dict(row) for row in db.execute(f"SELECT * FROM {table} ORDER BY id")]
            setattr(self, table, rows)
        self.meta = dict(db.execute("SELECT key, value FROM meta").fetchall())
        self.asked = [row for row in self.prompts if row["asked"]]
        db.close()

    prompts: list[dict[str, Any]]
    answers: list[dict[str, Any]]
    votes: list[dict[str, Any]]
    demonstrations: list[dict[str, Any]]

    def said(self, vote: dict[str, Any]) -> list[list[str]]:
        """The ranking with texts for ids."""
        texts = {row["id"]: row["text"] for row in self.answers}
        return [[texts[i] for i in group] for group in json.loads(vote["ranking"])]


def test_a_fresh_record_gives_the_shipped_prompts_and_no_sampling(store: Store, tmp_path: Path) -> None:
    read = Read(store, tmp_path)
    shipped = list(shipped_prompts())
    assert len(shipped) >= 150
    assert read.counts == SnapshotCounts(votes=0, pairs=0, demonstrations=0, prompts=len(shipped))
    assert {row["source"] for row in read.prompts} == {"shipped"}
    assert set(read.meta) == {"serving", "created"}
    assert read.meta["serving"] == "0"


def test_what_only_a_test_asked_is_no_prompt(store: Store, tmp_path: Path) -> None:
    store.record_prompt("anna", [user("For a test.")], test=True)
    once = store.record_prompt("anna", [user("For both.")])
    store.record_prompt("anna", [user("For both.")], conversation_id=once.conversation_id, test=True)
    assert [(json.loads(row["messages"])[0]["content"], row["asked"]) for row in Read(store, tmp_path).asked] == [
        ("For both.", 1)
    ]


def test_a_vote_on_what_only_a_test_asked_is_learned_from(store: Store, tmp_path: Path) -> None:
    ref = store.record_prompt("anna", [user("For a test.")], test=True)
    comparison = store.create_comparison("anna", ref, [NewCandidate(0, 1)] * 2, Sampling(), evidence=False)
    for candidate, text in zip(comparison.candidates, "ab", strict=True):
        finish(store, candidate.answer.id, text)
    prefer(store, store.comparison(comparison.id, "anna"), 0)
    read = Read(store, tmp_path)
    assert [read.said(vote) for vote in read.votes] == [[["a"], ["b"]]]
    (prompt,) = [row for row in read.prompts if row["id"] == read.votes[0]["prompt_id"]]
    assert (prompt["asked"], json.loads(prompt["messages"])[0]["content"]) == (0, "For a test.")


def test_a_prompt_that_was_read_whole_and_in_part_is_two(store: Store, tmp_path: Path) -> None:
    talk = [user("Hi."), assistant("Hello."), user("Why?")]
    whole = compare(store, prompt=talk, texts=("a", "b"))
    ref = store.record_prompt("anna", talk, conversation_id=whole.conversation_id)
    store.add_vote(whole.id, "anna", ranking(whole, [0], [1]))
    part = store.create_comparison("anna", ref, [NewCandidate(0, 1)] * 2, Sampling(), evidence=True, dropped=2)
    for candidate, text in zip(part.candidates, "cd", strict=True):
        finish(store, candidate.answer.id, text)
    prefer(store, store.comparison(part.id, "anna"), 0)
    read = Read(store, tmp_path)
    prompts = {row["id"]: [m["content"] for m in json.loads(row["messages"])] for row in read.asked}
    assert sorted(prompts.values()) == [["Hi.", "Hello.", "Why?"], ["Why?"]]
    assert {read.said(vote)[0][0]: prompts[vote["prompt_id"]] for vote in read.votes} == {
        "a": ["Hi.", "Hello.", "Why?"],
        "c": ["Why?"],
    }


def test_a_ranking_keeps_its_groups_positions_and_tokens(store: Store, tmp_path: Path) -> None:
    comparison = compare(store, texts=("a", "b", "c"))
    store.add_vote(comparison.id, "anna", Judgement(ranking(comparison, [2], [0, 1]).ranking, strength=3))
    read = Read(store, tmp_path)
    (vote,) = read.votes
    assert read.said(vote) == [["c"], ["a", "b"]]
    positions = {row["text"]: json.loads(vote["positions"])[str(row["id"])] for row in read.answers}
    assert positions == {"a": 0, "b": 1, "c": 2}
    assert vote["strength"] == 3
    assert read.counts.pairs == 3
    first = read.answers[0]
    assert json.loads(first["token_ids"]) == [ord("a"), 2]
    assert (first["version"], first["finish_reason"], first["max_tokens"]) == (0, "stop", 256)
    (prompt,) = read.asked
    assert json.loads(prompt["messages"]) == [{"role": "user", "content": "Why is the sea blue?"}]
    assert (prompt["id"], prompt["source"], prompt["asked"]) == (vote["prompt_id"], "voter", 1)


def test_a_tie_is_one_group_and_skips_and_both_bad_stay_out(store: Store, tmp_path: Path) -> None:
    say(store, compare(store), "tie")
    say(store, compare(store), "skip")
    say(store, compare(store), "both_bad")
    compare(store)
    read = Read(store, tmp_path)
    assert [read.said(vote) for vote in read.votes] == [[["Light.", "Water."]]]


def test_withdrawn_votes_stay_out_and_new_ones_take_their_place(store: Store, tmp_path: Path) -> None:
    comparison = compare(store)
    store.withdraw_vote(prefer(store, comparison, 0).id, "anna")
    assert Read(store, tmp_path).counts.votes == 0
    prefer(store, comparison, 1)
    read = Read(store, tmp_path)
    assert [read.said(vote) for vote in read.votes] == [[["Water."], ["Light."]]]


def test_voters_are_pseudonyms(store: Store, tmp_path: Path) -> None:
    for voter in ("anna-cookie", "ben-cookie", "anna-cookie"):
        prefer(store, compare(store, voter), 0)
    store.add_demonstration("ben-cookie", [user("Hi")], "Hello.")
    read = Read(store, tmp_path)
    assert [vote["voter"] for vote in read.votes] == ["voter-1", "voter-2", "voter-1"]
    assert [row["voter"] for row in read.demonstrations] == ["voter-2"]
    assert b"-cookie" not in (tmp_path / "snapshot.db").read_bytes()


def test_a_forgotten_voter_is_nowhere_in_it(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store, prompt="My name is Rumpelstiltskin."), 0)
    store.add_demonstration("anna", [user("Who?")], "Rumpelstiltskin.")
    store.forget("anna")
    assert Read(store, tmp_path).counts.votes == 0
    assert b"Rumpelstiltskin" not in (tmp_path / "snapshot.db").read_bytes()


def test_equal_prompts_are_one_row_that_counts_how_often_it_was_asked(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store, "anna"), 0)
    prefer(store, compare(store, "ben"), 1)
    shipped = next(shipped_prompts())
    compare(store, "ben", shipped)
    read = Read(store, tmp_path)
    assert [(row["source"], row["voter"], row["asked"]) for row in read.asked] == [
        ("shipped", None, 1),
        ("voter", "voter-1", 2),
    ]
    assert len({vote["prompt_id"] for vote in read.votes}) == 1
    assert len(read.answers) == 4


def test_a_prompt_holds_its_whole_history(store: Store, tmp_path: Path) -> None:
    talk = [user("One?"), assistant("Two."), user("Three?")]
    prefer(store, compare(store, prompt=talk), 0)
    (prompt,) = Read(store, tmp_path).asked
    assert [m["content"] for m in json.loads(prompt["messages"])] == ["One?", "Two.", "Three?"]


def test_an_early_vote_learns_from_what_was_shown(store: Store, tmp_path: Path) -> None:
    comparison = open_comparison(store, share=True)
    left, right = comparison.candidates
    shown = {left.id: ("Li", [76, 105]), right.id: ("Wate", [87, 97])}
    store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown=shown)
    finish(store, left.answer.id, "Light.")
    finish(store, right.answer.id, "Wate", "cancelled")
    read = Read(store, tmp_path)
    assert [read.said(vote) for vote in read.votes] == [[["Li"], ["Wate"]]]
    assert [json.loads(row["token_ids"]) for row in read.answers] == [[76, 105], [87, 97]]
    assert {row["finish_reason"] for row in read.answers} == {"cancelled"}


def test_one_answer_seen_whole_and_in_part_is_two_rows(store: Store, tmp_path: Path) -> None:
    comparison = open_comparison(store, share=True)
    left, right = comparison.candidates
    finish(store, right.answer.id, "Water.")
    store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown={left.id: ("Li", [76, 105])})
    finish(store, left.answer.id, "Light.")
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    say(store, waiting, "tie")
    read = Read(store, tmp_path)
    assert sorted(row["text"] for row in read.answers) == ["Li", "Light.", "Water."]
    assert read.said(read.votes[0]) == [["Li"], ["Water."]]


def test_what_was_shown_whole_is_no_part(store: Store, tmp_path: Path) -> None:
    comparison = open_comparison(store)
    left, right = comparison.candidates
    finish(store, left.answer.id, "Light.")
    finish(store, right.answer.id, "Water.")
    whole = {left.id: ("Light.", [*map(ord, "Light."), 2])}
    store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown=whole)
    assert {row["finish_reason"] for row in Read(store, tmp_path).answers} == {"stop"}


def test_the_usual_sampling_is_that_of_the_voted_answers(store: Store, tmp_path: Path) -> None:
    for _ in range(2):
        prefer(store, compare(store, sampling=Sampling(max_tokens=48, temperature=0.7)), 0)
    prefer(store, compare(store, sampling=Sampling(max_tokens=96, temperature=0.7)), 0)
    for _ in range(9):
        compare(store, sampling=Sampling(max_tokens=512))
    meta = Read(store, tmp_path).meta
    assert (meta["max_tokens"], meta["temperature"]) == ("48", "0.7")


def test_imported_votes_train_without_tokens_positions_or_sampling(store: Store, tmp_path: Path) -> None:
    import_lines(store, json.dumps({"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}), "trl")
    read = Read(store, tmp_path)
    assert [read.said(vote) for vote in read.votes] == [[["Hello."], ["What."]]]
    assert read.votes[0]["positions"] == "{}", "chosen first is how the file is written, not how it was shown"
    assert read.answers[0]["token_ids"] is None
    assert read.answers[0]["version"] is None
    assert read.asked[0]["source"] == "imported"
    assert read.asked[0]["voter"] is None


def test_an_imported_prompt_that_people_ask_is_theirs(store: Store, tmp_path: Path) -> None:
    import_lines(store, json.dumps({"prompt": "Hi?", "chosen": "Hello.", "rejected": "What."}), "trl")
    compare(store, "anna", [user("Hi?")])
    assert [(row["source"], row["voter"], row["asked"]) for row in Read(store, tmp_path).asked] == [
        ("voter", "voter-2", 2)
    ]


def test_a_run_owns_the_votes_of_its_latest_snapshot(store: Store, tmp_path: Path) -> None:
    receipt = prefer(store, compare(store), 0)
    Read(store, tmp_path)
    prefer(store, compare(store), 0)
    store.withdraw_vote(receipt.id, "anna")
    assert Read(store, tmp_path).counts.votes == 1
    store.update_run(1, status="succeeded")
    assert store.votes_since_last_run() == 0
    assert [vote["trained"] for vote in store.me("anna")["votes"]] == [
        [{"run": 1, "status": "succeeded", "version": None, "reason": None, "win_rate": None}]
    ]


def test_a_snapshot_that_cannot_be_written_leaves_no_half_file(store: Store, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        store.snapshot(99, tmp_path / "snapshot.db")
    with pytest.raises(sqlite3.OperationalError):
        store.snapshot(1, tmp_path / "missing" / "snapshot.db")
    assert not list(tmp_path.glob("snapshot.db*"))


def test_what_an_excluded_voter_asked_is_asked_of_nobody(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store, "anna", "Mine?"), 0)
    prefer(store, compare(store, "ben", "Junk?"), 0)
    out = store.leave_out(voter=2, kind="exclude", reason="junk", who="ada")
    assert [json.loads(row["messages"])[0]["content"] for row in Read(store, tmp_path).asked] == ["Mine?"]
    store.lift(out.id, who="ada")
    (tmp_path / "snapshot.db").unlink()
    assert len(Read(store, tmp_path).asked) == 2
