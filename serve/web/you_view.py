"""What the page of one voter draws: pure functions of what `GET /api/me` answers; all text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from serve.records import ACTIVE, LEARNED, version_name
from serve.web.theme import empty, table, when

EXCERPT = 90
"""Characters of a prompt."""
SHOWN = 100
"""Votes, and answers, on the page at first, the newest; each “Show older” adds as many."""
TAKEN_BACK = (
    "Your answer is withdrawn: the next run does without it. A version that has learned from it stays as it is, and so "
    "does the talk that went on with it."
)

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


def votes(me: Me, shown: int, until: str) -> str:
    """The newest so many votes: what each said, what it did, and a way to take it back.

    `until` says in a sentence how far the next run is.
    """
    newest = _cast(me)[::-1]
    if not newest:
        return empty(
            'No vote of yours stands. Ask something on <a href="/">the chat page</a> and choose the better of two '
            f"answers: this page will tell what came of it. {html.escape(until)}"
        )
    versions = {version["version"]: version for version in me["versions"]}
    rows = [_row(vote, did(vote, versions, until)) for vote in newest[:shown]]
    return table(("When", "Prompt", "You said", "What it did", ""), rows, label="Your votes")


def demonstrations(me: Me, shown: int) -> str:
    """The newest so many answers that the voter wrote, each with a way to take it back."""
    newest = me["demonstrations"][::-1]
    if not newest:
        return empty(
            'None yet. Edit an answer on <a href="/">the chat page</a>, or write a better one where you '
            '<a href="/vote">rank answers</a>.'
        )
    rows = [
        f"<tr><td>{when(datetime.fromisoformat(one['created']))}</td><td>{_excerpt(one['prompt'])}</td>"
        f'<td class="words">{_excerpt(one["answer"])}</td>{_withdraw(one["id"], "your answer to", one["prompt"])}</tr>'
        for one in newest[:shown]
    ]
    return table(("When", "Prompt", "You wrote", ""), rows, label="Answers you wrote")


def has_older(me: Me, shown: int) -> bool:
    """Whether there are more votes, or answers, than so many."""
    return max(len(_cast(me)), len(me["demonstrations"])) > shown


def _cast(me: Me) -> list[Mapping[str, Any]]:
    """What the voter said: not what the server noted where somebody went on without a word."""
    return [vote for vote in me["votes"] if vote["source"] == "voter"]


def _row(vote: Mapping[str, Any], done: str) -> str:
    excerpt = _excerpt(vote["prompt"])
    asked = excerpt if vote["conversation"] else f'{excerpt} <span class="soft">(shared by somebody else)</span>'
    return (
        f"<tr><td>{when(datetime.fromisoformat(vote['created']))}</td><td>{asked}</td><td>{said(vote)}</td>"
        f"<td>{done}</td>{_withdraw(vote['id'], 'the vote on', vote['prompt'])}</tr>"
    )


def _excerpt(text: str | None) -> str:
    words = " ".join((text or "Its author no longer shares this prompt.").split())
    return html.escape(words[:EXCERPT] + ("…" if len(words) > EXCERPT else ""))


def _withdraw(key: str, what: str, prompt: str | None) -> str:
    return (
        f'<td class="act"><button type="button" data-withdraw="{html.escape(key)}"'
        f' aria-label="Withdraw {what} “{_excerpt(prompt)}”">Withdraw</button></td>'
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


def did(vote: Mapping[str, Any], versions: Mapping[int, Mapping[str, Any]], until: str) -> str:
    """Which run and version learned from a vote, what became of that version, and how its answers do."""
    lessons: Sequence[Mapping[str, Any]] = vote["trained"]
    made = [lesson for lesson in lessons if lesson["version"] is not None]
    if vote["verdict"] in ("skip", "both_bad"):
        return "Teaches nothing."
    if not made:
        return "An operator left it out." if vote["excluded"] else _taught(lessons, until)
    newest = made[-1]
    name = f"<b>{version_name(newest['version']).capitalize()}</b>"
    if vote["excluded"]:
        return f"An operator left it out. {name} had learned from it before."
    learned = f"{name} learned from it in run {newest['run']}"
    earlier = len(made) - 1
    others = "An earlier version" if earlier == 1 else f"{earlier} earlier versions"
    also = f" {others} had learned from it, too." if earlier else ""
    version = versions[newest["version"]]
    if version["status"] == "rejected":
        return f"{learned}, and did not pass the checks.{also}"
    if version["status"] == "rolled_back":
        return f"{learned}, and was taken back.{also}"
    return f"{learned}.{also}{_fared(version, newest['win_rate'])}"


def _taught(lessons: Sequence[Mapping[str, Any]], until: str) -> str:
    """What became of a vote that no version has learned from."""
    if any(lesson["status"] in ACTIVE for lesson in lessons):
        return "Is being learned from now."
    if ended := [lesson for lesson in lessons if lesson["status"] in LEARNED]:
        newest = ended[-1]
        why = html.escape(newest["reason"].rstrip(".")) if newest["reason"] else ""
        return f"Run {newest['run']} learned from it, and made no version{': ' * bool(why)}{why}."
    if lessons:  # failed or cancelled
        return "A run with it did not finish; the next one takes it up again."
    return f"Waits for the next run. {html.escape(until)}"


def _fared(version: Mapping[str, Any], promised: float | None) -> str:
    """How a version's answers do beside its parent's: as people found, or else as the checks expected."""
    parent = version["parent"]
    before = "those of the version before" if parent is None else f"those of {version_name(parent)}"
    decided = version["wins"] + version["losses"]
    if decided:
        share = f"{version['wins']} of {decided} vote{'s' * (decided > 1)}"
        return f" Not knowing who wrote what, people preferred its answers to {before} in {share}."
    if promised is None:
        return ""
    return f" The checks expected its answers to win {promised:.0%} against {before}; people have not decided yet."


def withdrawn(vote: Mapping[str, Any]) -> str:
    """What taking a vote back means."""
    versions = [lesson["version"] for lesson in vote["trained"] if lesson["version"] is not None]
    if not versions:
        return "Your vote is withdrawn: nothing will be learned from it."
    return (
        f"Your vote is withdrawn. {version_name(versions[-1]).capitalize()} has learned from it, and only training "
        "anew makes a model forget: the next run does without it."
    )
