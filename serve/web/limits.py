"""How much a request may bring."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 2 * 2**20
"""Largest body of a request."""
IMPORT_BYTES = 64 * 2**20
"""Largest dataset taken in at once."""
_IMPORT = "/api/import"


class BodyLimit:
    """A pure-ASGI layer that stops reading a body where it becomes too large.

    It counts what is read, so a request that is refused for its sender is refused for that, whatever its size.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = left = IMPORT_BYTES if scope["path"] == _IMPORT else BODY_BYTES

        async def limited() -> Message:
            nonlocal left
            message = await receive()
            left -= len(message.get("body", b""))
            if left < 0:
                raise HTTPException(413, f"this has more than {limit >> 20} MiB, the most at once; send less")
            return message

        await self._app(scope, limited, send)
