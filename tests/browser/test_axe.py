"""What a screen reader and a keyboard meet: axe finds nothing serious in what we wrote, and nothing sticks out.

Gradio's own markup has findings that we cannot mend; each is listed in axe_exceptions.json by rule and selector.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
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
    page.wait_for_timeout(100)
    width = page.evaluate("document.documentElement.scrollWidth")
    assert page.viewport_size is not None
    wide = [f"the page is {width} wide"] if width > page.viewport_size["width"] else []
    violations: list[dict[str, Any]] = Axe().run(page).response["violations"]
    return wide + [
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


STILL = """
addEventListener('DOMContentLoaded', () => document.head.insertAdjacentHTML(
  'beforeend', '<style>* { transition: none !important; animation: none !important; }</style>'));
"""
"""Colours are measured, and must not be on their way."""
LOOKS: dict[str, dict[str, Any]] = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 390, "height": 844}, "has_touch": True},
}


LOG = "ppo: update 14 of 24, score 0.91, KL 2.3, 70 tokens, and so on and on\n" * 30
"""Its lines are longer than a phone is wide."""


def log_of(run: int, site: Site) -> None:
    """Let a run have said something."""
    file = site.service.settings.folder.run_log(run)
    file.parent.mkdir(parents=True)
    file.write_text(LOG)


@pytest.fixture(scope="module")
def ended(running: Site) -> None:
    """A run that has ended."""
    run = running.store.create_run("votes", ("reward", "ppo"), {})
    running.store.update_run(run.id, status="rejected", finished=datetime.now(UTC), report={"reasons": ["no better"]})
    log_of(run.id, running)


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.usefixtures("ended")
def test_axe_finds_nothing_serious_on_any_page(look: str, browser: Browser, site: Site) -> None:
    context = browser.new_context(**LOOKS[look])
    context.add_init_script(STILL)
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
        if look != "phone":  # there the side panel is closed
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
        expect(page.locator("#run-log")).to_contain_text("update 14")
        expect(page.get_by_label("Empty value")).to_have_count(0)  # Gradio's plot, until its figure has come
        found["the operator page"] = findings(page)
        run = site.store.create_run("operator", ("reward", "ppo"), {})
        log_of(run.id, site)
        site.store.update_run(run.id, status="running", started=datetime.now(UTC))
        line = {"time": "2026-01-02T03:04:05Z", "stage": "ppo", "progress": 0.6, "eta_seconds": 130.0}
        site.store.add_run_metrics(run.id, [line | {"step": step, "metrics": {"kl": step}} for step in range(3)])
        expect(page.locator("#live")).to_contain_text("60%")
        expect(page.locator("#curves .js-plotly-plot")).to_be_visible()
        expect(page.get_by_label("Empty value")).to_have_count(0)
        found["a run that is on"] = findings(page)
        page.get_by_role("button", name="Compare").click()  # without a prompt
        expect(page.locator("#note .problem")).to_be_visible()
        found["a problem"] = findings(page)
        page.get_by_role("tab", name="Data and log").click()
        expect(page.locator("#found tbody tr").first).to_be_visible()
        expect(page.locator("#demonstrations .empty")).to_be_visible()
        found["the data tab"] = findings(page)
    finally:
        if (active := site.store.active_run()) is not None:
            site.store.update_run(active.id, status="cancelled", finished=datetime.now(UTC))
        context.close()
    assert not any(found.values()), "\n".join(f"{where}: {what}" for where, them in found.items() for what in them)
