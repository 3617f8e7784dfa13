"""The operator page's second tab: what people said and wrote, what of it counts, datasets in and out, and the log.

build(tab, note, service)    draws it into the tab, which is open; `note` is where the page says what came of things
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from serve.errors import InvalidInput
from serve.feedback.browsing import Search
from serve.service import Service
from serve.web import data_view, theme
from serve.web.identity import OPERATOR_PAGE
from serve.web.theme import Update
from serve.web.visitor import operators_only

VERDICTS = [("Any", ""), ("A ranking", "ranking"), ("A tie", "tie"), ("Both bad", "both_bad"), ("Skip", "skip")]

_CLICKS = """
element.tabIndex = -1;
let row = null;  // whose button was pressed: what is drawn anew loses the focus
const act = (name, told, place) => {
  row = [...element.querySelectorAll('tbody tr')].indexOf(place.closest('tr'));
  trigger(name, told);
};
new MutationObserver(() => {
  if (row === null || document.activeElement !== document.body) return;
  const rows = element.querySelectorAll('tbody tr');
  const next = rows[Math.min(Math.max(row, 0), rows.length - 1)];
  row = null;
  (next?.querySelector('summary, [data-lift]') ?? element).focus();
}).observe(element, {childList: true, subtree: true});
element.addEventListener('click', event => {
  const button = event.target.closest('button'), told = button?.dataset ?? {};
  if (told.lift) act('lift', {id: told.lift}, button);
  if (told.older) act('turn', {before: Number(told.older)}, button);
  if ('newer' in told) act('turn', {before: null}, button);
  if (!told.out) return;
  const form = document.createElement('form'), reason = document.createElement('input');
  Object.assign(reason, {required: true, maxLength: 2000, placeholder: 'Why? Then Enter.', ariaLabel: 'The reason'});
  form.append(reason);
  form.addEventListener('submit', e => {
    e.preventDefault();
    act('leave_out', {...JSON.parse(told.out), kind: told.kind, reason: reason.value}, form);
  });
  reason.addEventListener('keydown', e => { if (e.key === 'Escape') { form.replaceWith(button); button.focus(); } });
  button.replaceWith(form);
  reason.focus();
});
"""

_IMPORTED = "element.addEventListener('imported', () => trigger('imported'));"


@dataclass(frozen=True)
class Place:
    """What an operator looks at: what was asked for, and where the pages begin that were turned to, the last one open.

    No page turned to is the newest one.
    """

    search: Search = field(default_factory=Search)
    votes: tuple[int, ...] = ()
    demonstrations: tuple[int, ...] = ()


def build(tab: gr.Tab, note: gr.HTML, service: Service) -> None:
    """Draw the tab and wire it; every handler asks first whether an operator is asking."""
    gr.HTML(theme.section("Votes", "Voters are known by numbers."))
    with gr.Row(elem_id="find", elem_classes="row"):
        text = gr.Textbox(label="Holds the words", max_length=500, scale=3, min_width=200)
        voter = gr.Textbox(label="Voter", placeholder="3", max_length=24, scale=1, min_width=110)
        asked_by = gr.Textbox(label="Asked by", placeholder="3", max_length=24, scale=1, min_width=110)
        version = gr.Textbox(label="Version", max_length=18, scale=1, min_width=100)
        verdict = gr.Dropdown(VERDICTS, value="", label="Said", scale=1, min_width=130)
        since = gr.Textbox(label="Since (UTC)", placeholder="2026-01-31", max_length=40, scale=1, min_width=130)
        until = gr.Textbox(label="Before (UTC)", placeholder="2026-02-28", max_length=40, scale=1, min_width=130)
        blind = gr.Checkbox(value=False, label="Blind ones only", elem_classes="tick")
        left_out = gr.Checkbox(value=False, label="Flagged or excluded only", elem_classes="tick")
        search = gr.Button("Find", elem_id="search", scale=0, min_width=100)
    found = gr.HTML(js_on_load=_CLICKS, elem_id="found")
    gr.HTML(
        theme.section(
            "Demonstrations",
            "Written, edited or imported answers. Words, voter, dates and marks above narrow them, too.",
        )
    )
    demonstrations = gr.HTML(js_on_load=_CLICKS, elem_id="demonstrations")
    gr.HTML(theme.section("What does not count, or is marked"))
    standing = gr.HTML(js_on_load=_CLICKS, elem_id="exclusions")
    gr.HTML(theme.section("Datasets in", "A file is taken whole or not at all."))
    importer = gr.HTML(data_view.importer(), js_on_load=_IMPORTED)
    gr.HTML(theme.section("Datasets out"))
    gr.HTML(data_view.exports())
    gr.HTML(theme.section("Who did what", "The newest 200; the API has all."))
    log = gr.HTML(elem_id="deeds")
    place = gr.State(Place())

    async def votes(at: Place) -> Update:
        them, older = await service.find_votes(at.search, before=at.votes[-1] if at.votes else None)
        pager = data_view.pager("votes", older, newer=bool(at.votes))
        return {place: at, found: data_view.votes(them, narrowed=at.search != Search()) + pager}

    async def shown(at: Place) -> Update:
        before = at.demonstrations[-1] if at.demonstrations else None
        them, older = await service.find_demonstrations(at.search, before=before)
        pager = data_view.pager("demonstrations", older, newer=bool(at.demonstrations))
        drawn = data_view.demonstrations(them, narrowed=at.search != Search())
        return {place: at, demonstrations: drawn + pager}

    async def everything(at: Place) -> Update:
        def rest() -> Update:
            store = service.store
            return {
                standing: data_view.exclusions(store.exclusions(), store.touched()),
                log: data_view.deeds(store.deeds()),
            }

        return await votes(at) | await shown(at) | await asyncio.to_thread(rest)

    telling = theme.telling(note)

    @telling
    async def look(at: Place, request: gr.Request) -> Update:
        operators_only(request)
        return await everything(at)

    @telling
    async def find(request: gr.Request, *filters: Any) -> Update:
        operators_only(request)
        return await everything(Place(_search(*filters))) | {note: ""}

    @telling
    async def turn_votes(at: Place, event: gr.EventData, request: gr.Request) -> Update:
        operators_only(request)
        return await votes(replace(at, votes=_turned(at.votes, event._data.get("before"))))

    @telling
    async def turn_demonstrations(at: Place, event: gr.EventData, request: gr.Request) -> Update:
        operators_only(request)
        return await shown(replace(at, demonstrations=_turned(at.demonstrations, event._data.get("before"))))

    @telling
    async def leave_out(at: Place, event: gr.EventData, request: gr.Request) -> Update:
        operators_only(request)
        told = event._data
        made = await service.leave_out(
            voter=_number(told.get("voter"), "a voter"),
            vote=told.get("vote"),
            kind=told.get("kind"),
            reason=str(told.get("reason")),
            who=OPERATOR_PAGE,
        )
        whom = made.voter.capitalize() if made.vote is None else "The vote"
        done = "counts no more" if made.kind == "exclude" else "is marked"
        return await everything(at) | {note: theme.note(f"{whom} {done}.")}

    @telling
    async def lift(at: Place, event: gr.EventData, request: gr.Request) -> Update:
        operators_only(request)
        await service.lift(str(event._data.get("id", "")), who=OPERATOR_PAGE)
        return await everything(at) | {note: theme.note("It counts as any other again.")}

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    drawn = [place, found, demonstrations, standing, log, note]
    tab.select(look, place, drawn, **quick)
    importer.imported(look, place, drawn, trigger_mode="always_last", **quick)
    gr.on(
        [
            search.click,
            *(box.submit for box in (text, voter, asked_by, version, since, until)),
            verdict.change,
            blind.change,
            left_out.change,
        ],
        find,
        [text, voter, asked_by, version, verdict, since, until, blind, left_out],
        drawn,
        trigger_mode="always_last",
        **quick,
    )
    found.turn(turn_votes, place, [place, found, note], **quick)
    demonstrations.turn(turn_demonstrations, place, [place, demonstrations, note], **quick)
    for listed in (found, demonstrations):
        listed.leave_out(leave_out, place, drawn, **quick)
    standing.lift(lift, place, drawn, **quick)


def _search(
    text: str,
    voter: str,
    asked_by: str,
    version: str,
    verdict: str,
    since: str,
    until: str,
    blind: bool,
    left_out: bool,
) -> Search:
    """What the fields ask for. Raises InvalidInput."""
    return Search(
        voter=_number(voter, "a voter"),
        asked_by=_number(asked_by, "who asked"),
        version=_number(version, "a version"),
        verdict=verdict or None,
        evidence=True if blind else None,
        text=(text or "").strip(),
        since=(since or "").strip() or None,
        until=(until or "").strip() or None,
        left_out=bool(left_out),
    )


def _turned(pages: tuple[int, ...], before: Any) -> tuple[int, ...]:
    """The pages after turning to the one that begins `before`, or, with None, back by one."""
    return (*pages, max(0, min(before, 2**62))) if isinstance(before, int) else pages[:-1]


def _number(text: str | None, what: str) -> int | None:
    """A whole number, also as pseudonyms have it (`voter-3`), or nothing. Raises InvalidInput."""
    text = (text or "").strip().removeprefix("voter-")
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII):  # SQLite's integers have 63 bits
        raise InvalidInput(f"{what} is a whole number, not “{text}”")
    return int(text)
