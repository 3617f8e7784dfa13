"""What the operator page draws: the record as HTML and figures. Pure functions of `State`; all text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from serve.feedback.reports import gate_win_rate
from serve.feedback.statistics import Interval, wins_needed
from serve.records import BASE_VERSION, Due, Run, Version, version_name
from serve.schedule import CANARY_ALPHA
from serve.web.theme import empty, table, when

if TYPE_CHECKING:
    from serve.feedback.entries import HeadToHead, MetricPoint, Promotion

ACCURACY = "reward_accuracy"
CURVES = (
    (ACCURACY, "Reward model's accuracy"),
    ("score", "Score"),
    ("kl", "KL to the reference (nats)"),
    ("length", "Length (tokens)"),
)
STEPS = {"sft": "Demonstrations", "reward": "Reward model", "ppo": "Policy", "gate": "Checks"}
TONES = {"succeeded": "good", "serving": "good", "failed": "bad", "running": "busy", "canary": "busy", "queued": "busy"}
TRIGGERS = {"votes": "enough votes", "interval": "the clock", "operator": "an operator"}
OFTEN_SET = {
    "ppo.updates": "Rounds of PPO",
    "ppo.rollouts": "Answers in a round",
    "ppo.kl_target": "How far it may move (KL, nats an answer)",
    "rank": "Rank of the LoRA",
    "gate.held_out_prompts": "Prompts for the checks",
}
"""The settings of a run that have a field of their own, and what the page calls them."""
RUNS = 100
"""So many runs are shown."""
NEWEST = 0
"""In place of a run's number: whichever is the newest."""


@dataclass(frozen=True)
class Trial:
    """How a canary fares against what serves, and when it is put aside if that decides nothing."""

    version: int
    tally: HeadToHead
    ends: datetime


@dataclass(frozen=True)
class State:
    """The record as the operator page shows it."""

    serving: int
    previous: int | None
    due: Due
    standing_votes: int
    demonstrations: int
    runs: tuple[Run, ...]
    """Newest first."""
    active: Run | None
    versions: tuple[Version, ...]
    """Newest first."""
    promotions: tuple[Promotion, ...]
    """Newest first."""
    trial: Trial | None = None
    touched: Mapping[int, int] = field(default_factory=dict)
    """Version → how many of the votes it learned from are excluded now."""


def charted(state: State) -> list[int]:
    """The runs that have begun, or ended: what curves and logs there are. Newest first."""
    return [run.id for run in state.runs if run.stage or run.finished]


def summary(state: State) -> str:
    """Three cards: what serves, the votes, the next run."""
    last = state.promotions[0] if state.promotions else None
    since = f"Since {when(last.created)}." if last else "As it came, before any training."
    due = state.due
    share = min(1.0, due.new_votes / due.min_new_votes)
    missing = max(0, due.min_new_votes - due.new_votes)
    votes = f"{_count(missing, 'more vote')} until a run starts by itself." if missing else "Enough for a run."
    if state.active is not None:
        votes = "With those that the run below is learning from."
    name = version_name(state.serving).capitalize()
    all_told = f"{_count(state.standing_votes, 'vote')} and {_count(state.demonstrations, 'demonstration')} in all."
    return (
        '<div class="cards">'
        f'<div class="card" id="serving"><h2>Serving now</h2><div class="figure">{name}</div><p>{since}</p></div>'
        f'<div class="card" id="new-votes"><h2>New votes since the last run</h2><div class="figure">{due.new_votes}'
        f" <small>of {due.min_new_votes}</small></div>{_bar(share, 'Votes until a run')}<p>{votes}</p>"
        f"<p>{all_told}</p></div>"
        f'<div class="card" id="next-run"><h2>Next run</h2>{_next_run(state, missing)}</div></div>'
    )


def _next_run(state: State, missing: int) -> str:
    due = state.due
    if state.active is not None:
        return '<div class="figure">Running</div><p>The next one is counted from when this one ends.</p>'
    if not missing and due.next_by is None:
        words = "There are enough new votes. A run starts once the canary is decided."
        return f'<div class="figure">Waiting for the canary</div><p>{words}</p>'
    if not missing and state.runs and state.runs[0].status in ("failed", "cancelled"):
        words = "There are enough new votes. The last run came to nothing; the next one waits until then."
        return f'<div class="figure">{when(due.next_by)}</div><p>{words}</p>'
    if not missing:
        return '<div class="figure">About to start</div><p>There are enough new votes.</p>'
    if due.next_by is not None:
        sooner = f"At the latest; sooner with {_count(missing, 'more vote')}."
        return f'<div class="figure">{when(due.next_by)}</div><p>{sooner}</p>'
    if due.max_interval is None:
        wanted = f"With {_count(missing, 'more vote')}, or when you start it."
        return f'<div class="figure">By votes alone</div><p>{wanted}</p>'
    return (
        '<div class="figure">Waiting for votes</div>'
        f"<p>With {_count(missing, 'more vote')}, or {_span(due.max_interval)} after the last run if there are any.</p>"
    )


def live(state: State) -> str:
    """The run that is on, or what to do when there is none."""
    run = state.active
    if run is None:
        if not state.standing_votes and not state.demonstrations:
            return empty(
                "<b>Nothing to learn from yet.</b> Open the chat, ask something, and choose the better of two answers. "
                f"{state.due.min_new_votes} votes start the first run by themselves.",
                framed=False,
            )
        return empty("No run is on. One starts by itself when it is due; you can also start one now.", framed=False)
    doing = STEPS.get(run.stage or "", "Getting ready") if run.status == "running" else run.status.capitalize()
    left = f" · about {_span(timedelta(seconds=run.eta_seconds))} left" if run.eta_seconds else ""
    planned = [*run.stages, "gate"]
    at = planned.index(run.stage) if run.stage in planned else -1
    steps = "".join(
        f'<li class="{"done" if i < at else "now" if i == at else ""}">{STEPS[stage]}</li>'
        for i, stage in enumerate(planned)
    )
    return (
        f'<div class="run-now" role="group" aria-label="Run {run.id}"><div class="head"><b>Run {run.id}: {doing}</b>'
        f"<span>{run.progress:.0%}{left}</span></div>{_bar(run.progress, 'Progress')}"
        f"<ol class='steps'>{steps}</ol></div>"
    )


def cancel(state: State) -> str:
    """The button that ends the run that is on."""
    run = state.active
    return "" if run is None else _asking(run.id, "Cancel this run", f"Really cancel run {run.id}?")


def rollback(state: State) -> str:
    """The button that returns to the version before."""
    if state.previous is None:
        return '<button type="button" disabled>Nothing to roll back to</button>'
    name = version_name(state.previous)
    return _asking(state.previous, f"Roll back to {name}", f"Really roll back to {name}?")


def _asking(of: int, words: str, sure: str) -> str:
    """A button that asks `sure` before it acts on the run or version `of`; the page's script knows how."""
    return f'<button type="button" data-of="{of}" data-sure="{sure}">{words}</button>'


def versions(state: State) -> str:
    """All versions, newest first, each that passed the checks with a button that makes it serve."""
    rows = []
    for version in state.versions:
        number, serves = version.number, version.number == state.serving
        action = ""
        if not serves and version.status != "rejected":
            action = _asking(number, "Promote", f"Really promote {version_name(number)}?")
        if number != BASE_VERSION:
            action += f' <a href="/api/versions/{number}/adapter" download>Download</a>'
        rows.append(
            f'<tr class="{"serving" if serves else ""}"><td><b>{version_name(version.number).capitalize()}</b></td>'
            f"<td>{_pill(version.status)}</td><td>{_rate(gate_win_rate(version.report))}</td>"
            f"<td>{'–' if version.run is None else f'Run {version.run}'}</td>"
            f"<td>{'–' if version.parent is None else version_name(version.parent).capitalize()}</td>"
            f'<td>{when(version.created)}</td><td class="words">{_beside(state, version)}</td>'
            f'<td class="act">{action}</td></tr>'
        )
    heads = ("Version", "Status", "Win rate against its parent", "Made by", "Parent", "Created", "Note", "")
    return table(heads, rows, label="Versions")


def _beside(state: State, version: Version) -> str:
    """A version's note, to change; how it fares on trial; whether votes that it learned from count no more."""
    number, words = version.number, html.escape(version.note or "")
    verb = "Change" if words else "Note"
    note = f'{words} <button type="button" data-note="{number}" data-words="{words}">{verb}</button>'
    if state.trial is not None and state.trial.version == number:
        note = f"<p>{_fares(state.trial, state.serving)}</p>{note}"
    if not state.touched.get(number):
        return note
    count = _count(state.touched[number], "excluded vote")
    return f'<span class="pill bad">learned from {count}</span> {note}'


def _fares(trial: Trial, serving: int) -> str:
    wins, losses = trial.tally.wins, trial.tally.losses
    better = wins_needed(wins, losses, alpha=CANARY_ALPHA)
    worse = wins_needed(losses, wins, alpha=CANARY_ALPHA)
    return (
        f"On trial against {version_name(serving)}: {wins} won, {losses} lost. {better} more won in a row would "
        f"promote it, {worse} more lost take it back; undecided by {when(trial.ends)}, it waits for you."
    )


def runs(state: State) -> str:
    """All runs, newest first, with what came of each."""
    if not state.runs:
        return empty("<b>No run yet.</b> Each one is kept here with what came of it: a version, or why there is none.")
    rows = []
    for run in state.runs:
        took = run.finished - run.started if run.finished and run.started else None
        rows.append(
            f"<tr><td><b>Run {run.id}</b></td><td>{_pill(run.status)}</td><td>{when(run.started or run.created)}</td>"
            f"<td>{'–' if took is None else _span(took)}</td><td>{TRIGGERS[run.trigger]}</td>"
            f'<td class="words">{_outcome(run)}{_made_with(run)}</td></tr>'
        )
    heads = ("Run", "Status", "Started", "Took", "Started by", "Outcome")
    older = '<p class="soft">Older ones are at <a href="/api/runs">/api/runs</a>.</p>' if len(rows) >= RUNS else ""
    return table(heads, rows, label="Runs") + older


def _made_with(run: Run) -> str:
    """What a run was told and learned from, to unfold."""
    told = ", ".join(f"{name} = {value}" for name, value in _dotted(run.settings))
    facts = {
        "Started by": run.who or TRIGGERS[run.trigger],
        "Steps": ", ".join(STEPS[stage] for stage in run.stages),
        "Votes": str(run.votes),
        "Settings": told or "the defaults",
    }
    lines = "".join(f"<p><b>{name}</b> {html.escape(words)}</p>" for name, words in facts.items())
    return f"<details><summary>Made with</summary>{lines}</details>"


def _dotted(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{path}{name}.")
        else:
            yield path + name, value


def whole_log(run: int) -> str:
    """Where the rest of a run's log is."""
    return f'<p class="soft"><a href="/api/runs/{run}/log?tail=10000">The log of run {run} from further back</a></p>'


def curves(points: Sequence[MetricPoint]) -> go.Figure | None:
    """Those of the curves to watch that have begun, each by step; None before the first has two points."""
    lines = {name: [point for point in points if point.name == name] for name, _ in CURVES}
    begun = [(name, title) for name, title in CURVES if len(lines[name]) > 1]
    if not begun:
        return None
    rows = (len(begun) + 1) // 2
    figure = make_subplots(rows, min(2, len(begun)), subplot_titles=[t for _, t in begun], vertical_spacing=0.2)
    for place, (name, _) in enumerate(begun):
        line, row, column = lines[name], place // 2 + 1, place % 2 + 1
        figure.add_trace(
            go.Scatter(
                x=[point.step for point in line],
                y=[point.value for point in line],
                mode="lines+markers" if len(line) < 3 else "lines",
                line={"color": "#2b856a", "width": 2.2},
                hovertemplate="step %{x}: %{y:.3g}<extra></extra>",
            ),
            row=row,
            col=column,
        )
        if name == ACCURACY:
            figure.update_yaxes(tickformat=".0%", row=row, col=column)
    figure.update_layout(
        height=230 * rows,
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 52, "r": 22, "t": 44, "b": 36},
        hovermode="x",
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.14)", zeroline=False, rangemode="tozero")
    figure.update_yaxes(gridcolor="rgba(128,128,128,.18)", zeroline=False, nticks=5)
    figure.update_annotations(font_size=14, yshift=6)
    return figure


def compared(
    versions: tuple[int, int],
    left: Sequence[tuple[str, str]],
    right: Sequence[tuple[str, str]],
    scores: Sequence[float] | None,
) -> str:
    """Two versions' answers to the same prompts, with what the newest reward model says of each, if there is one."""
    count = len(left)
    rows = []
    for i, ((prompt, one), (_, other)) in enumerate(zip(left, right, strict=True)):
        told = (f"{scores[i]:.2f}", f"{scores[count + i]:.2f}") if scores else ("–", "–")
        better = scores is not None and scores[i] != scores[count + i]
        first = better and scores is not None and scores[i] > scores[count + i]
        marks = ("<b>", "</b>", "", "") if first else ("", "", "<b>", "</b>") if better else ("", "", "", "")
        rows.append(
            f"<tr><td>{html.escape(prompt)}</td><td>{html.escape(one)}</td><td>{marks[0]}{told[0]}{marks[1]}</td>"
            f"<td>{html.escape(other)}</td><td>{marks[2]}{told[1]}{marks[3]}</td></tr>"
        )
    names = [version_name(version).capitalize() for version in versions]
    return table(("Prompt", names[0], "Score", names[1], "Score"), rows, label="Answers to fixed prompts")


def _rate(rate: Interval | None) -> str:
    if rate is None:
        return "–"
    return (
        '<span class="rate"><svg viewBox="0 0 96 14" aria-hidden="true"><line x1="0" x2="96" y1="7" y2="7"/>'
        '<line class="even" x1="48" x2="48" y1="1" y2="13"/>'
        f'<line class="spread" x1="{96 * rate.low:.1f}" x2="{96 * rate.high:.1f}" y1="7" y2="7"/>'
        f'<circle cx="{96 * rate.value:.1f}" cy="7" r="4"/></svg>'
        f"<span>{rate.value:.0%} <small>({rate.low:.0%} to {rate.high:.0%})</small></span></span>"
    )


def _outcome(run: Run) -> str:
    reasons = (run.report or {}).get("reasons") or ()
    words = " ".join(html.escape(str(reason)).rstrip(".") + "." for reason in reasons)
    if run.version is not None:
        return f"{version_name(run.version).capitalize()}. {words}".strip()
    return words or html.escape(run.error or "") or "–"


def _pill(status: str) -> str:
    return f'<span class="pill {TONES.get(status, "")}">{html.escape(status.replace("_", " "))}</span>'


def _bar(share: float, of: str) -> str:
    return (
        f'<div class="bar" role="progressbar" aria-label="{of}" aria-valuemin="0" aria-valuemax="100"'
        f' aria-valuenow="{100 * share:.0f}"><i style="width:{100 * share:.1f}%"></i></div>'
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _span(span: timedelta) -> str:
    """A length of time, as one says it: `40 s`, `12 min`, `24 h`."""
    seconds = round(span.total_seconds())
    if seconds < 90:
        return f"{seconds} s"
    return f"{round(seconds / 60)} min" if seconds < 7200 else f"{round(seconds / 3600)} h"
