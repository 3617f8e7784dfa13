"""`/login`: the form that lets an operator's browser in.

The page looks like the others, and needs neither Gradio nor, but for the button for light or dark, a script.
"""

from __future__ import annotations

import asyncio
from urllib.parse import parse_qs

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from serve.secrets import Secrets
from serve.service import Service
from serve.web.identity import OPERATOR_PAGE, set_session
from serve.web.mark import LIGHT_OR_DARK, MARK, icon

# The colours are those of theme.py and look/common.css; the fonts come with Gradio's pages, where they are mounted.
_STYLE = """
@font-face { font-family: 'IBM Plex Sans'; src: url('/static/fonts/IBMPlexSans/IBMPlexSans-Regular.woff2'); }
@font-face {
  font-family: 'IBM Plex Sans'; font-weight: 700; src: url('/static/fonts/IBMPlexSans/IBMPlexSans-Bold.woff2');
}
:root {
  color-scheme: light dark;
  --ink: light-dark(#1f1d1a, #ece8e1);
  --soft: light-dark(#5f594f, #a59d8f);
  --paper: light-dark(#faf8f4, #161513);
  --surface: light-dark(#fff, #1f1d1a);
  --line: light-dark(#d2cbbd, #3a362f);
  --shade: light-dark(#f0ece4, #272521);
  --accent: light-dark(#1c6b54, #4fa287);
  --link: light-dark(#175645, #82c0a9);
  --bad: light-dark(#a8321f, #ee8b78);
}
* { box-sizing: border-box; }
body { font: 16px/1.6 'IBM Plex Sans', system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0; }
header { display: flex; align-items: center; max-width: 1180px; margin: 0 auto; padding: 18px 24px 14px; }
.brand {
  display: flex; align-items: center; gap: 9px; color: var(--ink); text-decoration: none;
  font-weight: 700; font-size: 21px; line-height: 1; letter-spacing: -.02em;
}
.brand svg { width: 27px; height: 27px; color: var(--accent); }
.look {
  display: grid; place-items: center; width: 32px; height: 32px; margin-left: auto; padding: 0; border: 0;
  border-radius: 50%; background: none; color: var(--soft); cursor: pointer;
}
.look:hover { color: var(--ink); background: var(--shade); }
.look svg { width: 19px; height: 19px; }
main { max-width: 26rem; margin: 10vh auto 0; padding: 0 24px; }
h1 { font-size: 20px; line-height: 1.3; letter-spacing: -.01em; margin: 0 0 14px; }
form {
  display: grid; gap: 6px; padding: 20px 22px; margin: 0 0 18px;
  background: var(--surface); border: 1px solid var(--line); border-radius: 16px;
}
input, form button { font: inherit; width: 100%; padding: 9px 14px; border-radius: 11px; }
input { margin-bottom: 10px; color: inherit; background: var(--paper); border: 1px solid var(--line); }
form button { border: 0; color: #fff; background: #1c6b54; font-weight: 700; cursor: pointer; }
form button:hover { background: #175645; }
p { margin: 0 0 12px; color: var(--soft); font-size: 14px; }
a { color: var(--link); text-underline-offset: 3px; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
[role=alert] { color: var(--bad); }
"""
# As look/common.js has it: as the system, unless this browser was told otherwise.
_SCRIPT = """
const LOOK = 'hustings-look', system = matchMedia('(prefers-color-scheme: dark)');
const wear = () => document.documentElement.style.colorScheme = localStorage.getItem(LOOK) ?? 'light dark';
wear();
document.addEventListener('click', event => {
  if (!event.target.closest('.look')) return;
  const dark = (localStorage.getItem(LOOK) ?? (system.matches ? 'dark' : 'light')) !== 'dark';
  dark === system.matches ? localStorage.removeItem(LOOK) : localStorage.setItem(LOOK, dark ? 'dark' : 'light');
  wear();
});
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
        return HTMLResponse(_page(""))

    @router.post("/login")
    async def login(request: Request) -> Response:
        fields = parse_qs((await request.body()).decode("utf-8", "replace"))
        if not await is_let_in(service, secrets, fields.get("token", [""])[0].strip(), OPERATOR_PAGE):
            return HTMLResponse(_page(_WRONG), 401)
        response = RedirectResponse("/operator", 303)
        set_session(response, secrets, request)
        return response

    return router


async def is_let_in(service: Service, secrets: Secrets, token: str, who: str) -> bool:
    """Whether this is the operator token, which is logged either way; a wrong one takes a while."""
    right = secrets.is_operator_token(token)
    if right:
        await service.log_deed(who, "logged in")
    else:
        await asyncio.to_thread(service.store.log_failed_login)
        await asyncio.sleep(_WRONG_SECONDS)
    return right


def _page(problem: str) -> str:
    """The form, below what was wrong, which is HTML."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Operator login · Hustings</title>
{icon()}
<style>{_STYLE}</style>
<noscript><style>.look {{ display: none; }}</style></noscript>
<script>{_SCRIPT}</script>
</head>
<body>
<header><a class="brand" href="/">{MARK}<span>Hustings</span></a>{LIGHT_OR_DARK}</header>
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
