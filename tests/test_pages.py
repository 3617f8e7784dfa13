"""What the pages are made of, without a browser."""

from __future__ import annotations

import asyncio
import inspect
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from serve.engine import CandidateRequest
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.live import Draft
from serve.policy.adapters import Registry
from serve.service import Service
from serve.settings import Settings
from serve.web import data_tab, operator_page, theme
from serve.web.chat_page import _keeper, _recaller
from tests.fakes import FakeTraining


def test_defaults_of_the_server_are_no_wish_of_ones_own() -> None:
    kept = _keeper(["always", True, 0.8, 1.0, 256])("always", False, 0.8, 0.9, 256)
    assert kept == [None, False, None, 0.9, None]
    recall = _recaller(["never", True, 0.5, 1.0, 512], [(0, 2), (0.05, 1), (1, 1024)])
    assert recall(kept) == ["never", False, 0.5, 0.9, 512]
    assert recall("nonsense") == ["never", True, 0.5, 1.0, 512]
    assert recall(["never", True, -1, 0.01, 1500]) == ["never", True, 0, 0.05, 1024], "the server has narrowed it since"


def test_an_answer_without_words_says_what_became_of_it() -> None:
    draft = Draft("a", None, CandidateRequest(0, 1))
    said = []
    for draft.finish_reason in (None, "stop", "cancelled", "error"):
        said.append(theme.answers(["pane"], [draft])["pane"]["value"])  # type: ignore[list-item]
    assert said == ["…", "(no answer)", "(stopped)", "(broke off)"]


def test_a_table_has_a_name_and_no_head_without_one() -> None:
    drawn = theme.table(("When", ""), [], label="Flagged & excluded")
    assert 'aria-label="Flagged &amp; excluded"' in drawn and "<th aria-label='Actions'></th>" in drawn


def test_every_handler_refuses_whoever_is_not_an_operator(store: Store, folder: DataFolder) -> None:
    registry, settings = Registry(folder, store, base_hash=None), Settings(db=folder.db)
    service = Service(store=store, engine=None, registry=registry, settings=settings)
    built = operator_page.build(service, FakeTraining(store), settings)
    ours = {operator_page.__name__, data_tab.__name__}
    handlers = [fn.fn for fn in built.fns.values() if fn.fn is not None and fn.fn.__module__ in ours]
    assert len(handlers) > 12
    for state in ({"voter": "v", "operator": False}, {"operator": "yes"}, {}):
        request = gr.Request(SimpleNamespace(scope={"state": state}))  # type: ignore[arg-type]
        for handler in handlers:
            with pytest.raises(gr.Error):
                asyncio.run(call(handler, request))


async def call(handler: Any, request: gr.Request) -> None:
    """With the request, and None for everything else."""
    result = handler(*[request if name == "request" else None for name in inspect.signature(handler).parameters])
    if inspect.isasyncgen(result):
        await anext(result)
    else:
        await result
