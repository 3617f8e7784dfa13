"""What the board draws: is it getting better, and can one trust that? Pure functions; all text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import plotly.graph_objects as go

from serve.board import Board, Rated
from serve.feedback.reports import gate_figures, reward_accuracy
from serve.feedback.statistics import Interval
from serve.records import BASE_VERSION, Run, Version, version_name
from serve.web.theme import table

GREEN, SOFT = "#2b856a", "#8d8677"
EVEN: dict[str, Any] = {"color": SOFT, "dash": "dot", "width": 1}
DAYS = 30
"""So many days of votes are drawn, to the newest."""
CALIBRATION, VOTES_A_DAY = "How sure, how often right", "Votes a day"


@dataclass(frozen=True)
class Seen:
    """What the figures are drawn of."""

    board: Board
    calibration: Sequence[Mapping[str, float]]
    """Of the newest reward model: how sure it was, how often it was right, over how many pairs."""


@dataclass(frozen=True)
class Part:
    """A figure: how it is drawn, its title and what to look for, its axes, and whether there is anything to draw."""

    draw: Callable[[Seen], go.Figure]
    title: str
    words: str
    across: str
    up: str
    there: Callable[[Seen], object]


def signature(board: Board, runs: Sequence[Run], versions: Sequence[Version]) -> str:
    """Changes with what is drawn of them."""
    return repr((board, _newest_reward(runs), [(version.number, version.report) for version in versions]))


def glance(board: Board) -> str:
    """The answer in one or two sentences."""
    first, *rest = board.verdicts
    return (
        f'<div class="glance"><p>{html.escape(first)}</p>'
        + "".join(f"<p>{html.escape(s)}</p>" for s in rest)
        + "</div>"
    )


def trust(board: Board, runs: Sequence[Run]) -> str:
    """How far votes and reward model can be trusted: a card each, or what has to happen first."""
    report = _newest_reward(runs)
    unseen = (report.get("accuracy") or {}).get("comparisons", 0)
    decided = "Nothing yet: no vote has preferred one of two answers."
    cards = [
        _card(
            "Reward model is right on",
            reward_accuracy({"reward": report}),
            f"of {unseen:.0f} comparisons it had not seen.",
            "Nothing yet: the first run makes a reward model.",
        ),
        _card(
            "Voters agree on",
            board.agreement,
            "of answers that several people judged. A coin: a third.",
            "Nothing yet: two people must judge the same answers, as /vote shows them.",
        ),
        _card(
            "Voters repeat themselves on",
            board.consistency,
            "of answers that they were shown again.",
            "Nothing yet: whoever judges many at /vote meets some again.",
        ),
        _card("What stands first wins", board.first_won, "of decided votes. Without a bias: half.", decided),
        _card("The longer answer wins", board.longer_won, "of decided votes.", decided),
    ]
    return f'<div class="cards five">{"".join(cards)}</div>'


def _card(name: str, share: Interval | None, words: str, nothing: str) -> str:
    told = nothing if share is None else words
    return f'<div class="card"><h2>{name}</h2><div class="figure">{_interval(share)}</div><p>{told}</p></div>'


def _interval(share: Interval | None) -> str:
    return "–" if share is None else f"{share.value:.0%} <small>{share.low:.0%} to {share.high:.0%}</small>"


def rates(board: Board, versions: Sequence[Version]) -> str:
    """By version: what people say, what the reward model promised, and what the checks measured."""
    measured = {v.number: gate_figures(v.report) for v in versions}
    rows = [
        f"<tr><td><b>{version_name(rated.version).capitalize()}</b></td><td>{_share(rated.over_base)}</td>"
        f"<td>{_share(rated.over_parent)}</td><td>{_share(rated.promised)}</td><td>{rated.decided}</td>"
        f"<td>{_number(measured.get(rated.version, {}), 'kl', '{:.1f}')}</td>"
        f"<td>{_number(measured.get(rated.version, {}), 'length', '{:.0f}')}</td>"
        f"<td>{_number(measured.get(rated.version, {}), 'refusals', '{:.0%}')}</td></tr>"
        for rated in sorted(board.rated, key=lambda rated: -rated.version)
        if rated.version != BASE_VERSION
    ]
    heads = ("Version", "Over the base", "Over the one before", "Promised by the reward model", "Blind votes",
             "KL (nats)", "Length (tokens)", "Refusals")  # fmt: skip
    return table(heads, rows, label="Versions as people and checks find them") if rows else ""


def _share(share: Interval | None) -> str:
    return "–" if share is None else f"{share.value:.0%} <small>({share.low:.0%} to {share.high:.0%})</small>"


def _number(figures: Mapping[str, float], name: str, template: str) -> str:
    return "–" if figures.get(name) is None else template.format(figures[name])


def figures(board: Board, runs: Sequence[Run]) -> list[go.Figure | None]:
    """One for each of `PARTS`; None where there is nothing to draw yet."""
    seen = Seen(board, _newest_reward(runs).get("calibration") or [])
    return [_framed(part, seen) if part.there(seen) else None for part in PARTS]


def _framed(part: Part, seen: Seen) -> go.Figure:
    figure = part.draw(seen)
    figure.update_layout(
        title={"text": f"{part.title}<br><sup>{part.words}</sup>", "font": {"size": 14}, "x": 0.02, "y": 0.95},
        height=300,
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 60, "r": 18, "t": 62, "b": 52},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.14)", zeroline=False, title_text=part.across)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.18)", zeroline=False, title_text=part.up)
    return figure


def numbers(board: Board, runs: Sequence[Run]) -> str:
    """What the figures show that stands in no table above, as tables to unfold; empty where that is nothing."""
    calibration = [
        f"<tr><td>{row['said']:.0%}</td><td>{row['right']:.0%}</td><td>{row['pairs']:.0f}</td></tr>"
        for row in _newest_reward(runs).get("calibration") or []
    ]
    days = [
        f"<tr><td>{day:%Y-%m-%d}</td><td>{votes}</td></tr>"
        for day, votes in sorted(board.votes_by_day.items(), reverse=True)[:DAYS]
    ]
    tables = ""
    if calibration:
        tables += table(
            ("How sure the reward model was", "How often it was right", "Pairs"), calibration, label=CALIBRATION
        )
    if days:
        tables += table(("Day", "Votes"), days, label=VOTES_A_DAY)
    return f'<details class="numbers"><summary>The figures in numbers</summary>{tables}</details>' if tables else ""


def _over_base(seen: Seen) -> go.Figure:
    rated = sorted((r for r in seen.board.rated if r.over_base is not None), key=lambda r: r.version)
    shares = [r.over_base for r in rated if r.over_base is not None]
    figure = go.Figure(
        go.Scatter(
            x=[f"v{r.version}" for r in rated],
            y=[share.value for share in shares],
            error_y=_bars(shares),
            mode="markers",
            marker={"color": GREEN, "size": 10},
            hovertemplate="%{x}: %{y:.0%}<extra></extra>",
        )
    )
    figure.add_hline(0.5, line=EVEN)
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def _promises(seen: Seen) -> go.Figure:
    """Below the diagonal the reward model was pleased and people were not."""
    rated = _promised(seen)
    promised = [r.promised for r in rated if r.promised is not None]
    found = [r.over_parent for r in rated if r.over_parent is not None]
    figure = go.Figure(
        [
            go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=EVEN, hoverinfo="skip"),
            go.Scatter(
                x=[share.value for share in promised],
                y=[share.value for share in found],
                error_x=_bars(promised),
                error_y=_bars(found),
                mode="markers+text",
                text=[f"v{r.version}" for r in rated],
                textposition=[("top left", "bottom right")[i % 2] for i in range(len(rated))],
                marker={"color": GREEN, "size": 10},
                hovertemplate="%{text}: promised %{x:.0%}, found %{y:.0%}<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(range=[0, 1.02], tickformat=".0%", tickvals=[0.25, 0.5, 0.75, 1])
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def _days(seen: Seen) -> go.Figure:
    votes, last = seen.board.votes_by_day, max(seen.board.votes_by_day)
    shown = min(DAYS, (last - min(votes)).days + 1)
    days = [last - timedelta(days=back) for back in reversed(range(shown))]
    counts = [votes.get(day, 0) for day in days]
    figure = go.Figure(go.Bar(x=days, y=counts, marker={"color": GREEN}, hovertemplate="%{x}: %{y}<extra></extra>"))
    return figure.update_xaxes(tickformat="%-d %b", nticks=5)


def _bars(shares: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [share.high - share.value for share in shares],
        "arrayminus": [share.value - share.low for share in shares],
        "color": GREEN,
        "thickness": 1.4,
    }


def _calibration(seen: Seen) -> go.Figure:
    """On the diagonal the reward model is as sure as it should be."""
    said, right = ([row[name] for row in seen.calibration] for name in ("said", "right"))
    figure = go.Figure(
        [
            go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line=EVEN, hoverinfo="skip"),
            go.Scatter(
                x=said,
                y=right,
                mode="lines+markers",
                line={"color": GREEN},
                marker={"size": [6 + min(12, row["pairs"] / 10) for row in seen.calibration]},
                hovertemplate="said %{x:.0%}, right %{y:.0%}<extra></extra>",
            ),
        ]
    )
    figure.update_xaxes(range=[0.48, 1.02], tickformat=".0%")
    return figure.update_yaxes(range=[0, 1.02], tickformat=".0%")


def _promised(seen: Seen) -> list[Rated]:
    return [rated for rated in seen.board.rated if rated.promised is not None and rated.over_parent is not None]


def _newest_reward(runs: Sequence[Run]) -> dict[str, Any]:
    """The report of the newest reward model; empty before there is one."""
    return next((found for run in runs if (found := (run.report or {}).get("reward"))), {})


PARTS = (
    Part(
        _over_base,
        "Win rate over the base",
        "with 95% intervals; dotted: no better",
        "version",
        "decided votes won",
        lambda seen: [r for r in seen.board.rated if r.over_base],
    ),
    Part(
        _promises,
        "Promised and found",
        "against the version before; below the line people liked it less",
        "promised by the reward model",
        "found by people",
        _promised,
    ),
    Part(
        _calibration,
        CALIBRATION,
        "of the reward model; below the line it is too sure",
        "how sure",
        "how often right",
        lambda seen: seen.calibration,
    ),
    Part(_days, VOTES_A_DAY, "of all kinds", "day", "votes", lambda seen: seen.board.votes_by_day),
)
