"""What programs call by name through `gradio_client`: the chat page's verbs, without its pictures.

    client = gradio_client.Client("http://localhost:7860")
    asked = client.predict("Why is the sky blue?", api_name="/compare")
    client.predict(asked["id"], asked["candidates"][0]["id"], api_name="/vote")

The client keeps the cookie of its first call, so it is one voter. `/api` has all of it, with streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio.events import api as named_endpoint

from serve.errors import HustingsError
from serve.live import LiveComparison
from serve.records import Judgement, Message
from serve.service import Service
from serve.web.api import comparison_json
from serve.web.visitor import voter_of


def register(service: Service) -> None:
    """Add the named endpoints to the Blocks that are open."""

    async def chat(message: str, request: gr.Request) -> str:
        """One answer of what serves, that nobody is asked about."""
        with _words():
            live = await service.answer(voter_of(request), [Message("user", message)])
            await live.wait()
            if live.error:
                raise live.error
            return live.drafts[0].text

    async def compare(message: str, request: gr.Request) -> dict[str, Any]:
        """Two answers to a message, and the id to vote on."""
        with _words():
            live = await service.compare(voter_of(request), [Message("user", message)])
            await live.wait()
            if live.error:
                raise live.error
            return comparison_json(live.comparison)

    async def vote(comparison_id: str, best: str, request: gr.Request) -> dict[str, Any]:
        """Say which candidate is best by its id; or `tie`, `both_bad` or `skip`. Answers who wrote what."""
        with _words():
            voter = voter_of(request)
            comparison = await service.comparison(comparison_id, voter)
            receipt = await service.vote(voter, comparison_id, _judgement(best, [c.id for c in comparison.candidates]))
            return {"id": receipt.id, "revealed": receipt.revealed, "continues_with": receipt.continues_with}

    async def next_to_judge(request: gr.Request) -> dict[str, Any]:
        """What is next in the queue; empty when all is judged."""
        with _words():
            found = await service.next_to_judge(voter_of(request))
            if isinstance(found, LiveComparison):
                await found.wait()
                found = found.comparison
            return {} if found is None else comparison_json(found)

    for verb in (chat, compare, vote, next_to_judge):
        named_endpoint(verb, api_name=verb.__name__, queue=False)


@contextmanager
def _words() -> Iterator[None]:
    """Errors in words that reach a caller of Gradio's."""
    try:
        yield
    except HustingsError as error:
        raise gr.Error(str(error)) from error


def _judgement(best: str, candidates: list[str]) -> Judgement:
    if best in ("tie", "both_bad", "skip"):
        return Judgement(verdict=best)  # type: ignore[arg-type]
    others = tuple(candidate for candidate in candidates if candidate != best)
    return Judgement(ranking=((best,), others))
