"""What the data tab draws: votes, demonstrations, what does not count, the log. Pure functions that escape all text."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from serve.feedback.entries import Deed, Exclusion
from serve.records import Format, SettingInfo, version_name
from serve.web.limits import IMPORT_BYTES
from serve.web.theme import empty, letter, table, when
from serve.web.vote_view import SPEAKERS

EXCERPT = 110

FORMATS: dict[Format, str] = {
    "trl": "TRL preference",
    "hh": "HH",
    "kto": "KTO",
    "sft": "Messages (demonstrations)",
    "arena": "Arena",
}
"""What can be imported and exported, in words."""


def votes(found: Sequence[Mapping[str, Any]], *, narrowed: bool) -> str:
    """A page of votes, each to unfold, with ways to flag or exclude it, its voter, or whoever asked.

    `narrowed`: not all were asked for.
    """
    if not found:
        none = "<b>No vote yet.</b> Each one is listed here as people give it; datasets of votes come in below."
        return empty("No vote is like that." if narrowed else none)
    rows = []
    for vote in found:
        kind = "blind" if vote["evidence"] else "not blind"
        asked = f"<br><small>asked by {html.escape(_author(vote))}</small>" if _author(vote) else ""
        rows.append(
            f"<tr><td>{when(datetime.fromisoformat(vote['created']))}</td>"
            f"<td>{html.escape(vote['voter'])}{asked}</td>"
            f"<td>{_said(vote)}{_marks(vote)}</td><td>{_unfold(vote)}</td><td>{kind}</td></tr>"
        )
    return table(("When", "Voter", "Said", "Prompt and answers", "Evidence"), rows, label="Votes")


def demonstrations(found: Sequence[Mapping[str, Any]], *, narrowed: bool) -> str:
    """A page of demonstrations, each to unfold, with ways to flag or exclude its voter."""
    if not found:
        none = "<b>None yet.</b> Answers that people write or edit are listed here, and those that are imported."
        return empty("No demonstration is like that." if narrowed else none)
    rows = []
    for shown in found:
        source = "imported" if shown["source"] == "imported" else "written here"
        answer = f"<p><b>{SPEAKERS['assistant']}</b> {html.escape(shown['answer'])}</p>"
        ways = f'<p class="act">{_out("voter", voter=shown["voter"])}</p>'
        rows.append(
            f"<tr><td>{when(datetime.fromisoformat(shown['created']))}</td>"
            f"<td>{html.escape(shown['voter'])}{_marks(shown)}</td><td>{source}</td>"
            f"<td>{_folded(shown['messages'], answer + ways)}</td></tr>"
        )
    return table(("When", "Voter", "From", "Prompt and answer"), rows, label="Demonstrations")


def pager(what: str, older: int | None, *, newer: bool) -> str:
    """Buttons that turn a list of `what`: to where the `older` ones begin, if there are any, and back."""
    ways = f'<button type="button" data-newer>Newer {what}</button>' if newer else ""
    ways += f'<button type="button" data-older="{older}">Older {what}</button>' if older is not None else ""
    return f'<p class="pager">{ways}</p>' if ways else ""


def _author(vote: Mapping[str, Any]) -> str:
    """Who asked, where it was somebody else's prompt."""
    return vote["asked_by"] if vote["asked_by"] not in (None, vote["voter"]) else ""


def _marks(row: Mapping[str, Any]) -> str:
    return "".join(
        f' <span class="pill {tone}">{name}</span>'
        for name, tone in (("excluded", "bad"), ("flagged", "busy"))
        if row[name]
    )


def _said(vote: Mapping[str, Any]) -> str:
    if vote["source"] == "server":
        return "went on without a vote"
    if vote["verdict"] != "ranking":
        return {"tie": "tie", "both_bad": "both bad", "skip": "skip"}[vote["verdict"]]
    letters = {answer["id"]: letter(place) for place, answer in enumerate(vote["answers"])}
    order = " &gt; ".join("=".join(letters[key] for key in group) for group in vote["ranking"])
    strength = f", {vote['strength']}/5" if vote["strength"] else ""
    return order + strength + "".join(f' <span class="pill">{html.escape(reason)}</span>' for reason in vote["reasons"])


def _unfold(vote: Mapping[str, Any]) -> str:
    answers = "".join(
        f"<p><b>{letter(place)}</b> ({'imported' if a['version'] is None else version_name(a['version'])}) "
        f"{html.escape(a['text'])}</p>"
        for place, a in enumerate(vote["answers"])
    )
    ways = _out("vote", vote=vote["id"]) + _out("voter", voter=vote["voter"])
    if author := _author(vote):
        ways += _out("author", voter=author)
    return _folded(vote["messages"], answers + f'<p class="act">{ways}</p>')


def _folded(messages: Sequence[Mapping[str, str]], below: str) -> str:
    """How a prompt begins; it unfolds to the prompt with all that came before it, and `below`, which is HTML."""
    last = messages[-1]["content"]
    head = _excerpt(last)
    turn = sum(message["role"] == "user" for message in messages)
    if turn > 1:
        head += f' <span class="pill">turn {turn}</span>'
    talk = "" if len(messages) == 1 and head == html.escape(last) else "".join(map(_turn, messages))
    return f"<details><summary>{head}</summary>{talk}{below}</details>"


def _turn(message: Mapping[str, str]) -> str:
    return f"<p><b>{SPEAKERS[message['role']]}</b> {html.escape(message['content'])}</p>"


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return html.escape(words[:EXCERPT] + ("…" if len(words) > EXCERPT else ""))


def _out(what: str, **whom: str) -> str:
    target = html.escape(json.dumps(whom))
    return (
        f'<button type="button" data-out="{target}" data-kind="flag" aria-label="Flag this {what}">Flag {what}</button>'
        f'<button type="button" data-out="{target}" data-kind="exclude" aria-label="Exclude this {what}">'
        f"Exclude {what}</button>"
    )


def exclusions(standing: Sequence[Exclusion], touched: Mapping[int, int]) -> str:
    """What does not count or is marked, why, and which versions learned from it."""
    if not standing:
        return empty("Everything counts. What you flag or exclude is listed here, with the reason.")
    rows = [
        f"<tr><td>{'Excluded' if each.kind == 'exclude' else 'Flagged'}</td>"
        f"<td class='words'>{_whom(each)}</td><td class='words'>{html.escape(each.reason)}</td>"
        f"<td>{html.escape(each.who)}</td><td>{when(each.created)}</td>"
        f'<td class="act"><button type="button" data-lift="{html.escape(each.id)}">Lift</button></td></tr>'
        for each in standing
    ]
    marked = ", ".join(
        f"{version_name(version)} from {votes} excluded vote{'s' * (votes != 1)}" for version, votes in touched.items()
    )
    warning = (
        f'<p class="soft">Learned before they were excluded: {marked}. The next run does without.</p>' if marked else ""
    )
    return table(("What", "Whom", "Why", "By", "Since", ""), rows, label="Flagged and excluded") + warning


def _whom(left_out: Exclusion) -> str:
    voter = html.escape(left_out.voter)
    return voter if left_out.prompt is None else f"A vote of {voter} on “{_excerpt(left_out.prompt)}”"


def deeds(log: Sequence[Deed]) -> str:
    """Who did what."""
    if not log:
        return empty("Nothing has been done yet. Runs, promotions, imports and exclusions are noted here.")
    rows = [
        f"<tr><td>{when(deed.created)}</td><td>{html.escape(deed.who)}</td>"
        f'<td class="words">{html.escape(deed.what)}</td></tr>'
        for deed in log
    ]
    return table(("When", "Who", "What"), rows, label="Log")


def exports() -> str:
    """A link for each format."""
    links = " · ".join(f'<a href="/api/export?format={key}" download>{name}</a>' for key, name in FORMATS.items())
    plain = " · ".join(
        f'<a href="/api/export?format={key}&amp;style=plain" download>{FORMATS[key]}</a>'
        for key in ("trl", "kto", "sft")
    )
    return f'<p class="panel">{links}<br>As plain text: {plain}</p>'


def importer() -> str:
    """The form that sends a file to the API: only whole files are taken, up to a size that the page's script knows."""
    options = "".join(f'<option value="{key}">{name}</option>' for key, name in FORMATS.items())
    return (
        f'<form id="import" class="panel" data-limit="{IMPORT_BYTES}"><div class="row">'
        f'<label>Format <select name="format">{options}</select></label>'
        '<label>Read as <select name="as"><option value="whole">what it is</option>'
        '<option value="demonstrations">demonstrations of the best answers</option>'
        '<option value="turns">the same, with earlier turns</option></select></label>'
        f"<label>File (JSON lines, {IMPORT_BYTES >> 20} MB at most)"
        ' <input type="file" name="file" accept=".jsonl,.json" required></label>'
        '<button type="submit">Import</button></div><p id="imported" role="status"></p></form>'
    )


def settings(known: Sequence[SettingInfo]) -> str:
    """Every setting of a run with its default and bounds."""
    rows = [
        f"<tr><td><code>{html.escape(each.name)}</code></td><td>{_plain(each.default)}</td><td>{bounds(each)}</td>"
        f'<td class="words">{html.escape(each.words)}</td></tr>'
        for each in known
    ]
    return table(("Setting", "Default", "Bounds", "What it does"), rows, label="Settings of a run")


def bounds(setting: SettingInfo) -> str:
    """What a setting may be, in words."""
    if setting.low is None or setting.high is None:
        return "on or off" if isinstance(setting.default, bool) else "–"
    return f"{setting.low:,g} to {setting.high:,g}"


def _plain(value: Any) -> str:
    words = {None: "none", True: "on", False: "off"}
    if value is None or isinstance(value, bool):
        return words[value]
    return html.escape(f"{value:,g}" if isinstance(value, int | float) else str(value))


def log(text: str) -> str:
    """The last lines of a run's log."""
    return (
        f'<pre class="log" tabindex="0">{html.escape(text)}</pre>'
        if text
        else empty("This run has not said anything yet.")
    )
