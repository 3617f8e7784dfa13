"""The vote page: a queue of answers to rank, by keyboard alone if you like.

    build(service, settings)  →  the page, for `mount_gradio_app(..., **theme.mount_options("vote"))`

Shown are pairs that others shared; where none wait, several answers to a prompt that the project brings, as they are
written. The page's script keeps the ranks and sends them when they are whole; what they mean is checked here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr

from serve.errors import AlreadyVoted, Expired, HustingsError, InvalidInput, NotFound
from serve.limits import MAX_CANDIDATES
from serve.records import Comparison, Judgement
from serve.service import Service
from serve.settings import Settings
from serve.web import parts, theme, vote_view
from serve.web.theme import Update
from serve.web.visitor import view_of, voter_of

DAY = timedelta(days=1)
ASK = "Which is best? Equal ranks are a tie."
GONE = "That one is shared no more."
WRITTEN = "All answers are there."
KEYS = (
    '<p class="keys"><kbd>Tab</kbd> or <kbd>J</kbd> <kbd>K</kbd> goes to an answer, <kbd>1</kbd>–<kbd>6</kbd> ranks '
    "it, <kbd>Enter</kbd> hands the ranking in; <kbd>X</kbd> none is good, <kbd>S</kbd> skip, <kbd>U</kbd> undo, "
    "<kbd>E</kbd> write a better one.</p>"
)
_CONTROLS = """
<div class="controls"><button type="button" id="hand-in" disabled>Hand in</button>
<button type="button" data-verdict="both_bad">None is good</button>
<button type="button" data-verdict="skip">Skip</button></div>
"""
_HAND_IN = """
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.id === 'hand-in') trigger('rank', {ranks: window.ranks()});
  if (button?.dataset.verdict) trigger('dismiss', {verdict: button.dataset.verdict});
});
"""


def build(service: Service, settings: Settings) -> gr.Blocks:
    """The page. Whose votes these are the signed cookie says."""
    page = gr.Blocks(title="Vote · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        item = gr.Textbox(visible=False)
        done = gr.Textbox(visible=False)  # the vote that can be undone
        likes = gr.BrowserState(True, storage_key="hustings-vote", secret="none")  # noqa: S106
        with gr.Column(elem_id="vote", elem_classes="sheet"):
            gr.HTML(
                theme.masthead(
                    "Rank answers", '<nav class="aside"><a href="/you">Yours</a><a href="/">Back to the chat</a></nav>'
                )
            )
            newcomer = parts.consent()
            progress = gr.HTML(elem_id="progress")
            asked = gr.HTML(elem_id="asked")
            texts = []
            # Always there, and hidden by style: Gradio draws what has just appeared once more as it was at first.
            with gr.Row(elem_id="answers", elem_classes="of-0") as answers:
                for place in range(MAX_CANDIDATES):
                    with gr.Column(elem_classes="pane"):
                        gr.HTML(vote_view.ranker(place))
                        texts.append(parts.answer(f"answer-{place}"))
            with gr.Column(elem_id="dock"):
                note = gr.HTML(elem_id="note")
                controls = gr.HTML(_CONTROLS, js_on_load=_HAND_IN, visible=False, elem_id="controls")
                with gr.Row(elem_classes="row"):
                    write = gr.Button("Write a better one", size="sm", visible=False, elem_id="write")
                    undo = gr.Button("Undo", size="sm", visible=False, elem_id="undo")
                editor = parts.editor("It is kept as an example to learn from.")
                gr.HTML(KEYS)
                keys = gr.Checkbox(value=True, label="Keyboard shortcuts", elem_id="shortcuts")

        everything = [
            newcomer.card,
            item,
            done,
            progress,
            asked,
            answers,
            *texts,
            note,
            controls,
            write,
            undo,
            editor.card,
            editor.words,
        ]
        watching: dict[tuple[str, str | None], object] = {}  # who watches what is being brought, in which page

        @contextmanager
        def watched(view: tuple[str, str | None]) -> Iterator[Callable[[], bool]]:
            """Let a page watch what is brought now, and nothing else any more. Yields whether it still does."""
            token = watching[view] = object()
            try:
                yield lambda: watching.get(view) is token
            finally:
                if watching.get(view) is token:
                    del watching[view]

        async def show(voter: str, comparison: Comparison | None, said: str, undoable: str = "") -> Update:
            """The whole page: `said` (HTML), and a comparison to judge, if there is one."""
            candidates = comparison.candidates if comparison else ()
            ever, today, answered = await service.judged(voter, datetime.now(UTC) - DAY)
            question = f"{ASK} {vote_view.question(comparison, answered + 1)}" if comparison else ""
            update: Update = {
                item: comparison.id if comparison else "",
                done: undoable,
                progress: vote_view.progress(today, ever),
                asked: vote_view.prompt(comparison) if comparison else "",
                answers: gr.update(elem_classes=[f"of-{len(candidates)}"]),
                note: theme.note(f"{said} {question}".strip()),
                controls: gr.update(visible=comparison is not None),
                write: gr.update(visible=comparison is not None),
                undo: gr.update(visible=bool(undoable)),
                editor.card: gr.update(visible=False),
                editor.words: "",
            }
            update |= dict.fromkeys(texts, "")
            return update | theme.answers(texts[: len(candidates)], [c.answer for c in candidates])

        async def next_one(
            voter: str, view: tuple[str, str | None], said: str, undoable: str = ""
        ) -> AsyncIterator[Update]:
            """What is next, as it grows if it is still being written; `said` is what became of the last one."""
            with watched(view) as watches:
                try:
                    found = await service.next_to_judge(voter)
                except HustingsError as error:  # the vote before it counted, and can be undone
                    yield await show(voter, None, "", undoable) | {note: vote_view.delayed(said, error)}
                    return
                if not watches():  # another call brings what is next
                    yield {note: gr.skip()}
                    return
                if found is None:
                    left = vote_view.nothing_left(await service.votes_until_run())
                    yield await show(voter, None, f"{said} {left}".strip(), undoable)
                    return
                if isinstance(found, Comparison):
                    yield await show(voter, found, said, undoable)
                    return
                yield await show(voter, found.comparison, said, undoable)
                finished = asyncio.ensure_future(found.wait())
                before: object = None
                while not found.done:
                    await asyncio.wait({finished}, timeout=theme.TICK)
                    if not watches():
                        return
                    shown = found.shown
                    now = [(draft.text, draft.finish_reason) for draft in shown]
                    if now != before:
                        before = now
                        yield theme.answers(texts[: len(shown)], shown)
                if watches():
                    written = theme.note(f"{said} {WRITTEN} {ASK}".strip())
                    told = theme.problem(found.error) if found.error else written
                    yield theme.answers(texts[: len(found.shown)], found.shown) | {note: told}

        async def arrive(request: gr.Request) -> AsyncIterator[Update]:
            try:
                voter = voter_of(request)
                if not (await service.consent(voter)).given:
                    yield {newcomer.card: gr.update(visible=True)}
                    return
                async for update in next_one(voter, view_of(request), ""):
                    yield update
            except HustingsError as error:
                yield {note: theme.problem(error, vote_view.AGAIN)}

        async def begin(share: bool, request: gr.Request) -> AsyncIterator[Update]:
            try:
                await service.give_consent(voter_of(request), share)
            except HustingsError as error:
                yield {note: theme.problem(error)}
                return
            yield {newcomer.card: gr.update(visible=False)}
            async for update in arrive(request):
                yield update

        async def agreed(request: gr.Request) -> AsyncIterator[Update]:
            async for update in begin(True, request):
                yield update

        async def kept_private(request: gr.Request) -> AsyncIterator[Update]:
            async for update in begin(False, request):
                yield update

        async def judge(comparison_id: str, judgement: Judgement, request: gr.Request) -> AsyncIterator[Update]:
            voter, view = voter_of(request), view_of(request)
            undoable = ""
            try:
                comparison = await service.comparison(comparison_id, voter)
                receipt = await service.vote(voter, comparison_id, judgement)
                said, undoable = vote_view.outcome(comparison, receipt), receipt.id
            except AlreadyVoted:  # in another tab, or by a second click
                said = "You have judged that one already."
                judged = (await service.comparison(comparison_id, voter)).vote
                undoable = judged.id if judged else ""
            except Expired:
                said = "That one was too old."
            except NotFound:
                said = GONE
            async for update in next_one(voter, view, said, undoable):
                yield update

        async def rank(comparison_id: str, event: gr.EventData, request: gr.Request) -> AsyncIterator[Update]:
            try:
                try:
                    comparison = await service.comparison(comparison_id, voter_of(request))
                except NotFound:
                    async for update in next_one(voter_of(request), view_of(request), GONE):
                        yield update
                    return
                judgement = Judgement(ranking=ranking_of(comparison, event._data.get("ranks")))
                async for update in judge(comparison_id, judgement, request):
                    yield update
            except HustingsError as error:
                yield {note: theme.problem(error)}

        async def dismiss(comparison_id: str, event: gr.EventData, request: gr.Request) -> AsyncIterator[Update]:
            try:
                verdict: Any = event._data.get("verdict")
                async for update in judge(comparison_id, Judgement(verdict=verdict), request):
                    yield update
            except HustingsError as error:
                yield {note: theme.problem(error)}

        telling = theme.telling(note)

        @telling
        async def take_back(vote_id: str, request: gr.Request) -> Update:
            voter = voter_of(request)
            watching.pop(view_of(request), None)
            comparison_id = await service.withdraw(voter, vote_id)
            try:
                comparison = await service.comparison(comparison_id, voter)
            except NotFound:
                return {note: theme.note(f"Undone. {GONE}"), undo: gr.update(visible=False)}
            return await show(voter, comparison, "Undone.")

        @telling
        async def keep(text: str, comparison_id: str, request: gr.Request) -> Update:
            voter = voter_of(request)
            comparison = await service.comparison(comparison_id, voter)
            await service.demonstrate(voter, comparison.messages, text, comparison_id=comparison_id)
            thanks = theme.note("Thank you: your words are kept as an example. Now rank the others.")
            return {editor.card: gr.update(visible=False), editor.words: "", note: thanks}

        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        slow: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "generation",
            "concurrency_limit": settings.batch_rows + settings.queue_limit,
        }
        page.load(arrive, None, everything, **slow)
        for chosen, answer in ((newcomer.agree, agreed), (newcomer.private, kept_private)):
            chosen.click(answer, None, everything, **slow)
        page.load(lambda on: on, likes, keys, **quick)
        keys.input(lambda on: on, keys, likes, **quick)
        keys.change(None, keys, None, js=theme.SWITCH_SHORTCUTS)
        anew: dict[str, Any] = slow | {"trigger_mode": "multiple"}  # the one before may still be bringing the next
        controls.rank(rank, item, everything, **anew)
        controls.dismiss(dismiss, item, everything, **anew)
        undo.click(take_back, done, everything, **quick)
        write.click(lambda: gr.update(visible=True), None, editor.card, **quick)
        editor.cancel.click(lambda: gr.update(visible=False), None, editor.card, **quick)
        editor.save.click(keep, [editor.words, item], [editor.card, editor.words, note], **quick)
    page.queue(max_size=4 * (settings.batch_rows + settings.queue_limit))
    return page


def ranking_of(comparison: Comparison, ranks: Any) -> tuple[tuple[str, ...], ...]:
    """Groups of candidate ids, best first, from {place: rank}. Raises InvalidInput where a rank is missing or wrong."""
    ranks = ranks if isinstance(ranks, Mapping) else {}
    groups: dict[int, list[str]] = {}
    for candidate in comparison.candidates:
        rank = ranks.get(str(candidate.position))
        if type(rank) is not int or not 1 <= rank <= MAX_CANDIDATES:
            raise InvalidInput("Give every answer a rank first: 1 is best, and equal ranks are a tie.")
        groups.setdefault(rank, []).append(candidate.id)
    return tuple(tuple(groups[rank]) for rank in sorted(groups))
