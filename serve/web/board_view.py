"""What the board draws: is it getting better, and can one trust that? Pure functions; all text is escaped here."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from serve.board import Board, Rated
from serve.feedback.statistics import Interval
from serve.records import BASE_VERSION, Run, Version, version_name
from serve.web.theme import table

GREEN, SOFT = "#2b856a", "#8d8677"
EVEN: dict[str, Any] = {"color": SOFT, "dash": "dot", "width": 1}
DAYS = 30
"""So many days of votes are drawn, to the newest."""


@dataclass(frozen=True)
class Seen:
    """What the figures are drawn of."""

    board: Board
    calibration: Sequence[Mapping[str, float]]
    """Of the newest reward model: how sure it was, how often it was right, over how many pairs."""


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
    """How far votes and reward model can be trusted: a card each."""
    report = _newest_reward(runs)
    accuracy: dict[str, Any] = report.get("accuracy") or {}
    cards = [
        _card(
            "Reward model is right on",
            _interval(Interval(accuracy["value"], accuracy["low"], accuracy["high"]) if accuracy else None),
            f"of {accuracy.get('comparisons', 0):.0f} comparisons it had not seen." if accuracy else "No run yet.",
        ),
        _card("Voters agree on", _interval(board.agreement), "of answers that several people judged. A coin: a third."),
        _card("Voters repeat themselves on", _interval(board.consistency), "of answers that they were shown again."),
        _card("What stands first wins", _interval(board.first_won), "of decided votes. Without a bias: half."),
        _card("The longer answer wins", _interval(board.longer_won), "of decided votes."),
    ]
    return f'<div class="cards five">{"".join(cards)}</div>'


def _card(name: str, figure: str, words: str) -> str:
    return f'<div class="card"><h2>{name}</h2><div class="figure">{figure}</div><p>{words}</p></div>'


def _interval(share: Interval | None) -> str:
    return "–" if share is None else f"{share.value:.0%} <small>{share.low:.0%} to {share.high:.0%}</small>"


def rates(board: Board, versions: Sequence[Version]) -> str:
    """By version: what people say, what the reward model promised, and what the checks measured."""
    measured = {v.number: ((v.report or {}).get("gate") or {}).get("new") or {} for v in versions}
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
    return table(heads, rows) if rows else ""


def _share(share: Interval | None) -> str:
    return "–" if share is None else f"{share.value:.0%} <small>({share.low:.0%} to {share.high:.0%})</small>"


def _number(figures: dict[str, Any], name: str, template: str) -> str:
    return "–" if figures.get(name) is None else template.format(figures[name])


def figures(board: Board, runs: Sequence[Run]) -> go.Figure | None:
    """Win rates over the base by version, promise against finding, the reward model's calibration, and votes a day.

    None before there are any.
    """
    seen = Seen(board, _newest_reward(runs).get("calibration") or [])
    drawn = [(draw, title) for draw, title, there in PARTS if there(seen)]
    if not drawn:
        return None
    figure = make_subplots(1, len(drawn), subplot_titles=[title for _, title in drawn])
    for column, (draw, _) in enumerate(drawn, start=1):
        draw(figure, column, seen)
    figure.update_layout(
        height=280,
        showlegend=False,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        margin={"l": 48, "r": 18, "t": 44, "b": 40},
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.14)", zeroline=False)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.18)", zeroline=False)
    figure.update_annotations(font_size=14, yshift=6)
    return figure


def _over_base(figure: go.Figure, column: int, seen: Seen) -> None:
    rated = sorted((r for r in seen.board.rated if r.over_base is not None), key=lambda r: r.version)
    shares = [r.over_base for r in rated if r.over_base is not None]
    figure.add_hline(0.5, line=EVEN, row=1, col=column)
    figure.add_trace(
        go.Scatter(
            x=[f"v{r.version}" for r in rated],
            y=[share.value for share in shares],
            error_y=_bars(shares),
            mode="markers",
            marker={"color": GREEN, "size": 10},
            hovertemplate="%{x}: %{y:.0%}<extra></extra>",
        ),
        row=1,
        col=column,
    )
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", row=1, col=column)


def _promises(figure: go.Figure, column: int, seen: Seen) -> None:
    """Below the diagonal the reward model was pleased and people were not."""
    rated = _promised(seen)
    promised = [r.promised for r in rated if r.promised is not None]
    found = [r.over_parent for r in rated if r.over_parent is not None]
    figure.add_trace(
        go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=EVEN, hoverinfo="skip"),
        row=1,
        col=column,
    )
    figure.add_trace(
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
        row=1,
        col=column,
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(range=[0, 1.02], tickformat=".0%", row=1, col=column)


def _days(figure: go.Figure, column: int, seen: Seen) -> None:
    votes, last = seen.board.votes_by_day, max(seen.board.votes_by_day)
    shown = min(DAYS, (last - min(votes)).days + 1)
    days = [last - timedelta(days=back) for back in reversed(range(shown))]
    counts = [votes.get(day, 0) for day in days]
    bars = go.Bar(x=days, y=counts, marker={"color": GREEN}, hovertemplate="%{x}: %{y}<extra></extra>")
    figure.add_trace(bars, row=1, col=column)
    figure.update_xaxes(tickformat="%-d %b", nticks=5, row=1, col=column)


def _bars(shares: Sequence[Interval]) -> dict[str, Any]:
    return {
        "type": "data",
        "symmetric": False,
        "array": [share.high - share.value for share in shares],
        "arrayminus": [share.value - share.low for share in shares],
        "color": GREEN,
        "thickness": 1.4,
    }


def _calibration(figure: go.Figure, column: int, seen: Seen) -> None:
    """On the diagonal the reward model is as sure as it should be."""
    said, right = ([row[name] for row in seen.calibration] for name in ("said", "right"))
    figure.add_trace(go.Scatter(x=[0.5, 1], y=[0.5, 1], mode="lines", line=EVEN, hoverinfo="skip"), row=1, col=column)
    figure.add_trace(
        go.Scatter(
            x=said,
            y=right,
            mode="lines+markers",
            line={"color": GREEN},
            marker={"size": [6 + min(12, row["pairs"] / 10) for row in seen.calibration]},
            hovertemplate="said %{x:.0%}, right %{y:.0%}<extra></extra>",
        ),
        row=1,
        col=column,
    )
    figure.update_xaxes(range=[0.48, 1.02], tickformat=".0%", row=1, col=column)
    figure.update_yaxes(range=[0, 1.02], tickformat=".0%", row=1, col=column)


def _promised(seen: Seen) -> list[Rated]:
    return [rated for rated in seen.board.rated if rated.promised is not None and rated.over_parent is not None]


def _newest_reward(runs: Sequence[Run]) -> dict[str, Any]:
    """The report of the newest reward model; empty before there is one."""
    return next((found for run in runs if (found := (run.report or {}).get("reward"))), {})


PARTS: tuple[tuple[Callable[[go.Figure, int, Seen], None], str, Callable[[Seen], object]], ...] = (
    (_over_base, "Win rate over the base", lambda seen: [r for r in seen.board.rated if r.over_base]),
    (_promises, "Promised and found", _promised),
    (_calibration, "How sure, how often right", lambda seen: seen.calibration),
    (_days, "Votes a day", lambda seen: seen.board.votes_by_day),
)
"""How each figure is drawn, its title, and whether there is anything to draw."""
