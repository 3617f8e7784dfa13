"""Who is behind a call of Gradio's: the layer around the pages has found out, and put it into the request's state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import gradio as gr

from serve.errors import Unauthorized

View = tuple[str, str | None]


def voter_of(request: gr.Request) -> str:
    """Whoever the signed cookie names; never the session hash, which the browser chooses. Raises Unauthorized."""
    state = request.request.scope.get("state", {}) if request.request else {}
    voter = state.get("voter")
    if not isinstance(voter, str):
        raise Unauthorized("This browser has no cookie of ours yet. Allow cookies, and reload the page.")
    return voter


def view_of(request: gr.Request) -> View:
    """Whose page, and which of them: only to know which page has turned away, never who is asking."""
    return voter_of(request), request.session_hash


class Views:
    """What each open page watches: one thing at a time, until it turns away. Belongs to one event loop."""

    def __init__(self) -> None:
        self._watched: dict[View, object] = {}

    def leave(self, view: View) -> None:
        """Watch nothing any more."""
        self._watched.pop(view, None)

    @contextmanager
    def watch(self, view: View) -> Iterator[Callable[[], bool]]:
        """Let a page watch this, and nothing else any more. Yields whether it still does."""
        token = self._watched[view] = object()
        try:
            yield lambda: self._watched.get(view) is token
        finally:
            if self._watched.get(view) is token:
                del self._watched[view]


def operators_only(request: gr.Request) -> None:
    """Raises `gr.Error` unless the layer around the pages found an operator's session or token."""
    state = request.request.scope.get("state", {}) if request.request else {}
    if state.get("operator") is not True:
        raise gr.Error("Your session is over. Log in again at /login.")
