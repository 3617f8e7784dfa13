"""What the vote page draws as HTML: pure functions; all text is escaped here."""

from __future__ import annotations

import html

from serve.errors import HustingsError
from serve.records import Comparison, VoteReceipt, prompt_text, version_name
from serve.web.parts import until_it_learns
from serve.web.theme import letter, note, problem

SPOKEN = 200
"""Characters of a question that are read out."""
AGAIN = ' <a href="/vote">Try again</a>'
SPEAKERS = {"system": "Kept in mind", "user": "Asked", "assistant": "Answered"}


def prompt(comparison: Comparison) -> str:
    """What was asked: the last turn in full, what came before it to unfold. The page's script ranks by the id in it."""
    *before, last = comparison.messages
    earlier = "".join(f"<p><b>{SPEAKERS[m.role]}</b> {_lines(m.content)}</p>" for m in before)
    fold = f"<details><summary>What came before</summary>{earlier}</details>" if earlier else ""
    key = html.escape(comparison.id)
    return f'<div class="asked" data-comparison="{key}">{fold}<p class="last">{_lines(last.content)}</p></div>'


def ranker(place: int) -> str:
    """The head of an answer: its letter, its rank, and the buttons that move it up and down."""
    name = letter(place)
    return (
        f'<div class="ranker" data-place="{place}" tabindex="0" role="group" aria-label="Answer {name}">'
        f'<h2 class="badge">{name}</h2><output aria-live="off">not ranked</output>'
        f'<button type="button" data-move="-1" aria-label="Answer {name}: up">▲</button>'
        f'<button type="button" data-move="1" aria-label="Answer {name}: down">▼</button></div>'
    )


def progress(today: int, ever: int) -> str:
    """How far this voter has come."""
    if not ever:
        return '<p class="soft">Rank a few: every one of them teaches the assistant what people here prefer.</p>'
    return f'<p class="soft"><b>{today}</b> judged today, <b>{ever}</b> in all.</p>'


def question(comparison: Comparison, number: int) -> str:
    """What is asked, for those who hear the page: the number tells two alike apart."""
    return f'<span class="unseen">Question {number}: {html.escape(prompt_text(comparison.messages)[:SPOKEN])}</span>'


def nothing_left(missing: int | None) -> str:
    """What to do where all is judged; `missing` votes start a run."""
    return (
        f"You have judged everything there is. {until_it_learns(missing)} Ask something on "
        "<a href='/'>the chat page</a>, or come back when others have shared more."
    )


def delayed(said: str, error: HustingsError) -> str:
    """The note where nothing new can be brought now; `said` (HTML) is what became of the vote before."""
    if not said:
        return problem(error, AGAIN)
    return note(f"{said} The next answers have to wait: {html.escape(str(error).removesuffix('.'))}.{AGAIN}")


def outcome(comparison: Comparison, receipt: VoteReceipt) -> str:
    """Who wrote what, once it is judged."""
    wrote = (
        f"<b>{letter(candidate.position)}</b>: {version_name(receipt.revealed[candidate.id])}"
        for candidate in comparison.candidates
    )
    return "Thank you. " + " · ".join(wrote)


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
