"""What the page of one voter says of votes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from serve.feedback.store import Store
from serve.web import you_view
from tests.scenes import compare, prefer, say, user

LESSON = {"run": 3, "status": "succeeded", "version": 2, "win_rate": 0.71, "reason": None}
VERSION = {"version": 2, "status": "serving", "parent": 1, "wins": 0, "losses": 0}
UNTIL = "It learns after 7 more votes."
PROMISED = " The checks expected its answers to win 71% against those of version 1; people have not decided yet."
FOUND = " Not knowing who wrote what, people preferred its answers to those of version 1 in 7 of 10 votes."


def did(*lessons: dict[str, Any], verdict: str = "ranking", excluded: bool = False, **version: Any) -> str:
    """What is said of a vote that such runs learned from, the last of them made such a version."""
    vote = {"verdict": verdict, "excluded": excluded, "trained": [LESSON | lesson for lesson in lessons]}
    return you_view.did(vote, {2: VERSION | version}, UNTIL)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (did, "Waits for the next run. It learns after 7 more votes."),
        (partial(did, excluded=True), "An operator left it out."),
        (partial(did, {}, excluded=True), "An operator left it out. <b>Version 2</b> had learned from it before."),
        (partial(did, verdict="skip"), "Teaches nothing."),
        (partial(did, verdict="both_bad"), "Teaches nothing."),
        (partial(did, {"status": "running", "version": None}), "Is being learned from now."),
        (partial(did, {"version": None}), "Run 3 learned from it, and made no version."),
        (
            partial(did, {"status": "rejected", "version": None, "reason": "about 9 more votes are <needed>."}),
            "Run 3 learned from it, and made no version: about 9 more votes are &lt;needed&gt;.",
        ),
        (
            partial(did, {"status": "cancelled", "version": None}),
            "A run with it did not finish; the next one takes it up again.",
        ),
        (
            partial(did, {}, status="rejected"),
            "<b>Version 2</b> learned from it in run 3, and did not pass the checks.",
        ),
        (
            partial(did, {}, status="rolled_back", wins=9),
            "<b>Version 2</b> learned from it in run 3, and was taken back.",
        ),
        (partial(did, {}), f"<b>Version 2</b> learned from it in run 3.{PROMISED}"),
        (partial(did, {}, wins=7, losses=3), f"<b>Version 2</b> learned from it in run 3.{FOUND}"),
        (
            partial(did, {"version": 1}, {"win_rate": None}, status="retired"),
            "<b>Version 2</b> learned from it in run 3. An earlier version had learned from it, too.",
        ),
    ],
)
def test_each_vote_says_what_became_of_it(said: Callable[[], str], words: str) -> None:
    assert said() == words


def test_what_the_server_noted_is_no_vote_of_anybody(store: Store) -> None:
    first = compare(store, "anna", "One?")
    compare(store, "anna", "Two?", conversation_id=first.conversation_id)  # the first is skipped by the server
    prefer(store, compare(store, "anna", "Three?"), 0)
    say(store, compare(store, "anna", "Four?"), "skip")
    me = store.me("anna")
    assert '<div class="figure">2</div>' in you_view.counts(me)
    drawn = you_view.votes(me, 2, UNTIL)
    assert "One?" not in drawn and "Four?" in drawn and not you_view.has_older(me, 2)


def test_the_newest_votes_come_first_and_the_older_ones_when_asked_for(store: Store) -> None:
    for prompt in ("One?", "Two?"):
        prefer(store, compare(store, "anna", prompt), 0)
    me = store.me("anna")
    drawn = you_view.votes(me, 1, UNTIL)
    assert "Two?" in drawn and "One?" not in drawn and you_view.has_older(me, 1)
    assert "One?" in you_view.votes(me, 2, UNTIL)


def test_whoever_has_no_votes_is_told_how_far_the_next_run_is(store: Store) -> None:
    assert UNTIL in you_view.votes(store.me("anna"), 1, UNTIL)


def test_the_answers_that_a_voter_wrote_are_listed_newest_first_with_a_way_back(store: Store) -> None:
    assert "None yet." in you_view.demonstrations(store.me("anna"), 1)
    for prompt in ("One?", "<Two>?"):
        made = store.add_demonstration("anna", [user(prompt)], f"About {prompt}")
    me = store.me("anna")
    drawn = you_view.demonstrations(me, 1)
    assert "About &lt;Two&gt;?" in drawn and "One?" not in drawn and you_view.has_older(me, 1)
    assert f'data-withdraw="{made.id}" aria-label="Withdraw your answer to “&lt;Two&gt;?”"' in drawn
