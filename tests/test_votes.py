"""Judging, undoing, counting."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from serve.board import meetings
from serve.errors import (
    AlreadyVoted,
    Conflict,
    Expired,
    InvalidInput,
    NotFound,
)
from serve.feedback.ballots import ballots
from serve.feedback.store import HeadToHead, Store
from serve.records import Comparison, Judgement, Verdict, Vote
from tests.scenes import (
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


def _texts(store: Store, conversation_id: str, voter: str = "anna") -> list[str]:
    return [turn.message.content for turn in store.conversation(conversation_id, voter)]


def _text_of(comparison: Comparison, candidate_id: str | None) -> str:
    return next(c.answer.text for c in comparison.candidates if c.id == candidate_id)


VERDICTS: tuple[Verdict, ...] = ("tie", "skip")


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
    vote = store.comparison(chosen.id, "anna").vote
    assert vote is not None
    assert not vote.evidence
    assert store.standing_votes() == 1, "it trains all the same"


def test_a_vote_on_an_answer_whose_version_was_revealed_is_no_evidence(store: Store) -> None:
    compare(store, texts=("Light.", "Water.", "Salt."), share=True)
    evidence = []
    for _ in range(3):  # its three pairs, one after the other
        comparison = store.next_in_queue("ben")
        assert comparison is not None
        store.add_vote(comparison.id, "ben", ranking(comparison, [0], [1]))
        vote = store.comparison(comparison.id, "ben").vote
        assert vote is not None
        evidence.append(vote.evidence)
    assert evidence == [True, False, False]


def test_a_vote_cast_again_forgets_what_the_first_was_shown(store: Store) -> None:
    comparison = open_comparison(store)
    early = {c.id: ("Li", [1]) for c in comparison.candidates}
    receipt = store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1]), shown=early)
    for candidate in comparison.candidates:
        finish(store, candidate.answer.id, "Light.")
    store.withdraw_vote(receipt.id, "anna")
    prefer(store, comparison, 1)
    with store.reading() as db:
        rows = db.execute("SELECT shown_text, shown_token_ids FROM candidates").fetchall()
    assert [tuple(row) for row in rows] == [(None, None)] * 2


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


def test_a_withdrawn_vote_takes_the_talk_back_to_its_prompt_unless_it_has_gone_on(store: Store) -> None:
    comparison = compare(store)
    talk = comparison.conversation_id
    receipt = prefer(store, comparison, 0)
    assert store.open_comparison("anna", talk) is None
    store.withdraw_vote(receipt.id, "anna")
    assert _texts(store, talk) == ["Why is the sea blue?"]
    waiting = store.open_comparison("anna", talk)
    assert waiting is not None and waiting.id == comparison.id

    receipt = prefer(store, comparison, 0)
    store.record_prompt("anna", [user("Why is the sea blue?"), assistant("Light."), user("Why?")], conversation_id=talk)
    store.withdraw_vote(receipt.id, "anna")
    assert _texts(store, talk)[-1] == "Why?"
    assert store.open_comparison("anna", talk) is None, "it belongs to a turn that is over"


def test_strength_and_reasons_may_come_after_the_vote_and_teach(store: Store) -> None:
    comparison = compare(store)
    receipt = prefer(store, comparison, 0)
    assert store.note_vote(receipt.id, "anna", strength=4).judgement.strength == 4
    noted = store.note_vote(receipt.id, "anna", reasons=["clearer", "kürzer"])
    assert (noted.judgement.strength, noted.judgement.reasons) == (4, ("clearer", "kürzer"))
    assert store.note_vote(receipt.id, "anna", strength=2, reasons=[]).judgement.reasons == ()
    assert store.comparison(comparison.id, "anna").vote == noted_as(noted, 2)
    assert store.votes_since_last_run() == 1, "a note is no vote"
    with store.reading() as db:
        (ballot,) = ballots(db)
    assert ballot.strength == 2
    (mine,) = store.me("anna")["votes"]
    assert (mine["id"], mine["strength"], mine["reasons"]) == (receipt.id, 2, [])


def test_reasons_that_were_not_offered_stay_where_others_are_chosen_anew(store: Store) -> None:
    receipt = prefer(store, compare(store), 0)
    store.note_vote(receipt.id, "anna", reasons=["clearer", "rhymes"])
    offered = ("clearer", "kinder")
    noted = store.note_vote(receipt.id, "anna", strength=3, reasons=["kinder"], offered=offered)
    assert (noted.judgement.strength, noted.judgement.reasons) == (3, ("kinder", "rhymes"))
    assert store.note_vote(receipt.id, "anna", reasons=[], offered=offered).judgement.reasons == ("rhymes",)


def noted_as(vote: Vote, strength: int) -> Vote:
    return replace(vote, judgement=replace(vote.judgement, strength=strength, reasons=()))


def test_a_note_needs_a_standing_vote_of_ones_own_that_it_fits(store: Store) -> None:
    receipt, tie = prefer(store, compare(store), 0), say(store, compare(store), "tie")
    with pytest.raises(NotFound):
        store.note_vote(receipt.id, "ben", strength=1)
    with pytest.raises(InvalidInput, match="this vote ranks none"):
        store.note_vote(tie.id, "anna", strength=1)
    assert store.note_vote(tie.id, "anna", reasons=["alike"]).judgement.reasons == ("alike",)
    for strength in (0, 6):
        with pytest.raises(InvalidInput, match="from 1"):
            store.note_vote(receipt.id, "anna", strength=strength)
    store.withdraw_vote(receipt.id, "anna")
    with pytest.raises(Conflict, match="withdrawn"):
        store.note_vote(receipt.id, "anna", strength=1)


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


def test_a_ranking_of_several_answers_counts_once_between_two_versions(store: Store) -> None:
    """Three pairs of one person's one moment are no three votes: a canary would be promoted by three rankings."""
    add_versions(store, 1)
    comparison = compare(store, texts=("a", "b", "c", "d"), versions=(1, 0, 0, 0))
    store.add_vote(comparison.id, "anna", ranking(comparison, [0], [1], [2], [3]))
    assert store.head_to_head(1, 0) == HeadToHead(1, 0, 0)


def test_board_and_canary_take_the_same_pair_of_a_ranking(store: Store) -> None:
    add_versions(store, 1)
    for _ in range(12):  # which of the two answers of version 0 counts is by chance
        comparison = compare(store, texts=("a", "b", "c"), versions=(1, 0, 0))
        store.add_vote(comparison.id, "anna", ranking(comparison, [1], [0], [2]))
        met = [meeting for ballot in store.ballots() for meeting in meetings(ballot)]
        won = [meeting.won if meeting.first == 1 else 1 - meeting.won for meeting in met]
        assert store.head_to_head(1, 0) == HeadToHead(won.count(1), won.count(0), 0)


def test_withdrawing_a_vote_that_cannot_be_cast_anew_leaves_the_talk(store: Store, clock: Clock) -> None:
    comparison = compare(store)
    receipt = prefer(store, comparison, 0)
    clock.pass_by(hours=25)
    store.withdraw_vote(receipt.id, "anna")
    assert _texts(store, comparison.conversation_id)[-1] == "Light."
