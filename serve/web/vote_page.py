"""The vote page: a queue of answers to rank, by keyboard alone if you like.

    build(service, training, settings)  →  the page, for `mount_gradio_app(..., **theme.mount_options("vote"))`

Shown are pairs that others shared; where none wait, several answers to a prompt that the project brings, as they are
written. The page's script keeps the ranks and sends them when they are whole; what they mean is checked here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import gradio as gr

from serve.errors import AlreadyVoted, Expired, HustingsError, InvalidInput, NotFound
from serve.limits import MAX_CANDIDATES
from serve.records import Comparison, Judgement
from serve.service import Service, Training
from serve.settings import Settings
from serve.web import parts, theme, vote_view
from serve.web.theme import Update
from serve.web.visitor import View, Views, view_of, voter_of

DAY = timedelta(days=1)
JUST_NOW = timedelta(minutes=10)
"""How long a page that is loaded anew offers to undo a vote."""
ASK = "Which is best? Equal ranks are a tie."
GONE = "That one is shared no more."
WRITTEN = "All answers are there."
KEPT = 'Thank you: your words are kept as an example, under <a href="/you">Yours</a>, too. Now rank the others.'
KEYS = (
    '<p class="keys"><kbd>Tab</kbd> or <kbd>J</kbd> <kbd>K</kbd> goes to an answer, <kbd>1</kbd>–<kbd>6</kbd> ranks '
    "it, and the last one's rank follows; <kbd>Enter</kbd> hands the ranking in; <kbd>X</kbd> none is good, "
    "<kbd>S</kbd> skip, <kbd>U</kbd> undo, <kbd>E</kbd> write a better one.</p>"
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


def build(service: Service, training: Training, settings: Settings) -> gr.Blocks:
    """The page. Whose votes these are the signed cookie says."""
    page = gr.Blocks(title="Vote · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        item = gr.Textbox(visible=False)
        done = gr.Textbox(visible=False)  # the vote that can be undone
        start = gr.Textbox(visible=False)  # where the answer stands that a better one starts from
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
            # From here on all is always there, and style hides it by what `asked` and `progress` say.
            with gr.Row(elem_id="answers"):
                for place in range(MAX_CANDIDATES):
                    with gr.Column(elem_classes="pane"):
                        gr.HTML(vote_view.ranker(place))
                        texts.append(parts.answer(f"answer-{place}"))
            with gr.Column(elem_id="dock"):
                note = gr.HTML(elem_id="note")
                with gr.Row(elem_id="afterthought"):
                    afterwords = parts.afterthought()
                controls = gr.HTML(_CONTROLS, js_on_load=_HAND_IN, elem_id="controls")
                with gr.Row(elem_classes="row"):
                    write = gr.Button("Write a better one", size="sm", elem_id="write")
                    undo = gr.Button("Undo", size="sm", elem_id="undo")
                editor = parts.editor("It is kept as an example to learn from.")
                gr.HTML(KEYS)
                keys = gr.Checkbox(value=True, label="Keyboard shortcuts", elem_id="shortcuts")

        everything = [
            newcomer.card,
            item,
            done,
            progress,
            afterwords.strength,
            afterwords.reasons,
            asked,
            *texts,
            note,
            editor.card,
            editor.words,
        ]
        views = Views()
        judging: set[tuple[View, str]] = set()  # which comparison is being judged in which page

        async def so_far(voter: str, ever: int, lately: int, last: Comparison | None) -> Update:
            """How far this voter has come; the vote on `last` can be undone and added to."""
            left, due = await service.left_to_judge(voter), await service.next_run(training)
            vote = last.vote if last else None
            return {
                done: vote.id if vote else "",
                progress: vote_view.progress(lately, ever, left, due, last),
                afterwords.strength: vote.judgement.strength if vote else None,
                afterwords.reasons: [why for why in parts.REASONS if vote and why in vote.judgement.reasons],
            }

        async def show(voter: str, comparison: Comparison | None, said: str, last: Comparison | None = None) -> Update:
            """The whole page: `said` (HTML), a comparison to judge, if there is one, and the `last` one judged."""
            candidates = comparison.candidates if comparison else ()
            ever, lately, answered = await service.judged(voter, datetime.now(UTC) - DAY)
            question = f"{ASK} {vote_view.question(comparison, answered + 1)}" if comparison else ""
            update: Update = await so_far(voter, ever, lately, last) | {
                item: comparison.id if comparison else "",
                asked: vote_view.prompt(comparison) if comparison else "",
                note: theme.note(f"{said} {question}".strip()),
                editor.card: gr.update(visible=False),
                editor.words: "",
            }
            update |= dict.fromkeys(texts, "")
            return update | theme.answers(texts[: len(candidates)], [c.answer for c in candidates])

        async def next_one(voter: str, view: View, said: str) -> AsyncIterator[Update]:
            """What is next, as it grows if it is still being written; `said` is what became of the last one."""
            last = await service.judged_in_queue(voter, datetime.now(UTC) - JUST_NOW)
            with views.watch(view) as watches:
                try:
                    found = await service.next_to_judge(voter)
                except HustingsError as error:  # the vote before it counted, and can be undone
                    yield await show(voter, None, "", last) | {note: vote_view.delayed(said, error)}
                    return
                if not watches():  # another call brings what is next
                    yield {note: gr.skip()}
                    return
                if found is None:
                    yield await show(voter, None, f"{said} {vote_view.NOTHING_LEFT}".strip(), last)
                    return
                comparison = found if isinstance(found, Comparison) else found.comparison
                update = await show(voter, comparison, said, last)
                if not watches():  # undone meanwhile
                    yield {note: gr.skip()}
                    return
                yield update
                if isinstance(found, Comparison):
                    return
                async for shown in found.growing(theme.TICK, watches):
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

        async def judge(
            comparison_id: str, meant: Callable[[Comparison], Judgement], request: gr.Request
        ) -> AsyncIterator[Update]:
            try:
                view = view_of(request)
            except HustingsError as error:
                yield {note: theme.problem(error)}
                return
            step = view, comparison_id
            if step in judging:  # a second click
                yield {note: gr.skip()}
                return
            judging.add(step)
            voter, _ = view
            try:
                try:
                    comparison = await service.comparison(comparison_id, voter)
                    judgement = meant(comparison)
                    receipt = await service.vote(voter, comparison_id, judgement)
                    said = vote_view.outcome(comparison, judgement, receipt)
                except AlreadyVoted:  # in another tab
                    said = "You have judged that one already."
                except Expired:
                    said = "That one was too old."
                except NotFound:
                    said = GONE
                async for update in next_one(voter, view, said):
                    yield update
            except HustingsError as error:
                yield {note: theme.problem(error)}
            finally:
                judging.discard(step)

        async def rank(comparison_id: str, event: gr.EventData, request: gr.Request) -> AsyncIterator[Update]:
            ranks = event._data.get("ranks")
            async for update in judge(comparison_id, lambda it: Judgement(ranking=ranking_of(it, ranks)), request):
                yield update

        async def dismiss(comparison_id: str, event: gr.EventData, request: gr.Request) -> AsyncIterator[Update]:
            verdict: Any = event._data.get("verdict")
            async for update in judge(comparison_id, lambda _: Judgement(verdict=verdict), request):
                yield update

        telling = theme.telling(note)

        @telling
        async def take_back(vote_id: str, request: gr.Request) -> Update:
            voter = voter_of(request)
            views.leave(view_of(request))
            comparison_id = await service.withdraw(voter, vote_id)
            judging.discard((view_of(request), comparison_id))
            try:
                comparison = await service.comparison(comparison_id, voter)
            except NotFound:
                ever, lately, _ = await service.judged(voter, datetime.now(UTC) - DAY)
                return await so_far(voter, ever, lately, None) | {note: theme.note(f"Undone. {GONE}")}
            return await show(voter, comparison, "Undone.")

        @telling
        async def add(vote_id: str, how_much: int | None, why: list[str], request: gr.Request) -> Update:
            await service.note_vote(voter_of(request), vote_id, strength=how_much, reasons=why, offered=parts.REASONS)
            return {note: gr.skip()}

        @telling
        async def open_editor(comparison_id: str, place: str, request: gr.Request) -> Update:
            comparison = await service.comparison(comparison_id, voter_of(request))
            begun = "".join(c.answer.text for c in comparison.candidates if str(c.position) == place)
            return {editor.card: gr.update(visible=True), editor.words: begun}

        @telling
        async def keep(text: str, comparison_id: str, request: gr.Request) -> Update:
            voter = voter_of(request)
            comparison = await service.comparison(comparison_id, voter)
            if text in (candidate.answer.text for candidate in comparison.candidates):
                raise InvalidInput("That is the answer as it was. Change it, or cancel.")
            await service.demonstrate(voter, comparison.messages, text, comparison_id=comparison_id)
            return {editor.card: gr.update(visible=False), editor.words: "", note: theme.note(KEPT)}

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
        for afterword in (afterwords.strength, afterwords.reasons):
            afterword.input(
                add, [done, afterwords.strength, afterwords.reasons], note, trigger_mode="always_last", **quick
            )
        edited = [editor.card, editor.words, note]
        write.click(open_editor, [item, start], edited, js="item => [item, window.startFrom()]", **quick)
        editor.cancel.click(lambda: gr.update(visible=False), None, editor.card, **quick)
        editor.save.click(keep, [editor.words, item], edited, **quick)
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
