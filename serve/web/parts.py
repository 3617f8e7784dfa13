"""What several pages are built of: a pane's answer, the newcomer's question, a better answer, a word after the vote.

Each is drawn into the page that is open.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import gradio as gr

from serve.records import Due
from serve.web import theme

CONSENT = (
    "<h2>Before you begin</h2><p>What you write and how you vote is kept on this server, and the assistant learns from "
    'it; you can see, download and delete it at any time under <a href="/you">Yours</a>. May other voters be shown '
    "prompts of yours with what came before them, without a name, to judge the answers?</p>"
)
"""What newcomers are told, and asked."""
REASONS = ("More correct", "Clearer", "Better length", "Kinder", "Safer")
"""Why one answer is better: what a click says."""


@dataclass(frozen=True)
class Consent:
    """The card that newcomers see before anything else; hidden at first."""

    card: gr.Column
    agree: gr.Button
    private: gr.Button


@dataclass(frozen=True)
class Editor:
    """Where somebody writes what the answer should have been; hidden at first."""

    card: gr.Column
    words: gr.Textbox
    save: gr.Button
    cancel: gr.Button


@dataclass(frozen=True)
class Afterthought:
    """What may be said of the last vote, in the row that is open."""

    strength: gr.Radio
    reasons: gr.CheckboxGroup


def answer(elem_id: str) -> gr.Markdown:
    """An answer as a model wrote it, which nobody may trust."""
    return gr.Markdown(
        elem_id=elem_id, elem_classes="answer", latex_delimiters=theme.LATEX, sanitize_html=True, line_breaks=True
    )


def until_it_learns(due: Due | None) -> str:
    """When the assistant learns next: after how many more votes, or what keeps it from it; None while it learns."""
    if due is None:
        return "It is learning from the votes so far."
    missing = due.min_new_votes - due.new_votes
    if missing > 0:
        return f"It learns after {missing} more vote{'s' * (missing > 1)}."
    if due.next_by is None:
        return "There are enough new votes: it learns from them once its newest version has been tried out."
    if due.next_by > datetime.now(UTC):
        return "There are enough new votes, but learning broke off: it tries again later."
    return "There are enough new votes: it is about to learn from them."


def consent() -> Consent:
    """The newcomer's question."""
    with gr.Column(elem_id="consent", visible=False) as card:
        gr.HTML(CONSENT)
        with gr.Row(elem_classes="row"):
            agree = gr.Button("Yes, share them", variant="primary", size="sm", elem_id="agree")
            private = gr.Button("No, keep them to myself", size="sm", elem_id="private")
    return Consent(card, agree, private)


def editor(info: str) -> Editor:
    """The editor; `info` says what becomes of the words."""
    with gr.Column(elem_id="editor", visible=False) as card:
        words = gr.Textbox(label="The answer it should have given", info=info, lines=6, max_lines=20, elem_id="words")
        with gr.Row(elem_classes="row"):
            save = gr.Button("Keep this answer", variant="primary", size="sm", elem_id="save")
            cancel = gr.Button("Cancel", size="sm", elem_id="cancel")
    return Editor(card, words, save, cancel)


def afterthought() -> Afterthought:
    """How much better it was, and why."""
    strength = gr.Radio([(str(n), n) for n in range(1, 6)], label="How much better? 5 is most", elem_id="strength")
    return Afterthought(strength, gr.CheckboxGroup(list(REASONS), label="Why?", elem_id="reasons"))
