"""The page of one voter: what my votes did, and everything of mine to withdraw, take home or delete.

    build(service)  →  the page, for `mount_gradio_app(..., **theme.mount_options("you"))`

Deleting everything takes the voter's cookie away, which no handler of Gradio's can: the page's script calls the API.
"""

from __future__ import annotations

from typing import Any

import gradio as gr

from serve.errors import NotFound
from serve.service import Service
from serve.web import parts, theme, you_view
from serve.web.theme import Update
from serve.web.visitor import voter_of

_WITHDRAW = """
element.addEventListener('click', event => {
  const button = event.target.closest('button[data-withdraw]');
  if (button) trigger('withdraw', {vote: button.dataset.withdraw});
});
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


def build(service: Service) -> gr.Blocks:
    """The page. It shows whoever the signed cookie names, and nobody else."""
    page = gr.Blocks(title="Yours · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        with gr.Column(elem_id="you", elem_classes="sheet"):
            gr.HTML(theme.masthead("Yours", '<nav class="aside"><a href="/">Back to the chat</a></nav>'))
            note = gr.HTML(elem_id="note")
            counts = gr.HTML()
            gr.HTML(theme.section("What your votes did"))
            votes = gr.HTML(js_on_load=_WITHDRAW, elem_id="my-votes")
            shown = gr.State(you_view.SHOWN)
            older = gr.Button("Show older", size="sm", visible=False, elem_id="older")
            gr.HTML(theme.section("Take it home"))
            gr.HTML(
                '<p class="panel">Everything that is kept of you, as one file: '
                '<a href="/api/me/download" download>hustings-mine.json</a></p>'
            )
            gr.HTML(theme.section("Delete everything"))
            gr.HTML(_DELETE)

        async def look(voter: str, count: int) -> Update:
            me, missing = await service.me(voter), await service.votes_until_run()
            return {
                counts: you_view.counts(me),
                votes: you_view.votes(me, count, parts.until_it_learns(missing)),
                shown: count,
                older: gr.update(visible=you_view.has_older(me, count)),
            }

        telling = theme.telling(note)

        @telling
        async def arrive(request: gr.Request) -> Update:
            return await look(voter_of(request), you_view.SHOWN)

        @telling
        async def show_older(count: int, request: gr.Request) -> Update:
            return await look(voter_of(request), count + you_view.SHOWN)

        @telling
        async def withdraw(count: int, event: gr.EventData, request: gr.Request) -> Update:
            voter, wanted = voter_of(request), str(event._data.get("vote", ""))
            vote = next((vote for vote in (await service.me(voter))["votes"] if vote["id"] == wanted), None)
            if vote is None:
                raise NotFound("This vote stands no longer. Reload the page.")
            await service.withdraw(voter, wanted)
            return await look(voter, count) | {note: theme.note(you_view.withdrawn(vote))}

        everything = [note, counts, votes, shown, older]
        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(arrive, None, everything, **quick)
        older.click(show_older, shown, everything, **quick)
        votes.withdraw(withdraw, shown, everything, **quick)
    return page
