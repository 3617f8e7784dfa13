"""What the page of one voter says of votes."""

from __future__ import annotations

from typing import Any

import pytest

from serve.feedback.store import Store
from serve.web import you_view
from tests.scenes import compare, prefer, say

LESSON = {"run": 3, "status": "succeeded", "version": 2, "win_rate": 0.71}


def did(verdict: str = "ranking", **lesson: Any) -> str:
    return you_view.did({"verdict": verdict, "trained": [LESSON | lesson] if lesson or verdict == "taught" else []})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (did(), "Waits for the next run."),
        (did("skip"), "Teaches nothing."),
        (did("both_bad"), "Teaches nothing."),
        (did(status="running", version=None), "Is being learned from now."),
        (did(status="rejected", version=None), "A run learned from it, and made no version."),
        (did(status="rejected"), "<b>Version 2</b> learned from it in run 3, and did not pass the checks."),
        (
            did(version=2),
            "<b>Version 2</b> learned from it in run 3. Its answers win 71% against the one before it, the checks say.",
        ),
    ],
)
def test_each_vote_says_what_became_of_it(said: str, words: str) -> None:
    assert said == words


def test_what_the_server_noted_is_no_vote_of_anybody(store: Store) -> None:
    first = compare(store, "anna", "One?")
    compare(store, "anna", "Two?", conversation_id=first.conversation_id)  # the first is skipped by the server
    prefer(store, compare(store, "anna", "Three?"), 0)
    say(store, compare(store, "anna", "Four?"), "skip")
    me = store.me("anna")
    assert '<div class="figure">2</div>' in you_view.counts(me)
    assert "One?" not in you_view.votes(me) and "Four?" in you_view.votes(me)
