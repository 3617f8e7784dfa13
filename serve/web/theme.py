"""How all pages look: one theme, light and dark, with fonts that the server brings along.

`mount_options(page)` goes to `gradio.mount_gradio_app`, for the theme, styles and script of a page are set where it is
mounted. The style sheets and scripts lie in look/; colours are named once, at the top of common.css.
"""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, Literal, ParamSpec

import gradio as gr

from serve.errors import HustingsError
from serve.live import Draft
from serve.records import Answer
from serve.web.mark import LIGHT_OR_DARK, MARK, icon

Update = dict[Any, Any]
"""What a handler changes of a page: component → its update."""
P = ParamSpec("P")

_LOOK = Path(__file__).parent / "look"
_INK = gr.themes.Color(
    name="ink",
    c50="#faf8f4",
    c100="#f3f0e9",
    c200="#e5e0d5",
    c300="#d2cbbd",
    c400="#a59d8f",
    c500="#7d766a",
    c600="#5f594f",
    c700="#47423b",
    c800="#2b2824",
    c900="#1f1d1a",
    c950="#161513",
)
_BALLOT = gr.themes.Color(
    name="ballot",
    c50="#eef7f3",
    c100="#d8ece4",
    c200="#b2d9ca",
    c300="#82c0a9",
    c400="#4fa287",
    c500="#2b856a",
    c600="#1c6b54",
    c700="#175645",
    c800="#144538",
    c900="#11392f",
    c950="#08211b",
)

TICK = 0.07
"""Seconds between two updates of what is being written: about 14 a second."""
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "\\[", "right": "\\]", "display": True},
]
"""Where formulas begin and end; one dollar alone is a price."""

SWITCH_SHORTCUTS = "on => { document.body.classList.toggle('no-shortcuts', !on); return []; }"


def theme() -> gr.themes.Base:
    """Paper and ink, with the green of a ballot box for what can be acted on."""
    return gr.themes.Base(
        primary_hue=_BALLOT,
        secondary_hue=_BALLOT,
        neutral_hue=_INK,
        radius_size=gr.themes.sizes.radius_lg,
        font=(
            gr.themes.LocalFont("IBM Plex Sans", weights=(400, 700)),  # Gradio's 600 lacks most letters
            "system-ui",
            "sans-serif",
        ),
        font_mono=(gr.themes.LocalFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="#ece8e1",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_50",
        background_fill_secondary_dark="*neutral_950",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#3a362f",
        block_background_fill="*background_fill_primary",
        block_border_width="0px",
        block_shadow="none",
        block_label_text_color="*body_text_color_subdued",
        block_title_text_weight="600",
        input_background_fill="white",
        input_background_fill_dark="*neutral_900",
        input_border_color="*neutral_300",
        input_border_color_dark="#3a362f",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_border_width="1px",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_secondary_background_fill="white",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_text_color="*neutral_900",
        button_secondary_text_color_dark="#ece8e1",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#47423b",
        button_border_width="1px",
        button_large_text_weight="600",
        button_small_text_weight="600",
        link_text_color="*primary_700",
        link_text_color_visited="*primary_700",
        link_text_color_active="*primary_700",
        link_text_color_hover="*primary_600",
        link_text_color_dark="*primary_300",
        link_text_color_visited_dark="*primary_300",
        link_text_color_active_dark="*primary_300",
        link_text_color_hover_dark="*primary_200",
        slider_color="*primary_600",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_600",
        checkbox_border_color_selected="*primary_600",
        checkbox_border_color_selected_dark="*primary_600",
    )


def mount_options(page: Literal["chat", "vote", "you", "operator"]) -> dict[str, Any]:
    """How a page looks and moves, for `mount_gradio_app`: what all pages share, then the page's own."""
    css, script = (
        "\n".join((_LOOK / f"{part}.{kind}").read_text(encoding="utf-8") for part in ("common", page))
        for kind in ("css", "js")
    )
    head = f"{icon()}<script>{script}</script>"
    return {"theme": theme(), "css": css, "head": head, "footer_links": []}


def masthead(motto: str, aside: str = "") -> str:
    """The top of a page: the mark, the name, what the page is for; at the right `aside` (HTML), and light or dark."""
    return (
        f'<header class="masthead"><a class="brand" href="/">{MARK}<span>Hustings</span></a>'
        f'<h1 class="motto">{html.escape(motto)}</h1>{aside}{LIGHT_OR_DARK}</header>'
    )


def section(title: str, aside: str = "") -> str:
    """The head of a part of a page."""
    small = f"<small>{html.escape(aside)}</small>" if aside else ""
    return f'<h2 class="section">{html.escape(title)}{small}</h2>'


def note(text: str, *, problem: bool = False) -> str:
    """One line for the reader; `text` is HTML. Empty text shows nothing.

    The page's script reads it out by a region that is always there: one that comes with its text is often not read.
    """
    return f'<div class="note{" problem" * problem}"><span>{text}</span></div>' if text else ""


def problem(error: HustingsError, more: str = "") -> str:
    """An error in words, and `more`, which is HTML."""
    text = html.escape(str(error))
    return note(text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".") + more, problem=True)


def telling(note: gr.HTML) -> Callable[[Callable[P, Awaitable[Update]]], Callable[P, Awaitable[Update]]]:
    """A decorator for handlers: what they refuse is told in `note`, and the rest of the page stays."""

    def told(handler: Callable[P, Awaitable[Update]]) -> Callable[P, Awaitable[Update]]:
        @wraps(handler)  # Gradio reads its signature
        async def wrapped(*args: P.args, **kwargs: P.kwargs) -> Update:
            try:
                return await handler(*args, **kwargs)
            except HustingsError as error:
                return {note: problem(error)}

        return wrapped

    return told


def letter(place: int) -> str:
    """What an answer is called by where it stands: A, B, …; imported votes may be on more than there are letters."""
    return chr(ord("A") + place) if place < 26 else str(place + 1)


def empty(words: str, *, framed: bool = True) -> str:
    """What to do where there is nothing yet; `words` is HTML."""
    return f'<div class="{"empty" if framed else "note"}"><span>{words}</span></div>'


def table(heads: Sequence[str], rows: Sequence[str], *, label: str) -> str:
    """Rows of HTML under their heads; where they are wider than the page, by keyboard too, they scroll."""
    head = "".join(f"<th scope='col'>{name}</th>" if name else "<th aria-label='Actions'></th>" for name in heads)
    whole = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<div class="list" tabindex="0" role="group" aria-label="{html.escape(label)}">{whole}</div>'


def answers(panes: Sequence[gr.Markdown], written: Sequence[Answer | Draft]) -> dict[Any, Any]:
    """What panes say, as an update; one that is still being written shows a cursor. Nothing written empties them."""
    if not written:
        return dict.fromkeys(panes, "")
    return {
        pane: gr.update(value=_words(a), elem_classes=["answer"] if a.finish_reason else ["answer", "writing"])
        for pane, a in zip(panes, written, strict=True)
    }


def _words(answer: Answer | Draft) -> str:
    """An answer's text, or what became of one that has none."""
    if answer.text.strip():
        return answer.text
    without = {
        None: "…",
        "stop": "(no answer)",
        "length": "(no answer)",
        "cancelled": "(stopped)",
        "error": "(broke off)",
    }
    return without[answer.finish_reason]


def when(moment: datetime | None) -> str:
    """A moment as HTML; the page's script shows it in the browser's zone."""
    if moment is None:
        return "–"
    return f'<time datetime="{moment.isoformat()}">{moment:%Y-%m-%d %H:%M} UTC</time>'
