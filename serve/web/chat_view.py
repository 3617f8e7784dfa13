"""What the chat page draws as HTML: pure functions of what is known."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from serve.feedback.conversations import LISTED
from serve.records import Comparison, VoteReceipt
from serve.web.talks import Scene

if TYPE_CHECKING:
    from serve.feedback.entries import ConversationSummary, ConversationTurn

Choice = Literal["a", "b", "tie", "both_bad", "skip"]


def talk_list(talks: Sequence[ConversationSummary], current: str | None, search: str = "") -> str:
    """A voter's conversations, each with a way to rename it and to delete it."""
    if not talks:
        words = "Nothing of yours holds these words." if search.strip() else "Your conversations will be listed here."
        return f'<p class="side-foot">{words}</p>'
    rows = "".join(_talk(talk, talk.id == current) for talk in talks)
    older = '<p class="side-foot">A search finds older ones.</p>' if len(talks) == LISTED else ""
    return f'<p class="side-title">Your conversations</p><ul class="talks">{rows}</ul>{older}'


def _talk(talk: ConversationSummary, current: bool) -> str:
    key, title = html.escape(talk.id), html.escape(talk.title or "Untitled")
    here = ' aria-current="true"' if current else ""
    votes = f", with {talk.votes} vote{'s' * (talk.votes != 1)}" if talk.votes else ""
    return (
        f'<li><button type="button" data-talk="{key}"{here}>{title}</button>'
        f'<button type="button" class="mini" data-rename="{key}" aria-label="Rename “{title}”">✎</button>'
        f'<button type="button" class="mini" data-delete="{key}" data-sure="Delete{votes}?"'
        f' aria-label="Delete “{title}”">✕</button></li>'
    )


def branches(scene: Scene) -> str:
    """For every turn that was said or answered in several ways: which of them this is, and the ways to the others.

    A last turn that has lost its answer to another try has a way back to it. `data-turn` is the turn's number among
    those shown; the page's script puts each beside its turn. `data-here` names the talk, for the address, and
    `data-leaf` where it stands.
    """
    leaf = scene.turns[-1].message_id if scene.turns else ""
    place = f'<i data-here="{html.escape(scene.conversation_id or "")}" data-leaf="{html.escape(leaf)}"></i>'

    def ways(turn: ConversationTurn) -> str:
        ids = scene.branches.get(turn.message_id, ())
        across = _across(ids, ids.index(turn.message_id)) if len(ids) > 1 else ""
        return across + (_back(scene.earlier) if scene.earlier and turn is scene.said[-1] else "")

    found = ((number, ways(turn)) for number, turn in enumerate(scene.said))
    return place + "".join(f'<div class="branch" data-turn="{number}">{way}</div>' for number, way in found if way)


def _across(ids: Sequence[str], here: int) -> str:
    def way(to: int, label: str, sign: str) -> str:
        target = f' data-to="{html.escape(ids[to])}"' if 0 <= to < len(ids) else " disabled"
        return f'<button type="button"{target} aria-label="{label}">{sign}</button>'

    return (
        f"{way(here - 1, 'The one before', '‹')}"
        f"<span>{here + 1} of {len(ids)}</span>{way(here + 1, 'The next one', '›')}"
    )


def _back(to: str) -> str:
    return f'<button type="button" class="back" data-to="{html.escape(to)}">Back to the answer before</button>'


def outcome(choice: Choice, comparison: Comparison, receipt: VoteReceipt, serving: int) -> str:
    """What a vote did, and who wrote what: `You chose A. A: the assistant as it is now · B: an earlier one`."""
    names = dict(zip((c.id for c in comparison.candidates), "AB", strict=True))
    said = {
        "a": "You chose A.",
        "b": "You chose B.",
        "tie": "A tie.",
        "both_bad": "Neither was good enough.",
        "skip": "Skipped.",
    }[choice]
    if choice in ("tie", "skip") and receipt.continues_with is not None:
        said += f" The talk goes on with {names[receipt.continues_with]}."
    wrote = {name: _author(receipt.revealed[key], serving) for key, name in names.items()}
    if len(set(wrote.values())) == 1:
        return f"{said} Both are by {wrote['A']}."
    return f"{said} " + " · ".join(f"<b>{name}</b>: {author}" for name, author in wrote.items())


def _author(version: int, serving: int) -> str:
    if version == serving:
        return "the assistant as it is now"
    return "an earlier one" if version < serving else "a newer one"


def waiting(in_line: int) -> str:
    """A place in line, in words."""
    if in_line == 0:
        return ""
    return "Waiting in line: " + ("you are next." if in_line == 1 else f"{in_line - 1} before you.")
