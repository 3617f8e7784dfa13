"""Who is asking: one pure-ASGI layer around everything, pages and mounts included.

A voter is a signed cookie. An operator is a Bearer token, a session cookie got by logging in with it, or whoever can
open the owner-only socket. Gradio's own sessions identify nobody: their ids are chosen by the client.
"""

from __future__ import annotations

import hmac
import secrets as random_source
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import Forbidden, HustingsError, Unauthorized
from serve.secrets import Secrets
from serve.web.faults import error_response

VOTER_COOKIE = "hustings_voter"
OPERATOR_COOKIE = "hustings_operator"
LOCAL_OPERATOR = "hustings.local_operator"
"""A key of the ASGI scope, set to True by the owner-only socket's listener."""

_VOTER_SECONDS = 400 * 24 * 3600  # the longest that browsers keep a cookie
_SESSION_SECONDS = 7 * 24 * 3600
_PAGES = frozenset({"/", "/vote", "/vote/", "/you", "/you/", "/operator", "/operator/", "/login", "/config"})
"""`/config` is where `gradio_client` begins: it keeps the cookies of that answer."""
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# Gradio's pages have inline scripts and build functions from text: this policy stops loads from outside, nothing more.
_CONTENT_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
_SECURITY_HEADERS = {
    "Content-Security-Policy": _CONTENT_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
}


class Identity:
    """Sets `state.voter` and `state.operator` of every request, and refuses writes that come from other sites.

    `state.voter` is kept in a cookie from the first page, `/api` or `/v1` call on. Other calls without the cookie have
    None: a page's event from a browser that keeps no cookies would be a new voter's each time.
    """

    def __init__(self, app: ASGIApp, secrets: Secrets) -> None:
        self._app = app
        self._secrets = secrets

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        cookies = cookie_parser(headers.get("cookie", ""))
        voter = self._secrets.unsign(cookies.get(VOTER_COOKIE, ""), "voter")
        minted = None
        if voter is None and _keeps_voters(scope):
            voter = random_source.token_urlsafe(16)
            minted = _cookie(VOTER_COOKIE, self._secrets.sign(voter, "voter"), _VOTER_SECONDS, scope)

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                out = MutableHeaders(scope=message)
                for name, value in _SECURITY_HEADERS.items():
                    out.setdefault(name, value)
                if minted is not None:
                    out.append("set-cookie", minted)
            await send(message)

        try:
            if scope.get("method") not in _SAFE_METHODS and _is_foreign(headers):
                raise Forbidden("this came from another site; open Hustings itself and try again there")
            operator = self._is_operator(scope, headers, cookies)
        except HustingsError as error:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            else:
                await error_response(error)(scope, receive, answer)
            return
        scope.setdefault("state", {}).update(voter=voter, operator=operator)
        await self._app(scope, receive, answer)

    def _is_operator(self, scope: Scope, headers: Headers, cookies: dict[str, str]) -> bool:
        if scope.get(LOCAL_OPERATOR) is True:
            return True
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            if self._secrets.is_operator_token(token.strip()):
                return True
            if not _is_under(scope["path"], "/v1"):  # the stock OpenAI client always sends some key
                raise Unauthorized("this is not the operator token; the server printed it when it first started")
        return is_session(self._secrets, cookies.get(OPERATOR_COOKIE, ""))


class OperatorsOnly:
    """An ASGI application that only operators reach; a browser is sent to the login page."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["state"]["operator"]:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "GET" and "text/html" in Headers(scope=scope).get("accept", ""):
            await RedirectResponse("/login", 303)(scope, receive, send)
        else:
            await error_response(_NOT_OPERATOR)(scope, receive, send)


def guarded(check: Callable[[Request], Awaitable[None]]) -> type[APIRoute]:
    """A route that runs `check` before the body is read: who may not ask learns nothing of what would be valid."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def checked(request: Request) -> Response:
                await check(request)
                return await handle(request)

            return checked

    return GuardedRoute


async def require_operator(request: Request) -> None:
    """A check for `guarded`."""
    if not request.state.operator:
        raise _NOT_OPERATOR


OPERATOR_PAGE = "operator page"
"""Who did what is done on the operator's pages, for the log."""


async def door(request: Request) -> str:
    """By which way an operator came, for the log: `command line`, `operator page`, or `operator` with the token."""
    if request.scope.get(LOCAL_OPERATOR) is True:
        return "command line"
    bearer = request.headers.get("authorization", "").lower().startswith("bearer ")  # not a proxy's password
    return "operator" if bearer else OPERATOR_PAGE


def set_session(response: Response, secrets: Secrets, request: Request) -> None:
    """Log this browser in as an operator."""
    expiry = int(time.time()) + _SESSION_SECONDS
    value = secrets.sign(f"{expiry}-{secrets.fingerprint}", "operator")
    response.headers.append("set-cookie", _cookie(OPERATOR_COOKIE, value, _SESSION_SECONDS, request.scope))


def end_session(response: Response, request: Request) -> None:
    """Log this browser out."""
    response.headers.append("set-cookie", _cookie(OPERATOR_COOKIE, "", 0, request.scope))


def forget_voter(response: Response, request: Request) -> None:
    """Take the voter's cookie away; the next call makes another voter."""
    response.headers.append("set-cookie", _cookie(VOTER_COOKIE, "", 0, request.scope))


def is_session(secrets: Secrets, cookie: str) -> bool:
    """Whether an operator's session is ours, not over, and of the token that holds now."""
    expiry, _, fingerprint = (secrets.unsign(cookie, "operator") or "0-").partition("-")
    return int(expiry) > time.time() and hmac.compare_digest(fingerprint, secrets.fingerprint)


_NOT_OPERATOR = Unauthorized("operators only: send `Authorization: Bearer TOKEN`, or log in at /login")


def _keeps_voters(scope: Scope) -> bool:
    path = scope["path"]
    return (scope.get("method") == "GET" and path in _PAGES) or _is_under(path, "/api") or _is_under(path, "/v1")


def _is_under(path: str, top: str) -> bool:
    return path == top or path.startswith(top + "/")


def _is_foreign(headers: Headers) -> bool:
    """Whether a browser says that another site's page made this request. Programs say nothing and pass."""
    if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return True
    origin = headers.get("origin")
    # A foreign page cannot set X-Forwarded-Host without a preflight; a proxy that rewrites Host does set it.
    ours = {headers.get("host", "").lower(), headers.get("x-forwarded-host", "").lower()} - {""}
    return origin is not None and origin.lower().partition("://")[2] not in ours


def _cookie(name: str, value: str, seconds: int, scope: Scope) -> str:
    secure = "; Secure" if scope.get("scheme") == "https" else ""
    return f"{name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Lax{secure}"
