"""The operator page: what serves, what has been learned, and the switches.

    build(service, training, settings)  →  the page, for `mount_gradio_app(..., **theme.mount_options("operator"))`

Each of its events is an address that anybody can call, so each handler asks again whether an operator is asking. What
it shows is drawn in operator_view.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable
from typing import Any

import gradio as gr

from serve import schedule
from serve.errors import HustingsError, InvalidInput
from serve.records import STAGES, Message, Stage, version_name
from serve.service import FIXED, Service, Training
from serve.settings import Settings, nested
from serve.web import board_view, data_tab, data_view, parts, theme
from serve.web import operator_view as view
from serve.web.theme import Update
from serve.web.visitor import operators_only

REFRESH = 2.0
"""Seconds between two looks at the record."""
WHO = "operator page"
LOG_LINES = 40

_SWITCHES = """
const writing = new Set();
const place = note => {
  const button = element.querySelector(`[data-note="${note.version}"]`);
  writing[button ? 'add' : 'delete'](note);
  if (!button) return;
  note.button = button;
  button.replaceWith(note.form);
  if (document.activeElement === document.body) note.form.querySelector('input').focus();
};
const write = (version, before) => {
  const form = document.createElement('form'), words = document.createElement('input'), note = {form, version};
  Object.assign(words, {value: before, maxLength: 2000, ariaLabel: 'The note'});
  form.append(words);
  const leave = () => {
    writing.delete(note);
    form.replaceWith(note.button);
    note.button.focus();
  };
  form.addEventListener('submit', e => {
    e.preventDefault();
    if (words.value === before) return leave();
    writing.delete(note);  // it is drawn with the words in it
    trigger('note', {version: Number(version), note: words.value});
  });
  words.addEventListener('keydown', e => { if (e.key === 'Escape') leave(); });
  place(note);
};
new MutationObserver(() => {  // a list that is drawn anew keeps what is being typed
  for (const note of [...writing]) if (!note.form.isConnected) place(note);
}).observe(element, {childList: true, subtree: true});
element.addEventListener('click', event => {
  const button = event.target.closest('button');
  if (button?.dataset.promote) trigger('promote', {version: Number(button.dataset.promote)});
  if (button?.dataset.note) write(button.dataset.note, button.dataset.words);
});
"""


def build(service: Service, training: Training, settings: Settings) -> gr.Blocks:
    """The page. Raises `gr.Error` in every handler unless the request is an operator's."""

    async def look() -> view.State:
        """The record as it stands."""
        store = service.store

        def read() -> view.State:
            return view.State(
                serving=store.serving(),
                previous=store.previous_serving(),
                due=training.due(),
                standing_votes=store.standing_votes(),
                demonstrations=store.demonstrations_count(),
                runs=tuple(store.runs()),
                active=store.active_run(),
                versions=tuple(store.versions()),
                promotions=tuple(store.promotions()),
                notes=store.version_notes(),
                touched=store.touched(),
            )

        return await asyncio.to_thread(read)

    page = gr.Blocks(title="Operator · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        seen = gr.State("")
        drawn_of = gr.State("")  # what the board was drawn of
        given = gr.State({})  # the schedule as this page shows it
        with gr.Column(elem_id="operator", elem_classes="sheet"):
            gr.HTML(
                theme.masthead(
                    "Operator",
                    '<nav class="aside"><a href="/">Open the chat</a><button data-log-out>Log out</button></nav>',
                )
            )
            note = gr.HTML(elem_id="note")
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab("Overview", id="overview"):
                    summary = gr.HTML(elem_id="summary")

                    gr.HTML(theme.section("Is it getting better?", "By blind votes: nobody knew who wrote what."))
                    glance = gr.HTML(elem_id="glance")
                    rates = gr.HTML(elem_id="rates")
                    figures = gr.Plot(show_label=False, container=False, elem_id="figures", visible=False)
                    gr.HTML(theme.section("Can it be trusted?"))
                    trust = gr.HTML(elem_id="trust")

                    gr.HTML(theme.section("Training"))
                    with gr.Column(elem_id="training"):
                        live = gr.HTML(elem_id="live")
                        with gr.Row(elem_classes="row") as start:
                            stages = gr.CheckboxGroup(
                                [("Demonstrations (SFT)", "sft"), ("Reward model", "reward"), ("Policy (PPO)", "ppo")],
                                value=list(STAGES),
                                label="Steps",
                                elem_id="stages",
                            )
                            force = gr.Checkbox(
                                value=False,
                                label="Even with few votes",
                                info="The checks before a version serves stay the same.",
                                elem_id="force",
                            )
                            train = gr.Button("Train now", variant="primary", elem_id="train")
                        with gr.Accordion("When runs start, and what then", open=False, elem_id="schedule"):
                            fields = {name: _field(name, words) for name, words in schedule.WORDS.items()}
                            save = gr.Button("Save the schedule", size="sm", elem_id="save-schedule")
                        with gr.Accordion("Settings of this run", open=False, elem_id="run-settings"):
                            own = gr.Textbox(
                                label="Settings, one a line",
                                placeholder="ppo.updates = 12",
                                info="As in the table below; what is not named keeps its default.",
                                lines=2,
                                max_lines=12,
                                max_length=4000,
                                elem_id="own-settings",
                            )
                            gr.HTML(data_view.settings(training.settings()))
                        cancel = gr.Button("Cancel this run", elem_id="cancel", visible=False)

                    with gr.Row():
                        gr.HTML(theme.section("Versions", "Promoting takes effect with the next answer."))
                        rollback = gr.Button("Roll back", size="sm", elem_id="rollback", scale=0, min_width=210)
                    versions = gr.HTML(js_on_load=_SWITCHES, elem_id="versions")

                    gr.HTML(theme.section("Learning curves and log", "By step of the run."))
                    which = gr.Dropdown(label="Run", choices=[], elem_id="curves-of", visible=False)
                    no_curves = gr.HTML(
                        theme.empty(
                            "No curves yet. They grow here while a run learns; one that ended within a step has none."
                        )
                    )
                    curves = gr.Plot(show_label=False, container=False, elem_id="curves", visible=False)

                    log = gr.HTML(elem_id="run-log")

                    gr.HTML(theme.section("Runs"))
                    runs = gr.HTML(elem_id="runs")

                    gr.HTML(theme.section("Side by side", "The same prompt and seed, two versions."))
                    with gr.Row(elem_id="ask"):
                        prompt = gr.Textbox(
                            label="Prompt",
                            placeholder="What should both versions be asked?",
                            lines=2,
                            scale=4,
                            elem_id="prompt",
                        )
                        left = gr.Dropdown(label="Left", choices=[], scale=1, min_width=150, elem_id="left-version")
                        right = gr.Dropdown(label="Right", choices=[], scale=1, min_width=150, elem_id="right-version")
                        compare = gr.Button("Compare", variant="primary", elem_id="compare")
                        on_all = gr.Button(f"On {FIXED} fixed prompts", elem_id="compare-all")
                    all_of = gr.HTML(elem_id="all-of")
                    with gr.Row(elem_id="sides", visible=False) as sides:
                        heads, panes = [], []
                        for side in ("left", "right"):
                            with gr.Column(elem_classes="pane"):
                                heads.append(gr.HTML())
                                panes.append(parts.answer(side))
                with gr.Tab("Data and log", id="data"):
                    data_tab.build(page, service)
        clock = gr.Timer(REFRESH)

        board = [drawn_of, glance, rates, figures, trust]
        shown = [seen, summary, live, start, cancel, rollback, versions, runs, which, left, right, note, *board]

        def show(state: view.State) -> Update:
            """The record as it stands. `seen` is the clock's: it finds out whether there is more to choose from."""
            return {
                summary: view.summary(state),
                live: view.live(state),
                start: gr.update(visible=state.active is None),
                cancel: gr.update(visible=state.active is not None),
                rollback: _rollback_button(state),
                versions: view.versions(state),
                runs: view.runs(state),
            }

        async def judged(state: view.State, before: str = "") -> Update:
            """What votes and reward models say of versions; nothing where that is what was drawn before."""
            found = await service.board()
            told = board_view.signature(found, state.runs, state.versions)
            if told == before:
                return {}
            drawn = board_view.figures(found, state.runs)
            return {
                drawn_of: told,
                glance: board_view.glance(found),
                rates: board_view.rates(found, state.versions),
                figures: gr.update(value=drawn, visible=drawn is not None),
                trust: board_view.trust(found, state.runs),
            }

        async def arrive(request: gr.Request) -> Update:
            operators_only(request)
            state = await look()
            update = {seen: view.signature(state)} | show(state) | _choices(state)
            return update | await judged(state) | await scheduled()

        async def scheduled() -> Update:
            """The schedule as it holds; what was set at the start cannot be changed here."""
            held = await asyncio.to_thread(schedule.entries, service.store, settings)
            return {given: {entry.name: entry.value for entry in held}} | {
                fields[entry.name]: gr.update(
                    value=entry.value,
                    interactive=not entry.fixed,
                    info="Set where the server was started." if entry.fixed else entry.words,
                )
                for entry in held
            }

        telling = theme.telling(note)

        @telling
        async def save_schedule(request: gr.Request, told: dict[str, str], *values: str) -> Update:
            """Change what was changed here: somebody else may have changed the rest."""
            operators_only(request)
            wanted = {
                name: str(value).strip()
                for name, value in zip(fields, values, strict=True)
                if str(value).strip() != told.get(name)
            }
            changed = await asyncio.to_thread(lambda: schedule.change(service.store, settings, wanted, who=WHO))
            names = ", ".join(f"{entry.name} is {entry.value}" for entry in changed)
            said = f"Saved: {names}." if names else "Nothing has changed."
            return show(await look()) | await scheduled() | {note: theme.note(said)}

        def _choices(state: view.State) -> Update:
            """What can be picked, and what is picked at first: the newest run, the base and what serves."""
            names = [(version_name(v.number), v.number) for v in state.versions]
            charted = [(f"Run {run.id}", run.id) for run in state.runs if run.metrics or run.finished]
            return {
                which: gr.update(choices=charted, value=charted[0][1] if charted else None, visible=bool(charted)),
                left: gr.update(choices=names, value=0),
                right: gr.update(choices=names, value=state.serving),
            }

        async def refresh(before: str, board_before: str, run: int | None, request: gr.Request) -> Update:
            operators_only(request)
            state = await look()
            if view.signature(state) == before:
                return {seen: gr.skip()}
            update = {seen: view.signature(state)} | show(state) | await judged(state, board_before)
            if view.choices(state) != view.choices_in(before):
                return update | _choices(state)
            return update | await drawn(run)

        async def draw(run: int | None, request: gr.Request) -> Update:
            operators_only(request)
            return await drawn(run)

        async def drawn(run: int | None) -> Update:
            points = await service.run_metrics(int(run)) if run is not None else []
            figure = view.curves(points)
            said = await service.run_log(int(run), LOG_LINES) if run is not None else ""
            return {
                curves: gr.update(value=figure, visible=figure is not None),
                no_curves: gr.update(visible=figure is None),
                log: data_view.log(said) if run is not None else "",
            }

        async def start_run(wanted: list[Stage], force: bool, lines: str, request: gr.Request) -> Update:
            operators_only(request)

            def trigger() -> str:
                if not wanted:
                    raise InvalidInput("choose at least one step")
                ordered = [stage for stage in STAGES if stage in wanted]
                run = training.trigger(
                    stages=ordered,
                    settings=nested([line for line in (lines or "").splitlines() if line.strip()]) or None,
                    force=force,
                    who=WHO,
                )
                service.store.log_deed(WHO, f"started run {run.id}")
                return f"Run {run.id} has been started."

            return await act(asyncio.to_thread(trigger))

        async def cancel_run(request: gr.Request) -> Update:
            operators_only(request)
            state = await look()
            if state.active is None:
                return show(state)
            run = state.active.id

            def end() -> str:
                training.cancel(run)
                service.store.log_deed(WHO, f"cancelled run {run}")
                return f"Run {run} has been cancelled."

            return await act(asyncio.to_thread(end))

        async def promote(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)
            version = event._data.get("version")
            if not isinstance(version, int):
                raise gr.Error("There is no such version.")

            async def switch() -> str:
                await service.promote(version, who=WHO, why="promoted by hand")
                return f"{version_name(version).capitalize()} serves from the next answer on."

            return await act(switch())

        async def note_version(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)
            version, words = event._data.get("version"), str(event._data.get("note", ""))
            if not isinstance(version, int):
                raise gr.Error("There is no such version.")

            async def write() -> str:
                await service.note_version(version, words, who=WHO)
                return f"Noted beside {version_name(version)}."

            return await act(write())

        async def roll_back(request: gr.Request) -> Update:
            operators_only(request)

            async def switch() -> str:
                version = await service.rollback(who=WHO, why="rolled back by hand")
                return f"Rolled back: {version_name(version)} serves from the next answer on."

            return await act(switch())

        async def act(deed: Awaitable[str]) -> Update:
            """Do it, say what came of it, and show the record as it then stands."""
            try:
                said = theme.note(await deed)
            except HustingsError as error:
                said = theme.problem(error)
            return show(await look()) | {note: said}

        async def answer_both(text: str, one: int, other: int, request: gr.Request) -> AsyncIterator[Update]:
            operators_only(request)
            try:
                writing = await service.side_by_side([Message("user", text)], (int(one), int(other)))
            except HustingsError as error:
                yield {note: theme.problem(error)}
                return
            done = asyncio.ensure_future(writing.wait())
            try:
                first: Update = {sides: gr.update(visible=True), note: ""}
                for head, number in zip(heads, (one, other), strict=True):
                    first[head] = f'<span class="pill">{version_name(int(number))}</span>'
                yield first | theme.answers(panes, writing.drafts)
                while not writing.done:
                    await asyncio.wait({done}, timeout=theme.TICK)
                    yield theme.answers(panes, writing.drafts)
                if writing.error:
                    yield {note: theme.problem(writing.error)}
            finally:
                writing.cancel()  # whoever leaves the page no longer waits for it

        async def compare_all(one: int, other: int, request: gr.Request) -> AsyncIterator[Update]:
            operators_only(request)
            try:
                yield {
                    note: theme.note("Both versions are answering, then the reward model reads them: about a minute.")
                }
                left_, right_ = [await service.on_fixed_prompts(int(version)) for version in (one, other)]
                items = [((Message("user", prompt),), answer) for prompt, answer in (*left_, *right_)]
                said = ""
                try:
                    scores = await asyncio.to_thread(training.score, items)
                except HustingsError as error:  # the answers are there all the same
                    scores, said = None, theme.problem(error)
                yield {note: said, all_of: view.compared((int(one), int(other)), left_, right_, scores)}
            except HustingsError as error:
                yield {note: theme.problem(error)}

        quick: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(arrive, None, [*shown, given, *fields.values()], **quick)
        save.click(save_schedule, [given, *fields.values()], [*shown, given, *fields.values()], **quick)
        clock.tick(refresh, [seen, drawn_of, which], [*shown, curves, no_curves, log], **quick)
        which.change(draw, which, [curves, no_curves, log], **quick)
        train.click(start_run, [stages, force, own], shown, **quick)
        cancel.click(cancel_run, None, shown, **quick)
        versions.promote(promote, None, shown, **quick)
        versions.note(note_version, None, shown, **quick)
        rollback.click(roll_back, None, shown, **quick)
        on_all.click(
            compare_all,
            [left, right],
            [note, all_of],
            show_progress="hidden",
            api_visibility="private",
            concurrency_id="fixed prompts",
        )
        gr.on(
            [compare.click, prompt.submit],
            answer_both,
            [prompt, left, right],
            [sides, *heads, *panes, note],
            show_progress="hidden",
            api_visibility="private",
            concurrency_id="generation",
            concurrency_limit=settings.batch_rows + settings.queue_limit,
        )

    page.queue(max_size=4 * (settings.batch_rows + settings.queue_limit))
    return page


def _field(name: str, words: str) -> gr.Textbox | gr.Dropdown:
    if name == "promotion":
        return gr.Dropdown(["auto", "canary", "manual"], label=name, info=words, elem_id=f"schedule-{name}")
    return gr.Textbox(label=name, info=words, max_length=20, elem_id=f"schedule-{name}")


def _rollback_button(state: view.State) -> Any:
    if state.previous is None:
        return gr.update(value="Nothing to roll back to", interactive=False)
    return gr.update(value=f"Roll back to {version_name(state.previous)}", interactive=True)
