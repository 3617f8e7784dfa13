"""The record: asking, answering, judging, forgetting, runs and versions, and what a crash leaves."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from scenes import (
    Clock,
    add_versions,
    assistant,
    compare,
    finish,
    open_comparison,
    prefer,
    ranking,
    say,
    user,
)

from serve.errors import (
    AlreadyVoted,
    Conflict,
    DatabaseBusy,
    Expired,
    InvalidInput,
    NotFound,
    RunActive,
    StartupError,
    Unavailable,
)
from serve.feedback.store import HeadToHead, NewCandidate, Store
from serve.feedback.writer import Writer
from serve.folder import DataFolder
from serve.records import Comparison, Judgement, Message, Sampling, Verdict


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data" / "feedback.db")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(folder: DataFolder, clock: Clock) -> Iterator[Store]:
    with Store.open(folder, clock=clock) as store:
        yield store


def _texts(store: Store, conversation_id: str, voter: str = "anna") -> list[str]:
    return [turn.message.content for turn in store.conversation(conversation_id, voter)]


def _text_of(comparison: Comparison, candidate_id: str | None) -> str:
    return next(c.answer.text for c in comparison.candidates if c.id == candidate_id)


VERDICTS: tuple[Verdict, ...] = ("tie", "skip")


# The file


def test_opening_makes_the_folder_and_the_file(folder: DataFolder) -> None:
    Store.open(folder).close()
    assert folder.db.exists()
    assert folder.db.stat().st_mode & 0o077 == 0, "other users of the machine may not read it"


def test_a_second_server_is_refused_by_the_pid_of_the_first(store: Store, folder: DataFolder) -> None:
    with pytest.raises(DatabaseBusy, match=f"pid {os.getpid()}"):
        Store.open(folder)


def test_the_lock_is_released_on_close_and_when_opening_fails(folder: DataFolder) -> None:
    folder.root.mkdir(parents=True)
    folder.db.write_text("This is a diary, and it is long enough to be no header of anything at all." * 9)
    for _ in range(2):
        with pytest.raises(StartupError, match=r"feedback\.db cannot be opened .*--db"):
            Store.open(folder)
    folder.db.unlink()
    Store.open(folder).close()
    Store.open(folder).close()


def test_a_folder_that_is_a_file_is_a_startup_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StartupError, match="--db"):
        Store.open(DataFolder(tmp_path / "data" / "feedback.db"))


def test_a_closed_record_refuses_writes_and_closes_twice(folder: DataFolder) -> None:
    store = Store.open(folder)
    store.close()
    store.close()
    with pytest.raises(Unavailable):
        store.record_prompt("anna", [user("Hello?")])
    with pytest.raises(Unavailable):
        store.serving()


def test_what_was_written_is_there_after_a_restart(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        comparison = compare(store)
        prefer(store, comparison, 0)
    with Store.open(folder) as store:
        assert _texts(store, comparison.conversation_id) == ["Why is the sea blue?", "Light."]


def test_answers_that_a_crash_cut_off_are_marked_at_the_next_start(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        comparison = open_comparison(store)
    with Store.open(folder) as store:
        again = store.comparison(comparison.id, "anna")
        assert [c.answer.finish_reason for c in again.candidates] == ["error", "error"]


def test_every_acknowledged_write_survives_a_kill(folder: DataFolder) -> None:
    code = """
        import sys
        from pathlib import Path
        from serve.feedback.store import Store
        from serve.folder import DataFolder
        from serve.records import Message
        store = Store.open(DataFolder(Path(sys.argv[1])))
        while True:
            store.record_prompt("anna", [Message("user", "Hello?")])
            print("written", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code), str(folder.db)],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    for _ in range(20):
        assert process.stdout.readline() == b"written\n"
    process.send_signal(signal.SIGKILL)
    written = 20 + len(process.stdout.readlines())
    process.wait()
    process.stdout.close()
    with Store.open(folder) as store:
        assert written <= len(store.conversations("anna", limit=100_000)) <= written + 1


def test_many_threads_write_at_once_and_nothing_is_lost(store: Store) -> None:
    with ThreadPoolExecutor(16) as pool:
        refs = list(pool.map(lambda i: store.record_prompt(f"voter {i % 4}", [user(f"Question {i}?")]), range(100)))
    assert len({ref.conversation_id for ref in refs}) == 100
    assert sum(len(store.conversations(f"voter {i}")) for i in range(4)) == 100


def test_queued_writes_share_one_commit(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    commit = Writer._commit

    def counting(self: Writer, jobs: list[Any]) -> None:
        groups.append(len(jobs))
        commit(self, jobs)

    monkeypatch.setattr(Writer, "_commit", counting)
    release = threading.Event()
    with ThreadPoolExecutor(9) as pool:
        blocker = pool.submit(store.writing, lambda db: release.wait(10))
        writes = [pool.submit(store.record_prompt, "anna", [user(f"Question {i}?")]) for i in range(8)]
        while store._writer._jobs.qsize() < 8:
            pass
        release.set()
        assert blocker.result()
        for write in writes:
            write.result()
    assert groups == [1, 8]


def test_a_write_that_fails_takes_no_other_along(store: Store) -> None:
    release = threading.Event()
    with ThreadPoolExecutor(4) as pool:
        pool.submit(store.writing, lambda db: release.wait(10))
        good = pool.submit(store.record_prompt, "anna", [user("One?")])
        bad = pool.submit(store.record_prompt, "anna", [user("Two?")], conversation_id="nobody's")
        also_good = pool.submit(store.record_prompt, "anna", [user("Three?")])
        release.set()
        with pytest.raises(NotFound):
            bad.result()
        assert good.result() != also_good.result()
    assert len(store.conversations("anna")) == 2


def test_a_full_disk_is_told_and_the_record_goes_on(store: Store) -> None:
    store.record_prompt("anna", [user("Hello?")])
    store.writing(lambda db: None)
    pages = store.writing(lambda db: db.execute("PRAGMA page_count").fetchone()[0])
    store._writer._connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(Unavailable, match="disk is full"):
        store.record_prompt("anna", [user("x" * 100_000)])
    store._writer._connection.execute("PRAGMA max_page_count = 1000000")
    store.record_prompt("anna", [user("x" * 100_000)])
    assert len(store.conversations("anna")) == 2


def test_a_long_read_sees_one_moment(store: Store) -> None:
    with store.reading() as db:
        before = db.execute("SELECT count(*) FROM conversations").fetchone()[0]
        store.record_prompt("anna", [user("Hello?")])
        assert db.execute("SELECT count(*) FROM conversations").fetchone()[0] == before
    assert len(store.conversations("anna")) == before + 1


def test_readers_cannot_write(store: Store) -> None:
    with store.reading() as db, pytest.raises(sqlite3.OperationalError):
        db.execute("DELETE FROM versions")


# Talking


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


# Comparing


def test_candidates_stand_in_the_order_given_with_their_versions(store: Store) -> None:
    add_versions(store, 1)
    comparison = open_comparison(store, versions=(1, 0))
    assert [(c.position, c.answer.version, c.answer.text) for c in comparison.candidates] == [(0, 1, ""), (1, 0, "")]
    assert comparison.status == "open"
    assert comparison.messages == (user("Why is the sea blue?"),)
    assert (comparison.expires - comparison.created).total_seconds() == 24 * 3600


def test_a_finished_answer_comes_back_token_by_token(store: Store) -> None:
    made = open_comparison(store, sampling=Sampling(32, 0.5, 0.9, 7, ("END",)))
    store.finish_answer(
        made.candidates[0].answer.id, text="Hé", token_ids=[5, 6, 2], logprobs=[-1, -2.5, -3], finish_reason="stop"
    )
    answer = store.comparison(made.id, "anna").candidates[0].answer
    assert answer.token_ids == (5, 6, 2)
    assert answer.logprobs == (-1, -2.5, -3)
    assert (answer.text, answer.finish_reason, answer.sampling) == ("Hé", "stop", Sampling(32, 0.5, 0.9, 7, ("END",)))


def test_one_candidate_is_no_comparison(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")])
    with pytest.raises(InvalidInput, match="two"):
        store.create_comparison("anna", ref, [NewCandidate(0, 1)], Sampling(), evidence=True)


def test_a_comparison_is_only_for_its_voter(store: Store) -> None:
    comparison = compare(store)
    for comparison_id, voter in ((comparison.id, "ben"), ("none", "anna")):
        with pytest.raises(NotFound):
            store.comparison(comparison_id, voter)
    with pytest.raises(NotFound):
        store.add_vote(comparison.id, "ben", Judgement(verdict="tie"))


def test_an_open_comparison_is_found_until_voted_or_expired(store: Store, clock: Clock) -> None:
    comparison = compare(store)
    place = comparison.conversation_id
    assert store.open_comparison("anna", place) == comparison
    assert store.open_comparison("ben", place) is None
    clock.pass_by(hours=24)
    assert store.open_comparison("anna", place) is None
    assert store.comparison(comparison.id, "anna").status == "expired"


def test_typing_on_skips_what_was_open_and_follows_the_answer_that_was_taken(store: Store) -> None:
    first = compare(store)
    went_on = [user("Why is the sea blue?"), assistant("Water."), user("And the sky?")]
    compare(store, prompt=went_on, conversation_id=first.conversation_id)
    skipped = store.comparison(first.id, "anna")
    assert skipped.vote is not None
    assert skipped.vote.judgement.verdict == "skip"
    assert not skipped.vote.evidence
    turns = store.conversation(first.conversation_id, "anna")
    assert turns[1].answer_id == first.candidates[1].answer.id


def test_asking_something_else_skips_what_was_open_with_a_random_reply_beside_the_talk(store: Store) -> None:
    first = compare(store)
    compare(store, prompt="Tell me a joke.", conversation_id=first.conversation_id)
    assert store.comparison(first.id, "anna").status == "voted"
    assert _texts(store, first.conversation_id) == ["Tell me a joke."]
    with store.reading() as db:
        replies = db.execute("SELECT content FROM messages WHERE role = 'assistant'").fetchall()
    assert len(replies) == 1
    assert replies[0]["content"] in ("Light.", "Water.")


def test_asking_the_same_again_skips_without_a_reply(store: Store) -> None:
    first = compare(store)
    second = compare(store, conversation_id=first.conversation_id)
    assert store.comparison(first.id, "anna").status == "voted"
    assert store.open_comparison("anna", first.conversation_id) == second
    assert _texts(store, first.conversation_id) == ["Why is the sea blue?"]


def test_other_conversations_stay_open(store: Store) -> None:
    first = compare(store)
    compare(store)
    assert store.comparison(first.id, "anna").status == "open"


# The queue


def test_a_shared_pair_is_judged_by_others_and_never_by_its_author(store: Store) -> None:
    comparison = compare(store, share=True)
    assert store.next_in_queue("anna") is None
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    assert {c.answer.text for c in waiting.candidates} == {"Light.", "Water."}
    assert waiting.id != comparison.id
    assert store.next_in_queue("ben") == waiting, "the same one comes back until it is judged"
    receipt = prefer(store, waiting, 0)
    assert receipt.continues_with is None, "nobody writes into the author's conversation"
    assert _texts(store, comparison.conversation_id) == ["Why is the sea blue?"]
    assert store.next_in_queue("ben") is None


def test_a_private_prompt_is_shown_to_nobody(store: Store) -> None:
    compare(store)
    assert store.next_in_queue("ben") is None


def test_sharing_is_taken_back_by_asking_again_without_it(store: Store) -> None:
    comparison = compare(store, share=True)
    store.record_prompt("anna", [user("Why is the sea blue?")], conversation_id=comparison.conversation_id)
    assert store.next_in_queue("ben") is None


def test_a_shared_turn_does_not_share_the_next_one(store: Store) -> None:
    ref = store.record_prompt("anna", [user("One?")], share=True)
    talk = [user("One?"), assistant("Yes."), user("My secret?")]
    compare(store, prompt=talk, conversation_id=ref.conversation_id)
    assert store.next_in_queue("ben") is None


def test_shipped_prompts_are_shown_to_others(store: Store) -> None:
    ref = store.record_prompt("anna", [user("Hello?")], source="shipped")
    made = store.create_comparison("anna", ref, [NewCandidate(0, 1), NewCandidate(0, 2)], Sampling(), evidence=True)
    for candidate, text in zip(made.candidates, ("Hi.", "Ho."), strict=True):
        finish(store, candidate.answer.id, text)
    assert store.next_in_queue("ben") is not None


def test_equal_cut_off_and_unfinished_answers_are_not_queued(store: Store) -> None:
    compare(store, texts=("Same.", "Same."), share=True)
    open_comparison(store, share=True)
    cut = open_comparison(store, share=True)
    finish(store, cut.candidates[0].answer.id, "Whole.")
    finish(store, cut.candidates[1].answer.id, "Hal", "cancelled")
    assert store.next_in_queue("ben") is None


@pytest.mark.parametrize("chosen_by_server", [True, False])
def test_a_queued_vote_is_evidence_only_if_the_server_chose_the_answers(store: Store, chosen_by_server: bool) -> None:
    compare(store, share=True, evidence=chosen_by_server)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    prefer(store, waiting, 1)
    vote = store.comparison(waiting.id, "ben").vote
    assert vote is not None
    assert vote.evidence is chosen_by_server


def test_the_queue_shows_pairs_in_both_orders(store: Store) -> None:
    compare(store, share=True)
    orders = set()
    for i in range(20):
        waiting = store.next_in_queue(f"voter {i}")
        assert waiting is not None
        orders.add(waiting.candidates[0].answer.text)
    assert orders == {"Light.", "Water."}


# Voting


def test_a_vote_reveals_the_versions_and_the_chosen_answer_goes_on(store: Store) -> None:
    add_versions(store, 2)
    comparison = compare(store, versions=(2, 1))
    receipt = prefer(store, comparison, 1)
    assert [receipt.revealed[c.id] for c in comparison.candidates] == [2, 1]
    assert _text_of(comparison, receipt.continues_with) == "Water."
    turns = store.conversation(comparison.conversation_id, "anna")
    assert [(t.message.content, t.version) for t in turns] == [("Why is the sea blue?", None), ("Water.", 1)]
    voted = store.comparison(comparison.id, "anna")
    assert voted.status == "voted"
    assert voted.vote is not None
    assert voted.vote.judgement == ranking(comparison, [1], [0])
    assert voted.vote.evidence


def test_a_second_vote_is_refused(store: Store) -> None:
    comparison = compare(store)
    prefer(store, comparison, 0)
    with pytest.raises(AlreadyVoted):
        prefer(store, comparison, 1)
    assert store.standing_votes() == 1


def test_two_votes_at_once_leave_one(store: Store) -> None:
    comparison = compare(store)
    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(prefer, store, comparison, i % 2).exception() for i in range(8)]
    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, AlreadyVoted) for outcome in outcomes) == 7


def test_the_same_key_gives_the_same_receipt(store: Store) -> None:
    comparison = compare(store)
    tie = Judgement(verdict="tie")
    first = store.add_vote(comparison.id, "anna", tie, idempotency_key="k")
    assert store.add_vote(comparison.id, "anna", tie, idempotency_key="k") == first
    with pytest.raises(AlreadyVoted):
        store.add_vote(comparison.id, "anna", tie, idempotency_key="another")
    assert store.standing_votes() == 1


def test_a_vote_after_24_hours_is_refused(store: Store, clock: Clock) -> None:
    comparison = compare(store)
    clock.pass_by(hours=24)
    with pytest.raises(Expired):
        prefer(store, comparison, 0)
    assert store.standing_votes() == 0


def test_a_ranking_names_every_candidate_exactly_once(store: Store) -> None:
    comparison = compare(store, texts=("a", "b", "c"))
    a, b, c = (candidate.id for candidate in comparison.candidates)
    wrong: list[tuple[tuple[str, ...], ...]] = [
        (),
        ((a,), (b,)),
        ((a,), (b,), (c,), (a,)),
        ((a, a), (b,), (c,)),
        ((a,), (b,), ("nobody",)),
        ((a,), (), (b, c)),
    ]
    for groups in wrong:
        with pytest.raises(InvalidInput, match="every candidate exactly once"):
            store.add_vote(comparison.id, "anna", Judgement(groups))
    store.add_vote(comparison.id, "anna", Judgement(((c,), (a, b))))


@pytest.mark.parametrize(
    "judgement",
    [
        Judgement(),
        Judgement(ranking=(("x",),), verdict="tie"),
        Judgement(verdict="withdrawn"),  # type: ignore[arg-type]
        Judgement(verdict="tie", strength=0),
        Judgement(verdict="tie", strength=6),
        Judgement(verdict="tie", strength=True),
        Judgement(verdict="tie", reasons=("\udfff",)),
    ],
)
def test_nonsense_is_not_a_judgement(store: Store, judgement: Judgement) -> None:
    comparison = compare(store)
    with pytest.raises(InvalidInput):
        store.add_vote(comparison.id, "anna", judgement)
    assert store.comparison(comparison.id, "anna").status == "open"


def test_strength_and_reasons_are_kept(store: Store) -> None:
    comparison = compare(store)
    judgement = Judgement(ranking(comparison, [0], [1]).ranking, strength=4, reasons=("kürzer", "true"))
    store.add_vote(comparison.id, "anna", judgement)
    vote = store.comparison(comparison.id, "anna").vote
    assert vote is not None
    assert vote.judgement == judgement


def test_ties_and_skips_go_on_with_any_answer_and_both_bad_with_none(store: Store) -> None:
    taken = {
        verdict: {
            _text_of(c, store.add_vote(c.id, "anna", Judgement(verdict=verdict)).continues_with)
            for c in (compare(store) for _ in range(20))
        }
        for verdict in VERDICTS
    }
    assert taken == {"tie": {"Light.", "Water."}, "skip": {"Light.", "Water."}}
    bad = compare(store)
    assert say(store, bad, "both_bad").continues_with is None
    assert _texts(store, bad.conversation_id) == ["Why is the sea blue?"]


def test_a_tied_top_group_goes_on_with_one_of_its_members(store: Store) -> None:
    taken = set()
    for _ in range(20):
        comparison = compare(store, texts=("a", "b", "c"))
        receipt = store.add_vote(comparison.id, "anna", ranking(comparison, [0, 2], [1]))
        taken.add(_text_of(comparison, receipt.continues_with))
    assert taken == {"a", "c"}


def test_a_pick_decides_what_the_vote_leaves_open_and_nothing_else(store: Store) -> None:
    comparison = compare(store)
    left, right = (c.id for c in comparison.candidates)
    with pytest.raises(InvalidInput):
        store.add_vote(comparison.id, "anna", Judgement(((left,), (right,))), pick=right)
    receipt = store.add_vote(comparison.id, "anna", Judgement(verdict="tie"), pick=right)
    assert receipt.continues_with == right


def test_an_answer_that_is_still_written_is_judged_only_by_what_was_shown(store: Store) -> None:
    comparison = open_comparison(store)
    finish(store, comparison.candidates[1].answer.id, "Water.")
    with pytest.raises(Conflict, match="still being written"):
        prefer(store, comparison, 0)
    with pytest.raises(InvalidInput):
        store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown={"nobody": ("", [])})
    early = {comparison.candidates[0].id: ("Li", [1])}
    receipt = store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown=early)
    assert receipt.continues_with == comparison.candidates[0].id
    finish(store, comparison.candidates[0].answer.id, "Light.")
    assert _texts(store, comparison.conversation_id)[-1] == "Light.", "the winner finishes, and is what is remembered"


def test_an_answer_that_failed_cannot_be_compared_only_skipped(store: Store) -> None:
    comparison = open_comparison(store)
    finish(store, comparison.candidates[0].answer.id, "Light.")
    finish(store, comparison.candidates[1].answer.id, "", "error")
    for judgement in (ranking(comparison, [0], [1]), Judgement(verdict="tie")):
        with pytest.raises(Conflict, match="failed"):
            store.add_vote(comparison.id, "anna", judgement)
    assert say(store, comparison, "skip").continues_with == comparison.candidates[0].id


def test_a_vote_is_evidence_only_when_the_server_chose_and_nothing_was_revealed(store: Store) -> None:
    chosen = compare(store, evidence=False)
    prefer(store, chosen, 0)
    revealed = compare(store)
    store.add_vote(revealed.id, "anna", ranking(revealed, [0], [1]), revealed_before=True)
    for comparison in (chosen, revealed):
        vote = store.comparison(comparison.id, "anna").vote
        assert vote is not None
        assert not vote.evidence
    assert store.standing_votes() == 2, "they train all the same"


def test_a_withdrawn_vote_may_be_cast_again_but_is_no_evidence_then(store: Store) -> None:
    comparison = compare(store)
    first = prefer(store, comparison, 0)
    store.withdraw_vote(first.id, "anna")
    assert store.comparison(comparison.id, "anna").status == "open"
    assert store.standing_votes() == 0
    second = prefer(store, comparison, 1)
    vote = store.comparison(comparison.id, "anna").vote
    assert vote is not None
    assert (vote.id, vote.evidence) == (second.id, False)
    assert _texts(store, comparison.conversation_id)[-1] == "Water."
    store.withdraw_vote(second.id, "anna")
    assert store.standing_votes() == 0


def test_only_ones_own_standing_vote_can_be_withdrawn(store: Store) -> None:
    receipt = prefer(store, compare(store), 0)
    for vote_id, voter in ((receipt.id, "ben"), ("nothing", "anna")):
        with pytest.raises(NotFound):
            store.withdraw_vote(vote_id, voter)
    store.withdraw_vote(receipt.id, "anna")
    with pytest.raises(Conflict, match="already"):
        store.withdraw_vote(receipt.id, "anna")


def test_a_second_thought_about_an_earlier_turn_leaves_the_talk_where_it_is(store: Store) -> None:
    first = compare(store)
    receipt = prefer(store, first, 0)
    went_on = [user("Why is the sea blue?"), assistant("Light."), user("And the sky?")]
    store.record_prompt("anna", went_on, conversation_id=first.conversation_id)
    store.withdraw_vote(receipt.id, "anna")
    prefer(store, first, 1)
    assert _texts(store, first.conversation_id) == ["Why is the sea blue?", "Light.", "And the sky?"]


def test_skips_and_both_bad_do_not_count_as_votes_to_learn_from(store: Store) -> None:
    say(store, compare(store), "skip")
    say(store, compare(store), "both_bad")
    assert store.standing_votes() == store.votes_since_last_run() == 0
    say(store, compare(store), "tie")
    prefer(store, compare(store), 0)
    assert store.standing_votes() == store.votes_since_last_run() == 2


def test_head_to_head_counts_blind_votes_between_two_versions(store: Store) -> None:
    add_versions(store, 1)
    prefer(store, compare(store, versions=(1, 0)), 0)
    prefer(store, compare(store, versions=(0, 1)), 1)
    prefer(store, compare(store, versions=(1, 0)), 1)
    say(store, compare(store, versions=(1, 0)), "tie")
    say(store, compare(store, versions=(1, 0)), "skip")
    prefer(store, compare(store, versions=(1, 0), evidence=False), 0)
    prefer(store, compare(store, versions=(0, 0)), 0)
    assert store.head_to_head(1, 0) == HeadToHead(wins=2, losses=1, ties=1)
    assert store.head_to_head(0, 1) == HeadToHead(wins=1, losses=2, ties=1)


# Demonstrations, me, forget me


@pytest.mark.parametrize(("messages", "answer"), [([user("Hi")], " \n"), ([], "Hello."), ([assistant("Hi")], "Hello.")])
def test_an_empty_demonstration_is_refused(store: Store, messages: list[Message], answer: str) -> None:
    with pytest.raises(InvalidInput):
        store.add_demonstration("anna", messages, answer)
    assert store.demonstrations_count() == 0


def test_me_says_what_i_gave_and_what_it_trained(store: Store, tmp_path: Path) -> None:
    receipt = prefer(store, compare(store), 0)
    demonstration = store.add_demonstration("anna", [user("Hi")], "Hello.")
    run = store.create_run("votes", ["reward", "ppo"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    version = store.add_version(run=run.id, parent=0, status="staged", report={}, sha256="00")
    store.update_run(run.id, status="succeeded", version=version.number)
    me = store.me("anna")
    assert me["counts"] == {"conversations": 1, "comparisons": 1, "votes": 1, "demonstrations": 1}
    assert [vote["id"] for vote in me["votes"]] == [receipt.id]
    assert me["votes"][0]["trained"] == [{"run": run.id, "status": "succeeded", "version": 1}]
    assert [d["id"] for d in me["demonstrations"]] == [demonstration.id]
    assert store.me("nobody")["counts"] == {"conversations": 0, "comparisons": 0, "votes": 0, "demonstrations": 0}


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


# Runs


def test_one_run_at_a_time(store: Store) -> None:
    run = store.create_run("operator", ["reward", "ppo"], {"seed": 1})
    assert (run.id, run.status, run.stages) == (1, "queued", ("reward", "ppo"))
    for status in ("queued", "running", "interrupted"):
        store.update_run(run.id, status=status)
        assert store.active_run() is not None
        with pytest.raises(RunActive) as refused:
            store.create_run("votes", ["reward"], {})
        assert refused.value.run == run.id
    for status in ("succeeded", "rejected", "failed", "cancelled"):
        store.update_run(run.id, status=status)
        assert store.active_run() is None
    assert store.create_run("votes", ["reward"], {}).id == 2
    assert [r.id for r in store.runs()] == [2, 1]


def test_a_run_needs_known_stages(store: Store) -> None:
    for stages in ([], ["dance"]):
        with pytest.raises(InvalidInput, match="sft, reward, ppo"):
            store.create_run("operator", stages, {})  # type: ignore[arg-type]


def test_a_run_remembers_what_it_is_told(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    started = datetime(2026, 7, 4, 13, 0, tzinfo=UTC)
    report = {"status": "rejected", "reasons": ["about 20 more votes"]}
    store.update_run(run.id, status="rejected", started=started, report=report, error="none", progress=0.5)
    told = store.run(run.id)
    assert (told.status, told.started, told.report, told.error, told.progress) == (
        "rejected",
        started,
        report,
        "none",
        0.5,
    )
    assert store.update_run(run.id) == told
    with pytest.raises(TypeError, match="colour"):
        store.update_run(run.id, colour="red")
    with pytest.raises(NotFound):
        store.update_run(99, status="failed")
    with pytest.raises(NotFound):
        store.run(99)


def _line(step: int, time: str, **metrics: float) -> dict[str, object]:
    return {
        "time": time,
        "stage": "ppo",
        "step": step,
        "progress": step / 10,
        "eta_seconds": 9.0,
        "metrics": metrics,
    }


def test_metrics_make_curves_and_the_latest_values(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    store.add_run_metrics(
        run.id,
        [
            _line(1, "2026-07-04T12:00:01Z", score=0.1, kl=0.0),
            _line(2, "2026-07-04T12:00:02Z", score=0.2, kl=float("nan")),
        ],
    )
    told = store.run(run.id)
    assert told.metrics == {"score": 0.2, "kl": 0.0}
    assert (told.stage, told.progress, told.eta_seconds) == ("ppo", 0.2, 9.0)
    assert [(p.step, p.value) for p in store.run_metrics(run.id, "score")] == [(1, 0.1), (2, 0.2)]
    assert len(store.run_metrics(run.id)) == 3


def test_metrics_told_again_replace_themselves(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    lines = [_line(1, "2026-07-04T12:00:01Z", score=0.1), _line(2, "2026-07-04T12:00:02Z", score=0.2)]
    store.add_run_metrics(run.id, lines)
    store.add_run_metrics(run.id, lines)
    store.add_run_metrics(run.id, [_line(1, "2026-07-04T12:00:09+00:00", score=0.7)])
    assert sorted((p.step, p.value) for p in store.run_metrics(run.id)) == [(1, 0.7), (2, 0.2)]
    assert store.run(run.id).metrics == {"score": 0.7}, "the latest is what came last"
    store.add_run_metrics(run.id, [])
    with pytest.raises(NotFound):
        store.add_run_metrics(9, lines)


def test_votes_count_as_new_until_a_run_that_held_them_is_over(store: Store, tmp_path: Path) -> None:
    prefer(store, compare(store), 0)
    run = store.create_run("votes", ["reward"], {})
    store.snapshot(run.id, tmp_path / "snapshot.db")
    prefer(store, compare(store), 1)
    assert store.votes_since_last_run() == 2
    store.update_run(run.id, status="failed")
    assert store.votes_since_last_run() == 2
    store.update_run(run.id, status="rejected")
    assert store.votes_since_last_run() == 1
    assert store.standing_votes() == 2


# Versions


def test_the_base_serves_a_fresh_record(store: Store) -> None:
    assert store.serving() == 0
    assert store.previous_serving() is None
    assert store.next_version_number() == 1
    assert [v.status for v in store.versions()] == ["serving"]


def test_versions_are_numbered_from_one_and_know_their_run_and_parent(store: Store) -> None:
    run = store.create_run("operator", ["ppo"], {})
    version = store.add_version(run=run.id, parent=0, status="staged", report={"gate": {"kl": 3.0}}, sha256="ab")
    assert (version.number, version.run, version.parent, version.report) == (1, run.id, 0, {"gate": {"kl": 3.0}})
    assert store.version(1) == version
    assert store.next_version_number() == 2
    with pytest.raises(NotFound):
        store.version(2)


def test_promoting_retires_what_served_and_logs_it(store: Store) -> None:
    add_versions(store, 2)
    store.set_serving(1, who="operator", why="passed the gate")
    store.set_serving(2, who="operator", why="better")
    assert store.serving() == 2
    assert [(v.number, v.status) for v in store.versions()] == [(2, "serving"), (1, "retired"), (0, "retired")]
    assert [(p.from_version, p.to_version, p.why) for p in store.promotions()] == [
        (1, 2, "better"),
        (0, 1, "passed the gate"),
    ]
    store.set_serving(2, who="operator", why="again")
    assert len(store.promotions()) == 2, "nothing moved, nothing to log"


def test_rolling_back_goes_down_step_by_step_to_the_base_and_no_further(store: Store) -> None:
    add_versions(store, 3)
    for number in (1, 2):
        store.set_serving(number, who="run", why="gate")
    for expected in (1, 0):
        previous = store.previous_serving()
        assert previous == expected
        store.set_serving(previous, who="operator", why="worse", rolled_back=True)
    assert store.previous_serving() is None
    assert [(v.number, v.status) for v in store.versions()] == [
        (3, "staged"),
        (2, "rolled_back"),
        (1, "rolled_back"),
        (0, "serving"),
    ]
    store.set_serving(3, who="run", why="gate")
    assert store.previous_serving() == 0


def test_a_rejected_version_never_serves(store: Store) -> None:
    store.add_version(run=None, parent=0, status="rejected", report={}, sha256=None)
    with pytest.raises(Conflict, match="rejected"):
        store.set_serving(1, who="operator", why="I like it")
    with pytest.raises(NotFound):
        store.set_serving(7, who="operator", why="typo")
    assert store.serving() == 0


def test_a_status_cannot_move_the_serving_pointer(store: Store) -> None:
    add_versions(store, 1)
    store.set_version_status(1, "canary")
    assert store.version(1).status == "canary"
    with pytest.raises(Conflict):
        store.set_version_status(1, "serving")
    with pytest.raises(Conflict):
        store.set_version_status(0, "retired")
    with pytest.raises(NotFound):
        store.set_version_status(5, "staged")


def test_the_pointer_survives_a_restart(folder: DataFolder) -> None:
    with Store.open(folder) as store:
        add_versions(store, 1)
        store.set_serving(1, who="run", why="gate")
    with Store.open(folder) as store:
        assert store.serving() == 1


def test_importing_the_record_loads_no_heavy_library() -> None:
    code = (
        "import sys, serve.feedback.store, serve.feedback.exchange;"
        "print({'torch', 'gradio', 'fastapi'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent, check=True
    )
    assert done.stdout.strip() == "set()"
