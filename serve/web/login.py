"""`/login`: the form that lets an operator's browser in."""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from serve.secrets import Secrets
from serve.service import Service
from serve.web.identity import set_session

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Operator login · Hustings</title>
<style>
:root {{ color-scheme: light dark }}
:root {{ --ink: #2b2824; --paper: #faf8f4; --line: #d2cbbd; --accent: #1c6b54; --bad: #a8321f }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #f3f0e9; --paper: #1f1d1a; --line: #5f594f; --accent: #4fa287; --bad: #ee8b78 }}
}}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 }}
main {{ max-width: 22rem; margin: 18vh auto 0; padding: 0 1rem }}
h1 {{ font: 600 1.5rem Georgia, serif }}
input, button {{ font: inherit; box-sizing: border-box; width: 100%; padding: .6rem .8rem; border-radius: .5rem }}
input {{ margin: .3rem 0 .8rem; color: inherit; background: transparent; border: 1px solid var(--line) }}
button {{ border: 0; color: #fff; background: #1c6b54; cursor: pointer }}
:focus-visible {{ outline: 2px solid var(--accent); outline-offset: 2px }}
[role=alert] {{ color: var(--bad) }}
</style>
</head>
<body>
<main>
<h1>Operator login</h1>
{problem}
<form method="post" action="/login">
<label for="token">Operator token</label>
<input id="token" name="token" type="password" autocomplete="current-password" required autofocus>
<button type="submit">Log in</button>
</form>
<p>The server printed the token when it first started, unless <code>HUSTINGS_OPERATOR_TOKEN</code> sets it.</p>
<p><a href="/">Back to the chat</a></p>
</main>
</body>
</html>
"""
_WRONG = '<p role="alert">This is not the operator token. Try again.</p>'
_WRONG_SECONDS = 0.5  # for whoever tries many


def create(service: Service, secrets: Secrets) -> APIRouter:
    """The form and what it is sent to."""
    router = APIRouter()

    @router.get("/login")
    async def form(request: Request) -> Response:
        if request.state.operator:
            return RedirectResponse("/operator", 303)
        return HTMLResponse(_PAGE.format(problem=""))

    @router.post("/login")
    async def login(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        if not await is_right(secrets, fields.get("token", [""])[0].strip()):
            return HTMLResponse(_PAGE.format(problem=_WRONG), 401)
        await service.log_deed("operator page", "logged in")
        response = RedirectResponse("/operator", 303)
        set_session(response, secrets, request)
        return response

    return router


async def is_right(secrets: Secrets, token: str) -> bool:
    """Whether this is the operator token; a wrong one takes a while."""
    right = secrets.is_operator_token(token)
    if not right:
        await asyncio.sleep(_WRONG_SECONDS)
    return right
