"""The chat page: a turn gets two answers side by side, the voter's choice becomes the history, and the talk goes on.

    build(service, training, settings)  →  the page, for `mount_gradio_app(..., **theme.mount_options("chat"))`

Every handler takes one step of a talk and then shows the conversation as it stands. The browser holds nothing but what
was typed and the ids of what it shows, and the voter is whoever the signed cookie names.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import gradio as gr

from serve.errors import (
    AlreadyVoted,
    Conflict,
    Expired,
    HustingsError,
    InvalidInput,
    NotFound,
    PromptTooLong,
    TookTooLong,
)
from serve.limits import SamplingRequest
from serve.live import LiveAnswers, LiveComparison
from serve.records import Comparison, Judgement, Message, Verdict
from serve.service import Service, Training
from serve.truncation import Truncation
from serve.web import chat_view, named, parts, theme
from serve.web.chat_view import Choice
from serve.web.talks import AskMe, Scene, Talks, shown
from serve.web.theme import Update
from serve.web.visitor import View, Views, view_of, voter_of

if TYPE_CHECKING:
    from serve.settings import Settings


EXAMPLES = (
    "Explain compound interest to a teenager.",
    "Write a kind note to a neighbour about loud music.",
    "What can I cook with rice, eggs and spinach?",
    "Help me plan a rainy Sunday with two children.",
)
WELCOME = (
    "## What would you like to talk about?\n"
    "Ask anything. You get two answers and choose the better one; the assistant learns from what people choose."
)

KEYS = '<span class="about-keys">One key is a vote; <kbd>Esc</kbd> leaves the text box first.</span>'
ASK = f"Both answers are there. Which is better? {KEYS}"
NOT_SHARED = "Your prompts are shown to nobody else any more, the earlier ones neither."
SHARED = "From now on your prompts may be shown to other voters, without a name."
OWN_MANNER = "Votes on answers with settings of your own still teach, but do not count when versions are compared."
LONGEST = 1024
"""The most tokens that the page lets people ask for."""
UNDONE = "Your vote is undone. You can choose again, though you know by now who wrote what."
LOADING = "The model is still loading. You can write already; it answers in a moment."
TOO_LONG = "This talk has grown longer than the model can read at once."
MESSAGE_TOO_LONG = "This message is too long for the model. Shorten it, or lower “Longest answer” under How it answers."
TOO_OLD = "These answers waited for more than a day, and can be judged no more. Ask again."
TOOK_TOO_LONG = "This answer took too long and was stopped. Ask again, or ask for a shorter one."
FORGETS = "The model reads this talk without its oldest turns; they stay in your history."
SAME = "Both answers came out the same, so there is nothing to choose."
NOT_BEGUN = "Stands before the first message of a new chat."
BEGUN = "Set when the talk began; a new chat takes another."
IN_THE_BOX = "What you wrote is in the text box."
IN_THE_EDITOR = "Your words are still here, to copy."

_BACK_TO_TYPING = "() => window.backToTyping()"
_TALKS = """
let renaming = null;
const titleOf = talk => element.querySelector(`[data-talk="${talk}"]`);
const edit = ({field, talk}) => {
  const title = titleOf(talk);
  renaming = title && {field, talk, title};
  title?.replaceWith(field);
  if (title) field.focus();
};
const rename = talk => {
  const before = titleOf(talk).textContent, field = document.createElement('input');
  Object.assign(field, {value: before, maxLength: 60, ariaLabel: 'Title'});
  const end = keep => {
    if (renaming?.field !== field) return;
    const title = renaming.title;
    renaming = null;
    field.replaceWith(title);
    if (keep && field.value.trim() && field.value !== before) trigger('retitle', {talk, title: field.value});
    title.focus();
  };
  field.addEventListener('keydown', e => {
    if (!['Enter', 'Escape'].includes(e.key) || e.isComposing) return;
    e.preventDefault();  // the key is not the title's, which gets the focus
    end(e.key === 'Enter');
  });
  field.addEventListener('blur', () => setTimeout(() => { if (document.activeElement !== field) end(true); }));
  edit({field, talk});
  field.select();
};
new MutationObserver(() => {  // a list that is drawn anew keeps what is being typed
  if (renaming && !renaming.field.isConnected) edit(renaming);
}).observe(element, {childList: true, subtree: true});
const discard = button => {
  if (button.classList.contains('sure')) return trigger('discard', {talk: button.dataset.delete});
  const name = button.ariaLabel;
  button.classList.add('sure');
  button.textContent = button.ariaLabel = button.dataset.sure;
  button.addEventListener('blur', () => {
    button.classList.remove('sure');
    button.textContent = '✕';
    button.ariaLabel = name;
  }, {once: true});
};
element.addEventListener('click', e => {
  const button = e.target.closest('button');
  if (button?.dataset.talk) trigger('pick', {talk: button.dataset.talk});
  if (button?.dataset.rename) rename(button.dataset.rename);
  if (button?.dataset.delete) discard(button);
});
"""
_BRANCHES = """
element.addEventListener('click', e => {
  const button = e.target.closest('[data-to]');
  if (button) trigger('go', {to: button.dataset.to});
});
"""


def build(service: Service, training: Training, settings: Settings) -> gr.Blocks:
    """The page. Its handlers know the voter from the request alone; the service refuses what is not theirs."""
    talks = Talks(service)

    page = gr.Blocks(title="Hustings", analytics_enabled=False, fill_width=True)
    with page:
        # What the browser holds: the ids of what it shows, and how this person likes the page.
        here = gr.Textbox(visible=False)
        asked = gr.Textbox(visible=False)
        voted = gr.Textbox(visible=False)
        unfinished = gr.Textbox(visible=False)  # the talk, if something was being written there when it was shown
        forgets = gr.Textbox(visible=False)  # the talk whose oldest turns may be left out
        offered = gr.Textbox(visible=False)  # what was refused as too long, for the offer to take once more
        turns = gr.Textbox(visible=False)  # the messages shown, in order
        bettered = gr.Textbox(visible=False)  # the last of them when the editor was opened
        manner = (settings.temperature, settings.top_p, settings.max_tokens)
        likes = gr.BrowserState([settings.ask, True, *manner], storage_key="hustings", secret="none")  # noqa: S106
        wish = gr.BrowserState("", storage_key="hustings-system", secret="none")  # noqa: S106

        with gr.Sidebar(elem_id="side", width=280):
            new_chat = gr.Button("New chat", elem_id="new-chat")
            search = gr.Textbox(
                placeholder="Search your conversations",
                label="Search your conversations",
                show_label=False,
                container=False,
                max_length=200,
                elem_id="search",
            )
            talk_list = gr.HTML(js_on_load=_TALKS, elem_id="talk-list")
            how = gr.Radio(
                [("Always", "always"), ("Sometimes", "sometimes"), ("Never", "never")],
                value=settings.ask,
                label="Ask me to choose",
                elem_id="how",
            )
            share = gr.Checkbox(value=False, label="My prompts may be shown to other voters", elem_id="share")
            keys = gr.Checkbox(value=True, label="Keyboard shortcuts", elem_id="shortcuts")
            with gr.Accordion("How it answers", open=False, elem_id="manner"):
                system = gr.Textbox(
                    label="What it should keep in mind",
                    info=NOT_BEGUN,
                    lines=2,
                    max_lines=8,
                    max_length=4000,
                    elem_id="system",
                )
                warmth = gr.Slider(0, 2, manner[0], step=0.05, label="Variety", elem_id="temperature")
                top_p = gr.Slider(
                    min(0.05, manner[1]), 1, manner[1], step=0.01, label="Likeliest words only", elem_id="top-p"
                )
                longest = gr.Slider(
                    1,
                    max(LONGEST, manner[2]),
                    manner[2],
                    step=1,
                    label="Longest answer",
                    info="In pieces of words: 100 are some 75 words.",
                    elem_id="longest",
                )
                gr.HTML(f'<p class="side-foot">{OWN_MANNER}</p>')
            gr.HTML('<p class="side-foot"><a href="/vote">Rank more answers</a></p>')
            gr.HTML('<p class="side-foot"><a href="/you">Yours: votes, what they did, download, delete</a></p>')
            gr.HTML('<p class="side-foot">Do you run this server? <a href="/operator">Open the operator page</a></p>')

        with gr.Column(elem_id="chat"):
            gr.HTML(theme.masthead("Two answers. You choose. It learns."))
            newcomer = parts.consent()
            history = gr.Chatbot(
                elem_id="history",
                show_label=False,
                container=False,
                height="auto",
                autoscroll=False,
                buttons=["copy"],
                editable="user",
                group_consecutive_messages=False,  # a row a turn, as the script counts them
                latex_delimiters=theme.LATEX,
                sanitize_html=True,
                allow_tags=False,
                placeholder=WELCOME,
                examples=[{"text": text} for text in EXAMPLES],
            )
            branches = gr.HTML(js_on_load=_BRANCHES, elem_id="branches")
            with gr.Row(elem_id="arena", visible=False) as arena:
                panes = []
                for name in "AB":
                    with gr.Column(elem_classes="pane"):
                        gr.HTML(f'<h2 class="badge" aria-label="Answer {name}">{name}</h2>')
                        panes.append(parts.answer(f"answer-{name.lower()}"))
            with gr.Row(elem_id="after", visible=False) as after:
                edit = gr.Button("Edit answer", size="sm", elem_id="edit")
            with gr.Row(elem_id="remedy", visible=False) as remedy:
                retry = gr.Button("Try again", size="sm", elem_id="retry")
                write = gr.Button("Write your own answer", size="sm", elem_id="write")
            editor = parts.editor("Your words go on with the talk, and are kept as an example to learn from.")
            with gr.Column(elem_id="dock"):
                note = gr.HTML(elem_id="note")
                with gr.Row(elem_id="afterthought", visible=False) as afterthought:
                    undo = gr.Button("Undo", size="sm", elem_id="undo")
                    afterwords = parts.afterthought()
                with gr.Row(elem_id="offer", visible=False) as offer:
                    forget = gr.Button("Go on without the oldest turns", size="sm", elem_id="forget")
                with gr.Row(elem_id="votes", visible=False) as votes:
                    a_better = gr.Button("A is better", elem_id="vote-a", elem_classes="pick")
                    tie = gr.Button("Tie", elem_id="vote-tie", elem_classes="rest")
                    both_bad = gr.Button("Both bad", elem_id="vote-bad", elem_classes="rest")
                    skip = gr.Button("Skip", elem_id="vote-skip", elem_classes="rest")
                    b_better = gr.Button("B is better", elem_id="vote-b", elem_classes="pick")
                box = gr.Textbox(
                    placeholder="Write a message",
                    show_label=False,
                    label="Your message",
                    container=False,
                    lines=1,
                    max_lines=10,
                    submit_btn=True,
                    autofocus=True,
                    elem_id="box",
                )
        waking = gr.Timer(1.5, active=False)

        def show(scene: Scene, also: Update | None = None) -> Update:
            """The whole page, as the conversation stands."""
            writing = scene.writing is not None
            growing = writing and scene.asked is None
            vote = scene.judged.vote if scene.judged else None
            ranks = vote is not None and vote.judgement.ranking is not None
            return {
                here: scene.conversation_id or "",
                turns: " ".join(turn.message_id for turn in scene.said),
                asked: scene.asked.id if scene.asked else "",
                voted: vote.id if vote else "",
                unfinished: scene.conversation_id if writing else "",
                system: gr.update(value=scene.system, interactive=False, info=BEGUN) if scene.turns else gr.skip(),
                afterthought: gr.update(visible=vote is not None),
                afterwords.strength: gr.update(value=vote and vote.judgement.strength, visible=ranks),
                afterwords.reasons: [why for why in parts.REASONS if vote and why in vote.judgement.reasons],
                history: gr.update(value=_blocks(shown(scene)), elem_classes=["writing"] if growing else []),
                branches: chat_view.branches(scene),
                arena: gr.update(visible=scene.asked is not None),
                **theme.answers(panes, [c.answer for c in scene.asked.candidates] if scene.asked else []),
                votes: gr.update(visible=scene.asked is not None),
                after: gr.update(visible=scene.settled),
                remedy: gr.update(visible=scene.stuck),
                editor.card: gr.update(visible=False),
                offer: gr.update(visible=False),
                box: gr.update(stop_btn="Stop" if writing else False, submit_btn=not writing),
            } | (also or {})

        everything = [
            here,
            turns,
            asked,
            voted,
            unfinished,
            system,
            afterthought,
            afterwords.strength,
            afterwords.reasons,
            history,
            branches,
            arena,
            *panes,
            votes,
            after,
            remedy,
            editor.card,
            editor.words,
            bettered,
            offer,
            offered,
            forgets,
            box,
            note,
            search,
            talk_list,
            newcomer.card,
            share,
        ]

        telling = theme.telling(note)
        views = Views()
        nothing: Update = {note: gr.skip()}  # Gradio empties the outputs of a generator that never yields

        async def listed(voter: str, current: str | None, search: str = "") -> str:
            return chat_view.talk_list(await service.conversations(voter, search), current, search)

        async def welcome(wished: Any) -> Update:
            """What a new chat begins with: how many votes it takes until it learns, and what was to be kept in mind."""
            learns = parts.until_it_learns(await service.next_run(training))
            return {
                history: gr.update(value=[], elem_classes=[], placeholder=f"{WELCOME}\n\n{learns}"),
                system: gr.update(value=wished if isinstance(wished, str) else "", interactive=True, info=NOT_BEGUN),
            }

        def sampling_of(warmth: float, top_p: float, longest: float) -> SamplingRequest:
            """What differs from the server's own."""
            return SamplingRequest(
                temperature=None if warmth == manner[0] else float(warmth),
                top_p=None if top_p == manner[1] else float(top_p),
                max_tokens=None if longest == manner[2] else int(longest),
            )

        async def ended(voter: str, place: str | None, error: HustingsError | None = None) -> Update:
            """The conversation once nothing is being written, with what there is to say of it."""
            scene = await talks.scene(voter, place)
            if scene.twins:
                return show(await talks.settle_twins(voter, scene), {note: theme.note(SAME)})
            if error is not None:
                return show(scene, {note: _problem(error)})
            return show(scene, {note: theme.note(ASK)} if scene.asked else None)

        async def follow(live: LiveAnswers, view: View) -> AsyncIterator[Update]:
            """What is being written, as it grows; then the conversation as it stands. Ends when the view turns away."""
            voter, place = view[0], live.conversation_id
            told = 0  # the place in line that the note names
            with views.watch(view) as watches:
                scene = await talks.scene(voter, place)
                async for drafts in live.growing(theme.TICK, watches):
                    if live.done:
                        continue
                    in_line = live.place
                    update: Update = {} if in_line == told else {note: theme.note(chat_view.waiting(in_line))}
                    told = in_line
                    if isinstance(live, LiveComparison) and not live.judged:
                        yield update | theme.answers(panes, drafts)
                        continue
                    if scene.asked:
                        scene = await talks.scene(voter, place)
                    if scene.writing is live:
                        update[history] = _blocks(shown(scene))
                    if update:
                        yield update
                if not watches():
                    return
                update = ({note: ""} if told else {}) | await ended(voter, place, live.error)
                if watches():
                    yield update

        async def refused(place: str, error: HustingsError, request: gr.Request, *once_more: str) -> Update:
            """The conversation as it stands after a step that was not taken: what waited for a vote still does.

            Where the step can be taken without the oldest turns, `once_more` says which one: it is offered.
            """
            problem: Update = {note: _problem(error) + f'<i hidden data-refused="{secrets.token_hex(4)}"></i>'}
            if once_more and isinstance(error, PromptTooLong) and error.oldest_can_go:
                problem |= {offer: gr.update(visible=True), offered: json.dumps(once_more)}
            try:
                return show(await talks.scene(voter_of(request), place or None), problem)
            except HustingsError:
                return problem

        async def caught_up(update: Update, request: gr.Request) -> AsyncIterator[Update]:
            """A page that shows the conversation as it stands, and what another tab has written there, as it grows."""
            yield update
            if place := update.get(unfinished):
                async for later in resume(place, request):
                    yield later

        async def send(
            text: str,
            place: str,
            how: AskMe,
            forgets: str,
            system: str | None,
            warmth: float,
            top_p: float,
            longest: float,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            try:
                voter = voter_of(request)
                truncation, words = _truncation(place, forgets)
                sampling = sampling_of(warmth, top_p, longest)
                live = await talks.say(
                    voter, text, place or None, how, system=system, sampling=sampling, truncation=truncation
                )
                if live is None:
                    yield nothing
                    return
                scene = await talks.scene(voter, live.conversation_id)
                first = {note: words, search: "", talk_list: await listed(voter, live.conversation_id)}
                update = show(scene, also=first)
                update[box] = gr.update(value="", stop_btn="Stop", submit_btn=False)
                yield update
                async for update in follow(live, view_of(request)):
                    yield update
            except HustingsError as error:
                yield await refused(place, error, request, "send")

        async def again(
            place: str, turns: str, forgets: str, warmth: float, top_p: float, longest: float, request: gr.Request
        ) -> AsyncIterator[Update]:
            try:
                voter = voter_of(request)
                truncation, words = _truncation(place, forgets)
                sampling = sampling_of(warmth, top_p, longest)
                live = await talks.retry(voter, place, _last(turns), sampling=sampling, truncation=truncation)
                yield show(await talks.scene(voter, place), {note: words})
                async for update in follow(live, view_of(request)):
                    yield update
            except HustingsError as error:
                async for update in caught_up(await refused(place, error, request, "again"), request):
                    yield update

        async def say_instead(
            turn: str,
            text: str,
            typed: str,
            place: str,
            how: AskMe,
            forgets: str,
            warmth: float,
            top_p: float,
            longest: float,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            """A turn that was said otherwise: another branch, answered from there."""
            try:
                voter = voter_of(request)
                truncation, words = _truncation(place, forgets)
                sampling = sampling_of(warmth, top_p, longest)
                live = await talks.ask_instead(voter, place, turn, text, how, sampling=sampling, truncation=truncation)
                yield show(await talks.scene(voter, place), {note: words})
                async for update in follow(live, view_of(request)):
                    yield update
            except HustingsError as error:
                problem = await refused(place, error, request, "instead", turn, text)
                if not typed.strip() and offered not in problem and type(error) is not InvalidInput:
                    problem[note] += theme.note(IN_THE_BOX)  # the turn itself is shown as it was
                    problem[box] = problem.get(box, gr.update()) | {"value": text}
                async for update in caught_up(problem, request):
                    yield update

        async def instead(
            turns: str,
            typed: str,
            place: str,
            how: AskMe,
            forgets: str,
            warmth: float,
            top_p: float,
            longest: float,
            event: gr.EditData,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            """An edited turn, which the event names by its number among those shown."""
            number = event.index if isinstance(event.index, int) else event.index[0]
            turn, text = dict(enumerate(turns.split())).get(number, ""), _words(event.value)
            async for update in say_instead(turn, text, typed, place, how, forgets, warmth, top_p, longest, request):
                yield update

        async def go_on(
            step: str,
            turns: str,
            typed: str,
            place: str,
            how: AskMe,
            system: str | None,
            warmth: float,
            top_p: float,
            longest: float,
            request: gr.Request,
        ) -> AsyncIterator[Update]:
            """What was refused as too long, once more: this talk's oldest turns may be left out from here on."""
            match json.loads(step or "[]"):
                case ["instead", str(turn), str(text)]:
                    taken = say_instead(turn, text, typed, place, how, place, warmth, top_p, longest, request)
                case ["again"]:
                    taken = again(place, turns, place, warmth, top_p, longest, request)
                case _:
                    taken = send(typed, place, how, place, system, warmth, top_p, longest, request)
            async for update in taken:
                yield {forgets: place} | update

        async def vote(choice: Choice, place: str, comparison_id: str, request: gr.Request) -> Update:
            try:
                voter = voter_of(request)
                comparison = await service.comparison(comparison_id, voter)
                receipt = await service.vote(voter, comparison_id, _judgement(choice, comparison))
                serving = await asyncio.to_thread(service.store.serving)
                said = theme.note(chat_view.outcome(choice, comparison, receipt, serving))
                return show(await talks.scene(voter, place), {note: said})
            except (AlreadyVoted, Expired) as error:  # in another tab, by a second click, or a day too late
                return show(await talks.scene(voter, place), {note: _problem(error)})
            except HustingsError as error:
                return {note: theme.problem(error)}

        async def take_back(place: str, vote_id: str, request: gr.Request) -> Update:
            try:
                voter = voter_of(request)
                views.leave(view_of(request))
                await talks.undo(voter, place, vote_id)
                return show(await talks.scene(voter, place), {note: theme.note(UNDONE)})
            except HustingsError as error:
                return await refused(place, error, request)

        @telling
        async def add(vote_id: str, how_much: int | None, why: list[str], request: gr.Request) -> Update:
            await service.note_vote(voter_of(request), vote_id, strength=how_much, reasons=why, offered=parts.REASONS)
            return nothing

        @telling
        async def arrive(wished: Any, request: gr.Request) -> Update:
            """A page that opens: the conversation that its address names, or the latest, with its open comparison."""
            voter = voter_of(request)
            wanted = request.query_params.get("talk")
            if wanted == "new":
                return await open_talk(voter, None, wished)
            with suppress(NotFound):
                if wanted:
                    return await open_talk(voter, wanted)
            return await open_talk(voter, await talks.latest(voter), wished)

        async def open_talk(voter: str, place: str | None, wished: Any = "") -> Update:
            scene, agreed_to = await talks.scene(voter, place), await service.consent(voter)
            update: Update = {note: ""}
            update |= show(scene) if scene.writing else await ended(voter, place)
            if not place:
                update |= await welcome(wished)
            if not service.ready:
                update[note] = theme.note(LOADING)
            update[talk_list] = await listed(voter, place)
            update[newcomer.card] = gr.update(visible=not agreed_to.given)
            return update | {share: agreed_to.share}

        async def resume(place: str, request: gr.Request) -> AsyncIterator[Update]:
            """Go on showing what is being written in a conversation that was just opened, or caught up with."""
            yield nothing
            if not place:
                return
            try:
                voter = voter_of(request)
                scene = await talks.scene(voter, place)
                if scene.writing is None:
                    yield await ended(voter, place)  # it may have ended since the page opened
                else:
                    async for update in follow(scene.writing, view_of(request)):
                        yield update
            except HustingsError as error:
                yield {note: theme.problem(error)}

        @telling
        async def pick(words: str, event: gr.EventData, request: gr.Request) -> Update:
            views.leave(view_of(request))
            voter, place = voter_of(request), str(event._data.get("talk", ""))
            return await open_talk(voter, place) | {talk_list: await listed(voter, place, words)}

        @telling
        async def find(words: str, place: str, request: gr.Request) -> Update:
            return {talk_list: await listed(voter_of(request), place, words)}

        @telling
        async def retitle(words: str, place: str, event: gr.EventData, request: gr.Request) -> Update:
            voter = voter_of(request)
            await service.rename(voter, str(event._data.get("talk", "")), str(event._data.get("title", "")))
            return {note: "", talk_list: await listed(voter, place, words)}

        @telling
        async def discard(words: str, place: str, wished: Any, event: gr.EventData, request: gr.Request) -> Update:
            voter, gone = voter_of(request), str(event._data.get("talk", ""))
            if gone == place:
                views.leave(view_of(request))
            await service.delete(voter, gone)
            said = {note: theme.note("Deleted."), talk_list: await listed(voter, place, words)}
            return show(Scene(), said | await welcome(wished)) if gone == place else said

        async def go(place: str, event: gr.EventData, request: gr.Request) -> Update:
            """Another branch of this talk."""
            try:
                voter = voter_of(request)
                views.leave(view_of(request))
                await talks.stop(voter, place)
                await service.switch_branch(voter, str(event._data.get("to", "")))
                return show(await talks.scene(voter, place), {note: ""})
            except HustingsError as error:
                return await refused(place, error, request)

        @telling
        async def fresh(wished: Any, request: gr.Request) -> Update:
            views.leave(view_of(request))
            said = {note: "", search: "", talk_list: await listed(voter_of(request), None)}
            return show(Scene(), said | await welcome(wished))

        @telling
        async def stop(place: str, request: gr.Request) -> Update:
            if place:
                await talks.stop(voter_of(request), place)
            return nothing

        async def open_editor(place: str, turns: str, request: gr.Request) -> Update:
            try:
                scene = await talks.at_rest(voter_of(request), place, _last(turns))
            except HustingsError as error:
                return await refused(place, error, request)
            return {
                editor.card: gr.update(visible=True),
                editor.words: scene.messages[-1].content if scene.settled else "",
                bettered: _last(turns),
                after: gr.update(visible=False),
                remedy: gr.update(visible=False),
                note: "",
            }

        @telling
        async def set_share(yes: bool, request: gr.Request) -> Update:
            await service.give_consent(voter_of(request), bool(yes))
            return {note: theme.note(SHARED if yes else NOT_SHARED)}

        @telling
        async def consented(yes: bool, request: gr.Request) -> Update:
            await service.give_consent(voter_of(request), yes)
            return {newcomer.card: gr.update(visible=False), share: yes, note: ""}

        async def agreed(request: gr.Request) -> Update:
            return await consented(True, request)

        async def kept_private(request: gr.Request) -> Update:
            return await consented(False, request)

        @telling
        async def close_editor(place: str, request: gr.Request) -> Update:
            return show(await talks.scene(voter_of(request), place))

        async def keep(text: str, place: str, last: str, request: gr.Request) -> Update:
            try:
                voter = voter_of(request)
                await talks.revise(voter, place, last, text)
                thanks = "Thank you: the talk goes on with your words, and they are kept as an example to learn from."
                return show(await talks.scene(voter, place), {note: theme.note(thanks)})
            except Conflict as error:
                update = await refused(place, error, request)
                update[note] += theme.note(IN_THE_EDITOR)
                away = dict.fromkeys((after, remedy), gr.update(visible=False))
                return update | away | {editor.card: gr.update(visible=True)}
            except HustingsError as error:
                return {note: theme.problem(error)}

        def keep_wish(words: str, place: str) -> Any:
            """What a new chat is to keep in mind outlives the page; what a talk keeps in mind is its own."""
            return gr.skip() if place else words

        def awake() -> Update:
            return {waking: gr.Timer(active=False), note: ""} if service.ready else {waking: gr.skip()}

        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        slow: dict[str, Any] = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_id": "generation",
            "concurrency_limit": settings.batch_rows + settings.queue_limit,
        }
        # Through the queue, so that they come after what was already on its way to the page.
        turning: dict[str, Any] = slow | {"concurrency_id": "turning"}
        page.load(arrive, wish, everything, **quick).then(resume, unfinished, everything, **slow)
        page.load(lambda: gr.Timer(active=not service.ready), None, waking, **quick)
        waking.tick(awake, None, [waking, note], **quick)
        own = [warmth, top_p, longest]
        liked = [how, keys, *own]
        bounds = [(slider.minimum, slider.maximum) for slider in own]
        page.load(_recaller(likes.default_value, bounds), likes, liked, **quick)
        for like in liked:
            assert isinstance(like, gr.Radio | gr.Checkbox | gr.Slider)
            like.input(_keeper(likes.default_value), liked, likes, **quick)
        keys.change(None, keys, None, js=theme.SWITCH_SHORTCUTS)
        system.change(keep_wish, [system, here], wish, **quick)

        share.input(set_share, share, note, **quick)
        for chosen, answer in ((newcomer.agree, agreed), (newcomer.private, kept_private)):
            chosen.click(answer, None, [newcomer.card, share, note], **quick).then(None, js=_BACK_TO_TYPING)
        forget.click(go_on, [offered, turns, box, here, how, system, *own], everything, **slow)
        say = [box, here, how, forgets, system, *own]
        box.submit(send, say, everything, trigger_mode="multiple", **slow)
        history.example_select(_example, None, box, **quick).then(send, say, everything, **slow)
        box.stop(stop, here, note, **quick)
        choices: dict[Choice, gr.Button] = {
            "a": a_better,
            "b": b_better,
            "tie": tie,
            "both_bad": both_bad,
            "skip": skip,
        }
        for choice, button in choices.items():
            button.click(_chosen(vote, choice), [here, asked], everything, **quick).then(None, js=_BACK_TO_TYPING)
        for afterword in (afterwords.strength, afterwords.reasons):
            afterword.input(
                add, [voted, afterwords.strength, afterwords.reasons], note, trigger_mode="always_last", **quick
            )
        for anew in (retry.click, history.retry):
            anew(again, [here, turns, forgets, *own], everything, **slow)
        history.edit(instead, [turns, box, here, how, forgets, *own], everything, **slow)
        for step in (
            undo.click(take_back, [here, voted], everything, **turning),
            branches.go(go, here, everything, **turning),
            gr.on([edit.click, write.click], open_editor, [here, turns], everything, **quick),
            editor.save.click(keep, [editor.words, here, bettered], everything, **quick),
        ):
            step.then(resume, unfinished, everything, **slow)  # where another tab was at it
        editor.cancel.click(close_editor, here, everything, **quick)
        search.change(find, [search, here], [note, talk_list], trigger_mode="always_last", **quick)
        talk_list.retitle(retitle, [search, here], [note, talk_list], **quick)
        talk_list.discard(discard, [search, here, wish], everything, **turning)
        talk_list.pick(pick, search, everything, **turning).then(resume, unfinished, everything, **slow)
        new_chat.click(fresh, wish, everything, **turning).then(None, js=_BACK_TO_TYPING)

        named.register(service)

    page.queue(max_size=4 * (settings.batch_rows + settings.queue_limit))
    return page


def _chosen(vote: Any, choice: Choice) -> Any:
    """The handler of one button. (`functools.partial` hides the request's annotation from Gradio.)"""

    async def handler(place: str, comparison_id: str, request: gr.Request) -> Update:
        result: Update = await vote(choice, place, comparison_id, request)
        return result

    return handler


def _truncation(place: str, forgets: str) -> tuple[Truncation, str]:
    """Whether a talk's oldest turns may be left out, and what the page says of it."""
    return ("auto", theme.note(FORGETS)) if place and place == forgets else ("disabled", "")


def _last(turns: str) -> str:
    """The last of the messages shown."""
    return turns.rpartition(" ")[2]


def _problem(error: HustingsError) -> str:
    """An error in the words of this page; the API's name what a program can change."""
    if isinstance(error, PromptTooLong):
        return theme.note(TOO_LONG if error.oldest_can_go else MESSAGE_TOO_LONG, problem=True)
    if isinstance(error, TookTooLong):
        return theme.note(TOOK_TOO_LONG, problem=True)
    if isinstance(error, Expired):
        return theme.note(TOO_OLD, problem=True)
    return theme.problem(error)


def _blocks(messages: Sequence[Message]) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in messages if m.role != "system"]


def _judgement(choice: Choice, comparison: Comparison) -> Judgement:
    if choice in ("a", "b"):
        a, b = (candidate.id for candidate in comparison.candidates)
        return Judgement(ranking=((a,), (b,)) if choice == "a" else ((b,), (a,)))
    verdict: dict[str, Verdict] = {"tie": "tie", "both_bad": "both_bad", "skip": "skip"}
    return Judgement(verdict=verdict[choice])


def _keeper(default: list[Any]) -> Callable[..., list[Any]]:
    """What this browser is to remember: nothing of what is as the server has it, which may change."""

    def keep(*chosen: Any) -> list[Any]:
        return [None if mine == own else mine for mine, own in zip(chosen, default, strict=True)]

    return keep


def _recaller(default: list[Any], bounds: Sequence[tuple[float, float]]) -> Callable[[Any], list[Any]]:
    """What this browser remembered, within the bounds of today; the default for what it cannot have written."""

    def recall(likes: Any) -> list[Any]:
        if not isinstance(likes, list) or len(likes) != len(default):
            likes = default
        how, keys, *numbers = likes
        return [
            how if how in ("always", "sometimes", "never") else default[0],
            keys is not False,
            *(
                min(max(mine, low), high) if type(mine) in (int, float) else own
                for mine, own, (low, high) in zip(numbers, default[2:], bounds, strict=True)
            ),
        ]

    return recall


def _words(value: Any) -> str:
    """The text of an edited turn, which Gradio gives as a text or in parts."""
    parts = value if isinstance(value, list) else [value]
    return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in parts)


def _example(event: gr.SelectData) -> str:
    return str(event.value["text"])
