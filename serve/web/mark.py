"""The mark, and the button for light or dark: at the top of all pages, also of the login, which does without Gradio."""

from __future__ import annotations

from urllib.parse import quote

MARK = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="1.8" stroke-linecap="round"'
    ' stroke-linejoin="round" aria-hidden="true"><path d="M3 13h18v7.2a.8.8 0 0 1-.8.8H3.8a.8.8 0 0 1-.8-.8z"/>'
    '<path d="M8 13V4a1 1 0 0 1 1-1h6a1 1 0 0 1 1 1v9"/><path d="m10 7.6 1.5 1.5L14.2 6"/><path d="M7 17h10"/></svg>'
)
LIGHT_OR_DARK = (
    '<button type="button" class="look" aria-label="Light or dark" title="Light or dark">'
    '<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="1.8">'
    '<circle cx="12" cy="12" r="8"/><path d="M12 4a8 8 0 0 1 0 16z" fill="currentColor"/></svg></button>'
)


def icon() -> str:
    """The mark as a page's icon."""
    drawn = MARK.replace("currentColor", "#1c6b54").replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"')
    return f'<link rel="icon" href="data:image/svg+xml,{quote(drawn)}">'
