"""The operator page's second tab: what people said and wrote, what of it counts, datasets in and out, and the log.

build(page, service)    draws it into the page, which is open
"""

from __future__ import annotations

import asyncio
from typing import Any

import gradio as gr

from serve.errors import InvalidInput
from serve.feedback.oversight import Search
from serve.service import Service
from serve.web import data_view, theme
from serve.web.theme import Update
from serve.web.visitor import operators_only

WHO = "operator page"
VERDICTS = [("Any", ""), ("A ranking", "ranking"), ("A tie", "tie"), ("Both bad", "both_bad"), ("Skip", "skip")]

_CLICKS = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.lift) trigger('lift', {id: button.dataset.lift});
  if (!button?.dataset.out) return;
  const form = document.createElement('form'), reason = document.createElement('input');
  Object.assign(reason, {required: true, maxLength: 2000, placeholder: 'Why? Then Enter.', ariaLabel: 'The reason'});
  form.append(reason);
  form.addEventListener('submit', e => {
    e.preventDefault();
    trigger('leave_out', {...JSON.parse(button.dataset.out), kind: button.dataset.kind, reason: reason.value});
  });
  reason.addEventListener('keydown', e => { if (e.key === 'Escape') { form.replaceWith(button); button.focus(); } });
  button.replaceWith(form);
  reason.focus();
});
"""

_IMPORTED = "element.addEventListener('imported', () => trigger('imported'));"


def build(page: gr.Blocks, service: Service) -> None:
    """Draw the tab and wire it; every handler asks first whether an operator is asking."""
    gr.HTML(theme.section("Votes", "Voters are known by numbers."))
    with gr.Row(elem_id="find", elem_classes="row"):
        text = gr.Textbox(label="Holds the words", max_length=500, scale=3, min_width=200)
        voter = gr.Textbox(label="Voter's number", max_length=10, scale=1, min_width=120)
        version = gr.Textbox(label="Version", max_length=10, scale=1, min_width=100)
        verdict = gr.Dropdown(VERDICTS, value="", label="Said", scale=1, min_width=130)
        since = gr.Textbox(label="Since (UTC)", placeholder="2026-01-31", max_length=40, scale=1, min_width=130)
        blind = gr.Checkbox(value=False, label="Blind ones only")
        left_out = gr.Checkbox(value=False, label="Flagged or excluded only")
    found = gr.HTML(js_on_load=_CLICKS, elem_id="found")
    following = gr.State(None)
    older = gr.Button("Older ones", size="sm", visible=False, elem_id="older")
    note = gr.HTML(elem_id="data-note")
    gr.HTML(theme.section("Demonstrations", "Answers that people wrote or edited, and imported ones; newest first."))
    demonstrations = gr.HTML(js_on_load=_CLICKS, elem_id="demonstrations")
    following_shown = gr.State(None)
    older_shown = gr.Button("Older demonstrations", size="sm", visible=False, elem_id="older-demonstrations")
    gr.HTML(theme.section("What does not count, or is marked"))
    standing = gr.HTML(js_on_load=_CLICKS, elem_id="exclusions")
    gr.HTML(theme.section("Datasets in", "A file is taken whole or not at all."))
    importer = gr.HTML(data_view.importer(), js_on_load=_IMPORTED)
    gr.HTML(theme.section("Datasets out"))
    gr.HTML(data_view.exports())
    gr.HTML(theme.section("Who did what", "The newest 200; the API has all."))
    log = gr.HTML(elem_id="deeds")

    shown = [demonstrations, following_shown, older_shown]
    everything = [found, following, older, note, *shown, standing, log]

    def search_of(text: str, voter: str, version: str, verdict: str, since: str, blind: bool, left_out: bool) -> Search:
        return Search(
            voter=_number(voter, "a voter's number"),
            version=_number(version, "a version"),
            verdict=verdict or None,
            evidence=True if blind else None,
            text=text or "",
            since=(since or "").strip() or None,
            left_out=bool(left_out),
        )

    async def show(search: Search, before: int | None = None) -> Update:
        votes, after = await service.find_votes(search, before=before)

        def rest() -> tuple[Any, Any, Any]:
            store = service.store
            return store.exclusions(), store.touched(), store.deeds()

        left_out, touched, deeds = await asyncio.to_thread(rest)
        return {
            found: data_view.votes(votes),
            following: after,
            older: gr.update(visible=after is not None),
            standing: data_view.exclusions(left_out, touched),
            log: data_view.deeds(deeds),
        }

    async def show_demonstrations(before: int | None = None) -> Update:
        them, after = await service.find_demonstrations(before=before)
        return {
            demonstrations: data_view.demonstrations(them),
            following_shown: after,
            older_shown: gr.update(visible=after is not None),
        }

    telling = theme.telling(note)

    @telling
    async def find(
        text: str, voter: str, version: str, verdict: str, since: str, blind: bool, left_out: bool, request: gr.Request
    ) -> Update:
        operators_only(request)
        wanted = search_of(text, voter, version, verdict, since, blind, left_out)
        return await show(wanted) | await show_demonstrations() | {note: ""}

    @telling
    async def go_back(
        before: int | None, text: str, voter: str, version: str, verdict: str, since: str, blind: bool, left_out: bool,
        request: gr.Request,
    ) -> Update:  # fmt: skip
        operators_only(request)
        return await show(search_of(text, voter, version, verdict, since, blind, left_out), before)

    async def go_back_shown(before: int | None, request: gr.Request) -> Update:
        operators_only(request)
        return await show_demonstrations(before)

    @telling
    async def leave_out(
        text: str, voter: str, version: str, verdict: str, since: str, blind: bool, left_out: bool,
        event: gr.EventData, request: gr.Request,
    ) -> Update:  # fmt: skip
        operators_only(request)
        told = event._data
        wanted = search_of(text, voter, version, verdict, since, blind, left_out)
        made = await service.leave_out(
            voter=told.get("voter"), vote=told.get("vote"), kind=told.get("kind"), reason=str(told.get("reason")),
            who=WHO,
        )  # fmt: skip
        done = "counts no more" if made.kind == "exclude" else "is marked"
        said = theme.note(f"{made.voter or 'The vote'} {done}.".capitalize())
        return await show(wanted) | await show_demonstrations() | {note: said}

    @telling
    async def lift(
        text: str, voter: str, version: str, verdict: str, since: str, blind: bool, left_out: bool,
        event: gr.EventData, request: gr.Request,
    ) -> Update:  # fmt: skip
        operators_only(request)
        wanted = search_of(text, voter, version, verdict, since, blind, left_out)
        await service.lift(str(event._data.get("id", "")), who=WHO)
        said = theme.note("It counts as any other again.")
        return await show(wanted) | await show_demonstrations() | {note: said}

    quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    asked = [text, voter, version, verdict, since, blind, left_out]
    for field in asked:
        assert isinstance(field, gr.Textbox | gr.Dropdown | gr.Checkbox)
        told = [field.submit, field.blur] if field is since else [field.change]  # half a date is none
        gr.on(told, find, asked, everything, trigger_mode="always_last", **quick)
    older.click(go_back, [following, *asked], everything, **quick)
    older_shown.click(go_back_shown, following_shown, shown, **quick)
    for listed in (found, demonstrations):
        listed.leave_out(leave_out, asked, everything, **quick)
    importer.imported(find, asked, everything, **quick)
    standing.lift(lift, asked, everything, **quick)
    page.load(find, asked, everything, **quick)


def _number(text: str | None, what: str) -> int | None:
    """A whole number, or nothing. Raises InvalidInput."""
    text = (text or "").strip()
    if not text:
        return None
    if not text.isascii() or not text.isdigit():
        raise InvalidInput(f"{what} is a whole number, not “{text}”")
    return int(text)
