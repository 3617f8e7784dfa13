"""The operator page: what serves, what has been learned, and the switches.

    build(service, training, settings)  →  the page, for `mount_gradio_app(..., **theme.mount_options("operator"))`

Each of its events is an address that anybody can call, so each handler asks again whether an operator is asking. What
it shows is drawn in operator_view.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from serve import schedule
from serve.errors import HustingsError, InvalidInput
from serve.records import BASE_VERSION, STAGES, Message, SettingInfo, Stage, version_name
from serve.service import FIXED, Service, Training
from serve.settings import Settings, nested
from serve.web import board_view, data_tab, data_view, parts, theme
from serve.web import operator_view as view
from serve.web.identity import OPERATOR_PAGE
from serve.web.theme import Update
from serve.web.visitor import operators_only

NO_CURVES = theme.empty("No curves yet. They grow here while a run learns; one that ended within a step has none.")
REFRESH = 2.0
"""Seconds between two looks at the record."""
LOG_LINES = 40

_ASKING = """  // what changes what people get asks once more
element.addEventListener('click', event => {
  const button = event.target.closest('[data-sure]');
  if (!button) return;
  if (button.classList.contains('sure')) return trigger('sure', {of: Number(button.dataset.of)});
  const words = button.textContent;
  button.classList.add('sure');
  button.textContent = button.dataset.sure;
  button.focus();  // not every browser does that by itself
  button.addEventListener('blur', () => {
    button.classList.remove('sure');
    button.textContent = words;
  }, {once: true});
});
"""
_NOTES = """
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
  if (button?.dataset.note) write(button.dataset.note, button.dataset.words);
});
"""


@dataclass(frozen=True)
class Seen:
    """What the clock found when it last looked."""

    commits: int = -1
    """Of the record; while it stays nothing else is read."""
    signature: str = ""
    offered: tuple[Sequence[int], Sequence[int]] = ((), ())
    """Runs and versions to pick from."""


def build(service: Service, training: Training, settings: Settings) -> gr.Blocks:
    """The page. Raises `gr.Error` in every handler unless the request is an operator's."""

    async def look() -> view.State:
        """The record as it stands."""
        store = service.store

        def read() -> view.State:
            serving, versions = store.serving(), store.versions()
            canary = next((version for version in versions if version.status == "canary"), None)
            trial = None
            if canary is not None:
                deadline = canary.created + schedule.current(store, settings).canary_deadline
                trial = view.Trial(canary.number, store.head_to_head(canary.number, serving), deadline)
            return view.State(
                serving=serving,
                previous=store.previous_serving(),
                due=training.due(),
                standing_votes=store.standing_votes(),
                demonstrations=store.demonstrations_count(),
                runs=tuple(store.runs(view.RUNS, metrics=False)),
                active=store.active_run(),
                versions=tuple(versions),
                promotions=tuple(store.promotions()),
                trial=trial,
                touched=store.touched(),
            )

        return await asyncio.to_thread(read)

    page = gr.Blocks(title="Operator · Hustings", analytics_enabled=False, fill_width=True)
    with page:
        seen = gr.State(Seen())
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
                    with gr.Column(elem_id="figures"):
                        figures = [gr.Plot(show_label=False, container=False) for _ in board_view.PARTS]
                    numbers = gr.HTML(elem_id="numbers")
                    gr.HTML(theme.section("Can it be trusted?"))
                    trust = gr.HTML(elem_id="trust")

                    gr.HTML(theme.section("Training"))
                    with gr.Column(elem_id="training"):
                        live = gr.HTML(elem_id="live")
                        with gr.Row(elem_classes="row", elem_id="start"):
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
                            known = training.settings()
                            with gr.Row(elem_classes="row"):
                                often = {each.name: _setting(each) for each in known if each.name in view.OFTEN_SET}
                            own = gr.Textbox(
                                label="Other settings, one a line",
                                placeholder="ppo.clip = 0.1",
                                info="As in the table below; what is not named keeps its default.",
                                lines=2,
                                max_lines=12,
                                max_length=4000,
                                elem_id="own-settings",
                            )
                            gr.HTML(data_view.settings(known))
                        cancel = gr.HTML(js_on_load=_ASKING, elem_id="cancel")

                    with gr.Row():
                        gr.HTML(theme.section("Versions", "Promoting takes effect with the next answer."))
                        rollback = gr.HTML(js_on_load=_ASKING, elem_id="rollback")
                    versions = gr.HTML(js_on_load=_ASKING + _NOTES, elem_id="versions")

                    gr.HTML(theme.section("Learning curves and log", "By step of the run."))
                    which = gr.Dropdown(
                        label="Run", choices=[("The newest", view.NEWEST)], value=view.NEWEST, elem_id="curves-of"
                    )
                    no_curves = gr.HTML(NO_CURVES)
                    curves = gr.Plot(show_label=False, container=False, elem_id="curves")

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
                with gr.Tab("Data and log", id="data") as data:
                    data_tab.build(data, note, service)
        clock = gr.Timer(REFRESH)

        board = [drawn_of, glance, rates, *figures, numbers, trust]
        shown = [seen, summary, live, cancel, rollback, versions, runs, which, left, right, note, *board]

        def show(state: view.State) -> Update:
            """The record as it stands. `seen` is the clock's: it finds out whether there is more to choose from."""
            return {
                summary: view.summary(state),
                live: view.live(state),
                cancel: view.cancel(state),
                rollback: view.rollback(state),
                versions: view.versions(state),
                runs: view.runs(state),
            }

        async def judged(state: view.State, before: str = "") -> Update:
            """What votes and reward models say of versions; nothing where that is what was drawn before."""
            found = await service.board()
            told = board_view.signature(found, state.runs, state.versions)
            if told == before:
                return {}
            return {
                drawn_of: told,
                glance: board_view.glance(found),
                rates: board_view.rates(found, state.versions),
                numbers: board_view.numbers(found, state.runs),
                trust: board_view.trust(found, state.runs),
            } | dict(zip(figures, board_view.figures(found, state.runs), strict=True))

        telling = theme.telling(note)

        @telling
        async def arrive(request: gr.Request) -> Update:
            operators_only(request)
            commits, state = service.store.commits, await look()
            update: Update = {seen: saw(commits, state)} | show(state) | choices(state)
            update[left] = gr.update(choices=named(state), value=BASE_VERSION)
            update[right] = gr.update(choices=named(state), value=state.serving)
            return update | await judged(state) | await scheduled() | await drawn(state, view.NEWEST)

        async def scheduled() -> Update:
            """The schedule as it holds; what was set at the start cannot be changed here."""
            held = await asyncio.to_thread(schedule.entries, service.store, settings)
            return {given: {entry.name: entry.value for entry in held}} | {
                fields[entry.name]: gr.update(
                    value=entry.value,
                    interactive=not entry.fixed,
                    info=f"{'Set where the server was started.' if entry.fixed else entry.words} ({entry.name})",
                )
                for entry in held
            }

        @telling
        async def save_schedule(request: gr.Request, told: dict[str, str], *values: str) -> Update:
            """Change what was changed here: somebody else may have changed the rest."""
            operators_only(request)
            wanted = {
                name: str(value).strip()
                for name, value in zip(fields, values, strict=True)
                if str(value).strip() != told.get(name)
            }
            changed = await asyncio.to_thread(
                lambda: schedule.change(service.store, settings, wanted, who=OPERATOR_PAGE)
            )
            names = "; ".join(f"{schedule.LABELS[entry.name]}: {entry.value}" for entry in changed)
            said = f"Saved. {names}." if names else "Nothing has changed."
            return show(await look()) | await scheduled() | {note: theme.note(said)}

        def saw(commits: int, state: view.State) -> Seen:
            return Seen(commits, repr(state), (view.charted(state), [version.number for version in state.versions]))

        def named(state: view.State) -> list[tuple[str, int]]:
            return [(version_name(version.number), version.number) for version in state.versions]

        def choices(state: view.State) -> Update:
            """What can be picked; what is picked stays."""
            runs = [("The newest", view.NEWEST), *((f"Run {run}", run) for run in view.charted(state))]
            versions = gr.update(choices=named(state))
            return {which: gr.update(choices=runs), left: versions, right: versions}

        @telling
        async def refresh(before: Seen, board_before: str, run: int, request: gr.Request) -> Update:
            operators_only(request)
            commits = service.store.commits
            if commits == before.commits:
                return {seen: gr.skip()}
            state = await look()
            now = saw(commits, state)
            if now.signature == before.signature:
                return {seen: now}
            update: Update = {seen: now} | show(state) | await judged(state, board_before)
            if now.offered != before.offered:
                update |= choices(state)
            return update | await drawn(state, run)

        @telling
        async def draw(run: int, request: gr.Request) -> Update:
            operators_only(request)
            return await drawn(await look(), run)

        async def drawn(state: view.State, wanted: int) -> Update:
            """Curves and log of a run, or of the newest."""
            run = next((run for run in view.charted(state) if wanted in (run, view.NEWEST)), None)
            if run is None:
                return {curves: None, no_curves: NO_CURVES, log: ""}
            figure = view.curves(await service.run_metrics(run))
            said = data_view.log(await service.run_log(run, LOG_LINES))
            return {
                curves: figure,
                no_curves: "" if figure else NO_CURVES,
                log: said + view.whole_log(run),
            }

        async def start_run(request: gr.Request, wanted: list[Stage], force: bool, lines: str, *values: str) -> Update:
            """Start a run with what was filled in; a field that is empty keeps its default."""
            operators_only(request)
            told = [f"{name}={value}" for name, value in zip(often, values, strict=True) if (value or "").strip()]
            told += [line for line in (lines or "").splitlines() if line.strip()]

            def trigger() -> str:
                if not wanted:
                    raise InvalidInput("choose at least one step")
                ordered = [stage for stage in STAGES if stage in wanted]
                run = training.trigger(
                    stages=ordered,
                    settings=nested(told) or None,
                    force=force,
                    who=OPERATOR_PAGE,
                )
                return f"Run {run.id} has been started."

            return await act(asyncio.to_thread(trigger))

        async def cancel_run(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)

            def end() -> str:
                run = _number(event, "of")
                training.cancel(run, who=OPERATOR_PAGE)
                return f"Run {run} has been cancelled."

            return await act(asyncio.to_thread(end))

        async def promote(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)

            async def switch() -> str:
                version = _number(event, "of")
                await service.promote(version, who=OPERATOR_PAGE, why="promoted by hand")
                return f"{version_name(version).capitalize()} serves from the next answer on."

            return await act(switch())

        async def note_version(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)

            async def write() -> str:
                version = _number(event, "version")
                await service.note_version(version, str(event._data.get("note", "")), who=OPERATOR_PAGE)
                return f"Noted beside {version_name(version)}."

            return await act(write())

        async def roll_back(event: gr.EventData, request: gr.Request) -> Update:
            operators_only(request)

            async def switch() -> str:
                version = await service.rollback(who=OPERATOR_PAGE, why="rolled back by hand", to=_number(event, "of"))
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
            try:
                first: Update = {sides: gr.update(visible=True), note: ""}
                for head, number in zip(heads, (one, other), strict=True):
                    first[head] = f'<span class="pill">{version_name(int(number))}</span>'
                yield first
                async for drafts in writing.growing(theme.TICK):
                    yield theme.answers(panes, drafts)
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
        charts = [curves, no_curves, log]
        page.load(arrive, None, [*shown, given, *fields.values(), *charts], **quick)
        save.click(save_schedule, [given, *fields.values()], [*shown, given, *fields.values()], **quick)
        clock.tick(refresh, [seen, drawn_of, which], [*shown, *charts], **quick)
        which.input(draw, which, [*charts, note], **quick)
        train.click(start_run, [stages, force, own, *often.values()], shown, **quick)
        cancel.sure(cancel_run, None, shown, **quick)
        versions.sure(promote, None, shown, **quick)
        versions.note(note_version, None, shown, **quick)
        rollback.sure(roll_back, None, shown, **quick)
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
    """A setting of the schedule."""
    label, info = schedule.LABELS[name], f"{words} ({name})"
    if name == "promotion":
        return gr.Dropdown(["auto", "canary", "manual"], label=label, info=info, elem_id=f"schedule-{name}")
    return gr.Textbox(label=label, info=info, max_length=20, elem_id=f"schedule-{name}")


def _setting(setting: SettingInfo) -> gr.Textbox:
    """A setting of a run, empty until somebody wants another value than the default."""
    return gr.Textbox(
        label=view.OFTEN_SET[setting.name],
        info=f"{data_view.bounds(setting)} ({setting.name})",
        placeholder=str(setting.default),
        max_length=20,
        min_width=200,
    )


def _number(event: gr.EventData, name: str) -> int:
    """The run or version that the page named. Raises InvalidInput for what no page of ours sends."""
    number = event._data.get(name)
    if not isinstance(number, int):
        raise InvalidInput("there is no such run or version")
    return number
