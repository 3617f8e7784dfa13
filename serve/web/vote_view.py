"""What the vote page draws as HTML: pure functions; all text is escaped here."""

from __future__ import annotations

import html

from serve.errors import HustingsError
from serve.limits import MAX_CANDIDATES
from serve.records import Comparison, Due, Judgement, VoteReceipt, prompt_text, version_name
from serve.web.parts import until_it_learns
from serve.web.theme import letter, note, problem

SPOKEN = 200
"""Characters of a question that are read out."""
AGAIN = ' <a href="/vote">Try again</a>'
NOTHING_LEFT = (
    'You have judged everything there is. Ask something on <a href="/">the chat page</a>, or come back when others '
    "have shared more."
)
SPEAKERS = {"system": "Kept in mind", "user": "Asked", "assistant": "Answered"}


def prompt(comparison: Comparison) -> str:
    """What was asked: the last turn in full, what came before it to unfold.

    The page's script ranks by the id in it, and its style shows as many answers as it says. Gradio can lose that in a
    component's properties where the page has just appeared, in a value never.
    """
    *before, last = comparison.messages
    earlier = "".join(f"<p><b>{SPEAKERS[m.role]}</b> {_lines(m.content)}</p>" for m in before)
    fold = f"<details><summary>What came before</summary>{earlier}</details>" if earlier else ""
    key = html.escape(comparison.id)
    return (
        f'<div class="asked" data-comparison="{key}" data-answers="{len(comparison.candidates)}">{fold}'
        f'<p class="last">{_lines(last.content)}</p></div>'
    )


def ranker(place: int) -> str:
    """The head of an answer: its letter, its rank, and a button for each rank; style hides those there are not."""
    name = f"Answer {letter(place)}"
    ranks = "".join(
        f'<button type="button" data-rank="{rank}" aria-label="{name}: rank {rank}" aria-pressed="false">'
        f"{rank}</button>"
        for rank in range(1, MAX_CANDIDATES + 1)
    )
    return (
        f'<div class="ranker" data-place="{place}" data-name="{name}" tabindex="0" role="group" aria-label="{name}">'
        f'<h2 class="badge">{letter(place)}</h2><output aria-live="off">not ranked</output>{ranks}</div>'
    )


def progress(lately: int, ever: int, left: int, due: Due | None, last: Comparison | None = None) -> str:
    """How far this voter has come, how much is left, and when the assistant learns; `due` is None while it does.

    `last` was judged last: the style shows what can be done with that vote, by the kind that is named here.
    """
    done = f"<b>{lately}</b> judged within a day, <b>{ever}</b> in all."
    words = done if ever else "Rank a few: every one of them teaches the assistant what people here prefer."
    wait = f" <b>{left}</b> more {'wait' if left > 1 else 'waits'} for you." if left else ""
    kind = f' data-last="{_kind(last)}"' if last else ""
    return f'<p class="soft"{kind}>{words}{wait} {until_it_learns(due)}</p>'


def _kind(judged: Comparison) -> str:
    ranking = judged.vote and judged.vote.judgement.ranking
    if not ranking:
        return "verdict"
    return "ranking pair" if [len(group) for group in ranking] == [1, 1] else "ranking"


def question(comparison: Comparison, number: int) -> str:
    """What is asked, for those who hear the page: the number tells two alike apart."""
    return f'<span class="unseen">Question {number}: {html.escape(prompt_text(comparison.messages)[:SPOKEN])}</span>'


def delayed(said: str, error: HustingsError) -> str:
    """The note where nothing new can be brought now; `said` (HTML) is what became of the vote before."""
    if not said:
        return problem(error, AGAIN)
    return note(f"{said} The next answers have to wait: {html.escape(str(error).removesuffix('.'))}.{AGAIN}")


def outcome(comparison: Comparison, judgement: Judgement, receipt: VoteReceipt) -> str:
    """Who wrote what, once it is judged; a skip does not ask."""
    if judgement.verdict == "skip":
        return "Skipped."
    wrote = (
        f"<b>{letter(candidate.position)}</b>: {version_name(receipt.revealed[candidate.id])}"
        for candidate in comparison.candidates
    )
    return ("None was good. " if judgement.verdict == "both_bad" else "Thank you. ") + " · ".join(wrote)


def _lines(text: str) -> str:
    return html.escape(text).replace("\n", "<br>")
