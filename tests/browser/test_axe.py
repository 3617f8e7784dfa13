"""What a screen reader and a keyboard meet: axe finds nothing serious in what we wrote.

Gradio's own markup has findings that we cannot mend; each is listed in axe_exceptions.json by rule and selector.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import TOKEN, Site, open_chat, say
from tests.browser.test_chat_page import QUESTION, asked

pytestmark = pytest.mark.browser

EXCEPTIONS: list[dict[str, str]] = json.loads((Path(__file__).parent / "axe_exceptions.json").read_text())
SERIOUS = {"serious", "critical"}


def findings(page: Page) -> list[str]:
    """Rule, selector and markup of each serious finding that is no known exception."""
    page.wait_for_timeout(400)  # transitions
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return [
        f"{violation['id']} | {' '.join(map(str, node['target']))} | {node['html'][:160]}"
        for violation in violations
        if violation["impact"] in SERIOUS
        for node in violation["nodes"]
        if not any(_is(exception, violation["id"], node) for exception in EXCEPTIONS)
    ]


def _is(exception: dict[str, str], rule: str, node: dict[str, Any]) -> bool:
    return exception["rule"] == rule and any(exception["selector"] in str(target) for target in node["target"])


def logged_in(page: Page, site: Site) -> None:
    page.goto(site.url + "/login")
    page.get_by_label("Operator token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#glance p").first).to_be_visible()


@pytest.mark.parametrize("look", ["light", "dark"])
def test_axe_finds_nothing_serious_on_any_page(look: Any, browser: Browser, site: Site) -> None:
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme=look)
    page = context.new_page()
    found: dict[str, list[str]] = {}
    try:
        page.goto(site.url + "/")
        expect(page.locator("#consent")).to_be_visible()
        found["a newcomer"] = findings(page)
        open_chat(page, site)
        found["an empty chat"] = findings(page)
        say(page, QUESTION)
        asked(page)
        found["two answers"] = findings(page)
        page.click("#vote-a")
        expect(page.locator("#undo")).to_be_visible()
        page.get_by_role("button", name="How it answers").click()
        found["after a vote"] = findings(page)
        page.goto(site.url + "/vote")
        expect(page.locator(".ranker:visible").first).to_be_visible()
        found["the vote page"] = findings(page)
        page.goto(site.url + "/you")
        expect(page.locator("#my-votes tbody tr").first).to_be_visible()
        found["yours"] = findings(page)
        page.goto(site.url + "/login")
        found["the login"] = findings(page)
        logged_in(page, site)
        found["the operator page"] = findings(page)
        page.get_by_role("tab", name="Data and log").click()
        expect(page.locator("#found tbody tr").first).to_be_visible()
        found["the data tab"] = findings(page)
    finally:
        context.close()
    assert not any(found.values()), "\n".join(f"{where}: {what}" for where, them in found.items() for what in them)
