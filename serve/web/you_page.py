"""The page of one voter: what my votes did, and everything of mine to withdraw, take home or delete.

    build(service, training)  →  the page, for `mount_gradio_app(..., **theme.mount_options("you"))`

Deleting everything takes the voter's cookie away, which no handler of Gradio's can: the page's script calls the API.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from serve.service import Service, Training
from serve.web import parts, theme, you_view
from serve.web.theme import Update
from serve.web.visitor import voter_of

_WITHDRAW = """
let pressed = null;
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-withdraw]');
  if (!button) return;
  pressed = button;
  trigger('withdraw', {id: button.dataset.withdraw});
});
new MutationObserver(() => {  // a row that goes leaves its place and the focus to the next one, and the last to none
  if (!pressed || pressed.isConnected) return;
  pressed = null;
  const left = element.querySelectorAll('button[data-withdraw]'), note = document.getElementById('note');
  note.tabIndex = -1;
  (left[left.length - 1] ?? note).focus();
}).observe(element, {childList: true, subtree: true});
"""
_DELETE = """
<form id="delete" class="panel">
<p>This deletes your conversations, votes and answers from this server, and from the copies that ended runs learned
from. A version that has learned from them stays as it is: <b>only training anew makes a model forget</b>, and the next
run does without them. Nothing can bring them back.</p>
<label for="sure">Type <b>delete</b> to go on</label>
<div class="row"><input id="sure" name="sure" autocomplete="off" required pattern="\\s*[Dd]elete\\s*">
<button type="submit">Delete everything of mine</button></div>
<p id="deleted" role="status"></p>
</form>
"""


def build(service: Service, training: Training) -> gr.Blocks:
    """The page. It shows whoever the signed cookie names, and nobody else."""
    page = gr.Blocks(title="Yours · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        with gr.Column(elem_id="you", elem_classes="sheet"):
            gr.HTML(theme.masthead("Yours", '<nav class="aside"><a href="/">Back to the chat</a></nav>'))
            note = gr.HTML(elem_id="note")
            counts = gr.HTML()
            gr.HTML(theme.section("What your votes did"))
            votes = gr.HTML(js_on_load=_WITHDRAW, elem_id="my-votes")
            gr.HTML(theme.section("Answers you wrote", "The assistant learns from them as from examples."))
            written = gr.HTML(js_on_load=_WITHDRAW, elem_id="my-answers")
            shown = gr.State(you_view.SHOWN)
            older = gr.Button("Show older", size="sm", visible=False, elem_id="older")
            gr.HTML(theme.section("Take it home"))
            gr.HTML(
                '<p class="panel">Everything that is kept of you, as one file: '
                '<a href="/api/me/download" download>hustings-mine.json</a></p>'
            )
            gr.HTML(theme.section("Delete everything"))
            gr.HTML(_DELETE)

        async def look(me: you_view.Me, count: int) -> Update:
            due = await service.next_run(training)
            return {
                counts: you_view.counts(me),
                votes: you_view.votes(me, count, parts.until_it_learns(due)),
                written: you_view.demonstrations(me, count),
                shown: count,
                older: gr.update(visible=you_view.has_older(me, count)),
            }

        telling = theme.telling(note)

        @telling
        async def arrive(request: gr.Request) -> Update:
            return await look(await service.me(voter_of(request)), you_view.SHOWN)

        @telling
        async def show_older(count: int, request: gr.Request) -> Update:
            return await look(await service.me(voter_of(request)), count + you_view.SHOWN)

        @telling
        async def withdraw(count: int, event: gr.EventData, request: gr.Request) -> Update:
            voter, wanted = voter_of(request), str(event._data.get("id", ""))
            me = await service.me(voter)
            await service.withdraw(voter, wanted)
            vote = next((vote for vote in me["votes"] if vote["id"] == wanted), None)
            if vote is None:  # cast after the first look
                return await look(await service.me(voter), count)
            left = {**me, "votes": [other for other in me["votes"] if other is not vote]}
            return await look(left, count) | {note: theme.note(you_view.withdrawn(vote))}

        @telling
        async def take_back(count: int, event: gr.EventData, request: gr.Request) -> Update:
            voter = voter_of(request)
            await service.withdraw_demonstration(voter, str(event._data.get("id", "")))
            return await look(await service.me(voter), count) | {note: theme.note(you_view.TAKEN_BACK)}

        everything = [note, counts, votes, written, shown, older]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(arrive, None, everything, **quick)
        older.click(show_older, shown, everything, **quick)
        votes.withdraw(withdraw, shown, everything, **quick)
        written.withdraw(take_back, shown, everything, **quick)
    return page
