"""Server-sent events, and requests whose client may leave before the end."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve.live import Event, LiveAnswers

PING_SECONDS = 15.0
"""A proxy closes what is silent for long, and a client that left is noticed when something is sent."""


def sse(data: Any, event: str | None = None) -> str:
    """One server-sent event; `data` as JSON unless it is text. In ASCII: some clients end lines at U+2028."""
    text = data if isinstance(data, str) else json.dumps(data)
    return (f"event: {event}\n" if event else "") + f"data: {text}\n\n"


def event_stream(live: LiveAnswers, chunks: AsyncIterator[str], status: int = 200) -> StreamingResponse:
    """Send the chunks; a client that leaves ends the generation, unless a vote has chosen what shall finish."""
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return _Watched(live, chunks, status, headers)


class _Watched(StreamingResponse):
    """Ends the generation when it ends, even where the client had left before the first chunk was asked for."""

    media_type = "text/event-stream"

    def __init__(self, live: LiveAnswers, chunks: AsyncIterator[str], status: int, headers: dict[str, str]) -> None:
        super().__init__(chunks, status, headers)
        self._live = live

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._live.abandon()


async def events_with_pings(live: LiveAnswers) -> AsyncIterator[Event | None]:
    """The answers' events; None whenever there was none for a while."""
    events = live.events()
    pending = asyncio.ensure_future(anext(events, None))
    try:
        while True:
            done, _ = await asyncio.wait({pending}, timeout=PING_SECONDS)
            if not done:
                yield None
            elif (event := pending.result()) is None:
                return
            else:
                yield event
                pending = asyncio.ensure_future(anext(events, None))
    finally:
        pending.cancel()


async def wait_or_cancel(live: LiveAnswers, request: Request) -> None:
    """Wait for the answers to be complete; a client that leaves ends the generation, unless a vote came."""
    complete = asyncio.ensure_future(live.wait())
    gone = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({complete, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not complete.done():
            live.abandon()
        await complete
    finally:
        gone.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
