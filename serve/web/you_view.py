"""What the page of one voter draws: pure functions of what `GET /api/me` answers; all text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from serve.records import version_name
from serve.web.theme import empty, table, when

EXCERPT = 90
"""Characters of a prompt."""
SHOWN = 200
"""Votes on the page, the newest first; the download has all."""

Me = Mapping[str, Any]


def counts(me: Me) -> str:
    """How much there is, and how much of it has been learned from."""
    cast = _cast(me)
    learned = sum(any(lesson["version"] is not None for lesson in vote["trained"]) for vote in cast)
    cards = (
        ("Votes", len(cast), f"{learned} of them went into a version." if learned else "None learned yet."),
        ("Answers you wrote", me["counts"]["demonstrations"], "Examples to learn from."),
        ("Conversations", me["counts"]["conversations"], 'They are on <a href="/">the chat page</a>.'),
    )
    return (
        '<div class="cards">'
        + "".join(
            f'<div class="card"><h2>{name}</h2><div class="figure">{count}</div><p>{words}</p></div>'
            for name, count, words in cards
        )
        + "</div>"
    )


def votes(me: Me) -> str:
    """Every vote, what it said, what it did, and a way to take it back."""
    newest = _cast(me)[::-1]
    if not newest:
        return empty(
            'No vote of yours stands. Ask something on <a href="/">the chat page</a> and choose the better of two '
            "answers: this page will tell what came of it."
        )
    rows = [_row(vote) for vote in newest[:SHOWN]]
    rest = len(newest) - SHOWN
    more = f'<p class="soft">{rest} earlier votes are in the download.</p>' if rest > 0 else ""
    return table(("When", "Prompt", "You said", "What it did", ""), rows) + more


def _cast(me: Me) -> list[Mapping[str, Any]]:
    """What the voter said: not what the server noted where somebody went on without a word."""
    return [vote for vote in me["votes"] if vote["source"] == "voter"]


def _row(vote: Mapping[str, Any]) -> str:
    words = " ".join((vote["prompt"] or "Its author no longer shares this prompt.").split())
    excerpt = html.escape(words[:EXCERPT] + ("…" if len(words) > EXCERPT else ""))
    asked = excerpt if vote["conversation"] else f'{excerpt} <span class="soft">(shared by somebody else)</span>'
    return (
        f"<tr><td>{when(datetime.fromisoformat(vote['created']))}</td><td>{asked}</td><td>{said(vote)}</td>"
        f"<td>{did(vote)}</td>"
        f'<td class="act"><button type="button" data-withdraw="{html.escape(vote["id"])}"'
        f' aria-label="Withdraw the vote on “{excerpt}”">Withdraw</button></td></tr>'
    )


def said(vote: Mapping[str, Any]) -> str:
    """A vote in words."""
    if vote["verdict"] != "ranking":
        return {"tie": "A tie", "both_bad": "Both bad", "skip": "Skipped"}[vote["verdict"]]
    best = len(vote["ranking"][0])
    words = "One was better" if best == 1 else f"{best} were best"
    strength = f", {vote['strength']} of 5" if vote["strength"] else ""
    reasons = "".join(f' <span class="pill">{html.escape(reason)}</span>' for reason in vote["reasons"])
    return words + strength + reasons


def did(vote: Mapping[str, Any]) -> str:
    """Which run and version learned from a vote, and how much better the checks found the newest of them."""
    lessons: Sequence[Mapping[str, Any]] = vote["trained"]
    made = [lesson for lesson in lessons if lesson["version"] is not None]
    if vote["verdict"] in ("skip", "both_bad"):
        return "Teaches nothing."
    if not made:
        if any(lesson["status"] in ("queued", "running", "interrupted") for lesson in lessons):
            return "Is being learned from now."
        return "Waits for the next run." if not lessons else "A run learned from it, and made no version."
    newest = made[-1]
    name = f"<b>{version_name(newest['version']).capitalize()}</b>"
    earlier = len(made) - 1
    also = f" and {earlier} earlier one{'s' * (earlier > 1)}" if earlier else ""
    if newest["status"] == "rejected":
        return f"{name}{also} learned from it in run {newest['run']}, and did not pass the checks."
    rate = newest["win_rate"]
    better = "" if rate is None else f" Its answers win {rate:.0%} against the one before it, the checks say."
    return f"{name}{also} learned from it in run {newest['run']}.{better}"


def withdrawn(vote: Mapping[str, Any]) -> str:
    """What taking a vote back means."""
    versions = [lesson["version"] for lesson in vote["trained"] if lesson["version"] is not None]
    if not versions:
        return "Your vote is withdrawn: nothing will be learned from it."
    return (
        f"Your vote is withdrawn. {version_name(versions[-1]).capitalize()} has learned from it, and only training "
        "anew makes a model forget: the next run does without it."
    )
