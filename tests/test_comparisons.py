"""Comparisons and the queue of those that others may judge."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from serve.board import sayings
from serve.errors import (
    Conflict,
    InvalidInput,
    NotFound,
)
from serve.feedback.database import stamp
from serve.feedback.store import NewCandidate, Store
from serve.records import Judgement, Sampling
from tests.scenes import (
    Clock,
    add_versions,
    assistant,
    compare,
    finish,
    open_comparison,
    prefer,
    say,
    user,
)


def _texts(store: Store, conversation_id: str, voter: str = "anna") -> list[str]:
    return [turn.message.content for turn in store.conversation(conversation_id, voter)]


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


def test_two_calls_of_a_voter_get_the_same_pair(store: Store) -> None:
    for number in range(5):
        compare(store, prompt=f"Question {number}?", share=True)
    with ThreadPoolExecutor(8) as pool:
        waiting = list(pool.map(store.next_in_queue, ["ben"] * 8))
    assert len({w.id for w in waiting if w is not None}) == 1


def test_looking_for_something_to_judge_leaves_the_writer_alone(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    prefer(store, compare(store), 0)

    def refuse(_: object) -> None:
        raise AssertionError("there is nothing to write")

    monkeypatch.setattr(store, "writing", refuse)
    assert store.open_in_queue("anna") is store.next_in_queue("anna") is store.repeat("anna", apart=1) is None


def test_a_pair_that_is_gone_before_it_is_shown_makes_room_for_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("anna", "carl"):
        compare(store, name, f"{name}?", share=True)
    run, writing = store.create_run("votes", ["reward"], {}), store.writing
    pairs = store.undoubted(run.id, 10)
    store.set_doubts(run.id, [(p.first, p.second, float(p.messages[-1].content == "anna?")) for p in pairs])

    def late(work: Callable[[sqlite3.Connection], Any]) -> Any:
        monkeypatch.undo()
        store.forget("anna")
        return writing(work)

    monkeypatch.setattr(store, "writing", late)
    waiting = store.next_in_queue("ben")
    assert waiting is not None and waiting.messages == (user("carl?"),)


def test_prompts_of_an_excluded_voter_wait_in_nobodys_queue(store: Store) -> None:
    for prompt in ("Spam?", "More spam?"):
        compare(store, "anna", prompt, share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None and store.open_in_queue("ben") == waiting
    out = store.leave_out(voter=1, kind="exclude", reason="spam", who="ada")
    assert store.open_in_queue("ben") is store.next_in_queue("ben") is store.next_in_queue("carl") is None
    assert store.undoubted(1, 10) == []
    store.lift(out.id, who="ada")
    assert store.next_in_queue("ben") == waiting


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


def test_what_was_said_before_sharing_hides_what_comes_after_it(store: Store) -> None:
    talk = store.record_prompt("anna", [user("My diagnosis is this.")]).conversation_id
    then = [user("My diagnosis is this."), assistant("I see."), user("A recipe?")]
    compare(store, prompt=then, conversation_id=talk, share=True)
    assert store.next_in_queue("ben") is None
    store.record_prompt("anna", then[:1], conversation_id=talk, share=True)
    compare(store, prompt=then, conversation_id=talk, share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None and len(waiting.messages) == 3
    store.record_prompt("anna", then[:1], conversation_id=talk)  # asked once more, unshared
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


def test_the_last_word_of_a_talk_is_known_until_something_is_said_after_it(store: Store) -> None:
    comparison = compare(store)
    talk = comparison.conversation_id
    assert store.judged_last("anna", talk) is None
    receipt = prefer(store, comparison, 0)
    judged = store.judged_last("anna", talk)
    assert judged is not None and judged.vote is not None and judged.vote.id == receipt.id
    assert store.judged_last("ben", talk) is None
    store.withdraw_vote(receipt.id, "anna")
    assert store.judged_last("anna", talk) is None
    say(store, comparison, "both_bad")
    assert store.judged_last("anna", talk) is not None
    store.add_demonstration("anna", comparison.messages, "It is the light.", conversation_id=talk)
    assert store.judged_last("anna", talk) is None, "the talk goes on with other words"


def test_what_was_judged_last_in_the_queue_is_known_while_that_vote_stands_and_is_new(
    store: Store, clock: Clock
) -> None:
    compare(store, "anna", share=True)
    own = compare(store, "ben", "My own?")
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    before = stamp(clock())
    assert store.judged_in_queue("ben", before) is None
    receipt = prefer(store, waiting, 0)
    prefer(store, own, 0)  # in a talk
    found = store.judged_in_queue("ben", before)
    assert found is not None and found.id == waiting.id
    assert found.vote is not None and found.vote.id == receipt.id
    assert store.judged_in_queue("anna", before) is None
    assert store.judged_in_queue("ben", stamp(clock())) is None, "that was before"
    store.withdraw_vote(receipt.id, "ben")
    assert store.judged_in_queue("ben", before) is None


def test_the_queue_counts_the_pairs_that_were_not_shown_yet(store: Store) -> None:
    compare(store, "anna", texts=("One.", "Two.", "Three."), share=True)
    assert (store.unseen_pairs("anna"), store.unseen_pairs("ben")) == (0, 3)
    assert store.next_in_queue("ben") is not None
    assert store.next_in_queue("carl") is not None  # the same answers once more
    assert store.unseen_pairs("ben") == 2


def test_a_pair_is_shown_again_with_sides_swapped_once_and_is_no_evidence(store: Store) -> None:
    first = compare(store)
    prefer(store, first, 0)
    assert store.repeat("anna", apart=2) is None, "too soon"
    for _ in range(2):
        prefer(store, compare(store), 0)
    again = store.repeat("anna", apart=2)
    assert again is not None and again.id != first.id
    assert [c.answer.id for c in again.candidates] == [c.answer.id for c in first.candidates][::-1]
    assert store.repeat("anna", apart=2) == again, "until it is voted on"
    prefer(store, again, 1)
    vote = store.comparison(again.id, "anna").vote
    assert vote is not None and not vote.evidence
    assert store.repeat("anna", apart=3) is None, "once is enough"
    assert store.repeat("ben", apart=0) is None
    _, same = sayings(store.ballots())
    assert same == [[first.candidates[0].answer.id] * 2], "anna said the same of both"


def test_the_queue_asks_first_about_what_the_fold_models_differ_on(store: Store) -> None:
    shared = [compare(store, "anna", f"Question {i}?", share=True) for i in range(3)]
    compare(store, "anna", "Not shared.")
    run = store.create_run("votes", ["reward"], {})
    pairs = store.undoubted(run.id, 10)
    assert {pair.messages[-1].content for pair in pairs} == {"Question 0?", "Question 1?", "Question 2?"}
    assert (pairs[0].first_text, pairs[0].second_text) == ("Light.", "Water.")
    doubts = {"Question 0?": 0.1, "Question 1?": 2.0, "Question 2?": 0.5}
    store.set_doubts(run.id, [(pair.first, pair.second, doubts[pair.messages[-1].content]) for pair in pairs])
    assert store.undoubted(run.id, 10) == []
    asked = []
    for _ in shared:
        waiting = store.next_in_queue("ben")
        assert waiting is not None
        asked.append(waiting.messages[-1].content)
        prefer(store, waiting, 0)
    assert asked == ["Question 1?", "Question 2?", "Question 0?"]
    store.forget("anna")
    store.set_doubts(run.id, [(pair.first, pair.second, 1.0) for pair in pairs])
    assert store.next_in_queue("carl") is None


def test_a_repeat_of_a_talks_pair_leaves_the_talk_as_it_is(store: Store) -> None:
    first = compare(store)
    prefer(store, first, 0)
    again = store.repeat("anna", apart=0)
    assert again is not None
    assert store.open_comparison("anna", first.conversation_id) is None, "it is no question of the chat"
    receipt = prefer(store, again, 0)
    assert receipt.continues_with is None
    assert _texts(store, first.conversation_id) == ["Why is the sea blue?", "Light."]
    judged = store.judged_last("anna", first.conversation_id)
    assert judged is not None and judged.id == first.id, "undo in the chat means the first"
    store.withdraw_vote(receipt.id, "anna")
    assert _texts(store, first.conversation_id) == ["Why is the sea blue?", "Light."]


def test_what_is_no_longer_shared_is_shown_to_nobody_in_no_way(store: Store) -> None:
    store.give_consent("anna", share=True)
    compare(store, "anna", "A secret?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    compare(store, "anna", "Another?", share=True)
    prefer(store, waiting, 0)
    store.add_demonstration("ben", waiting.messages, "Mine.", comparison_id=waiting.id)
    assert store.next_in_queue("ben") is not None
    store.give_consent("anna", share=False)
    assert store.next_in_queue("ben") is None and store.repeat("ben", apart=0) is None
    (vote,) = store.me("ben")["votes"]
    assert vote["prompt"] is None
    with pytest.raises(NotFound, match="no longer shares"):
        store.comparison(vote["comparison"], "ben")
    home = json.dumps(store.everything("ben"))
    assert "Mine." in home and "secret" not in home and "Light." not in home


def test_a_vote_that_was_stored_has_the_same_receipt_after_the_prompt_is_unshared(store: Store) -> None:
    store.give_consent("anna", share=True)
    compare(store, "anna", "A secret?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    tie = Judgement(verdict="tie")
    first = store.add_vote(waiting.id, "ben", tie, idempotency_key="k")
    store.give_consent("anna", share=False)
    assert store.add_vote(waiting.id, "ben", tie, idempotency_key="k") == first


def test_who_said_no_shares_nothing_that_was_on_its_way(store: Store) -> None:
    store.give_consent("anna", share=False)
    compare(store, "anna", "A secret?", share=True)
    assert store.next_in_queue("ben") is None


def test_nobody_goes_on_with_a_prompt_for_judging_which_everybody_may_see(store: Store) -> None:
    talk = store.record_prompt("anna", [user("Hello?")], source="shipped").conversation_id
    words = [user("Hello?"), assistant("Hi."), user("My secret is this.")]
    with pytest.raises(Conflict, match="begin a new conversation"):
        store.record_prompt("anna", words, conversation_id=talk)
    with pytest.raises(Conflict, match="begin a new conversation"):
        store.add_demonstration("anna", words, "Oh.", conversation_id=talk)
    assert "secret" not in json.dumps(store.everything("anna"))


def test_a_better_answer_to_a_prompt_that_is_gone_is_not_kept(store: Store) -> None:
    compare(store, "anna", "A secret?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    store.forget("anna")
    with pytest.raises(NotFound, match="no more"):
        store.add_demonstration("ben", waiting.messages, "Mine.", comparison_id=waiting.id)
    assert store.demonstrations_count() == 0


def test_an_open_comparison_of_an_unshared_prompt_takes_no_vote(store: Store) -> None:
    store.give_consent("anna", share=True)
    compare(store, "anna", "A secret?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    store.give_consent("anna", share=False)
    with pytest.raises(NotFound, match="no longer shares"):
        prefer(store, waiting, 0)


def test_a_demonstration_in_a_talk_goes_with_the_talk(store: Store) -> None:
    own = compare(store, "anna", "My own?")
    store.add_demonstration("anna", own.messages, "Mine.", conversation_id=own.conversation_id)
    assert store.demonstrations_count() == 1
    store.delete_conversation(own.conversation_id, "anna")
    assert store.demonstrations_count() == 0 and "Mine." not in json.dumps(store.everything("anna"))


def test_a_demonstration_for_somebody_elses_prompt_goes_with_it(store: Store) -> None:
    compare(store, "anna", "A secret?", share=True)
    waiting = store.next_in_queue("ben")
    assert waiting is not None
    store.add_demonstration("ben", waiting.messages, "Mine.", comparison_id=waiting.id)
    own = compare(store, "ben", "My own?")
    store.add_demonstration("ben", own.messages, "Mine, too.", comparison_id=own.id)
    store.forget("anna")
    assert store.demonstrations_count() == 1
