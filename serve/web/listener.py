"""What listens: HTTP servers that leave signals alone, and what answers before the application is built."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import uvicorn
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

_PROGRAMS = ("/health", "/api", "/v1", "/metrics")
GRACE_SECONDS = 5
"""How long a stopping server lets open requests finish."""
IDLE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx: 5), or a request may meet a connection that is just closing."""


class LocalOperator:
    """Marks requests from the owner-only socket: whoever could open it owns the data anyway."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on, marked."""
        await self._app({**scope, "hustings.local_operator": True}, receive, send)


class Entrance:
    """What listens from the first moment. Programs are told to try again; pages wait, so an early browser just loads.

    The API opens first: Gradio takes seconds to import, and answering needs none of it.
    """

    def __init__(self) -> None:
        self._api: ASGIApp | None = None
        self._all: ASGIApp | None = None
        self._opened = asyncio.Event()

    def open_api(self, app: ASGIApp) -> None:
        """From now on programs are answered."""
        self._api = app

    def open(self, app: ASGIApp) -> None:
        """From now on everything is."""
        self._all = app
        self._opened.set()

    def close(self) -> None:
        """Send away what still waits for the pages."""
        if self._all is None:
            self.open(_try_again("the server is stopping"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand on to what there is."""
        app = self._all
        if app is None and scope["path"].startswith(_PROGRAMS):
            app = self._api or _try_again("the server is starting")
        elif app is None:
            await self._opened.wait()
            app = self._all
        assert app is not None
        await app(scope, receive, send)


def _try_again(why: str) -> JSONResponse:
    error = {"code": "unavailable", "message": f"{why}; try again in a few seconds"}
    return JSONResponse({"error": error}, status_code=503, headers={"Retry-After": "1"})


class HttpServer(uvicorn.Server):
    """uvicorn that leaves signals to app.py, which has more to stop than one listener."""

    def __init__(self, app: ASGIApp) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=GRACE_SECONDS,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        """Nothing to capture."""
        yield
