"""What a screen reader and a keyboard meet: axe finds nothing serious in what we wrote, and nothing sticks out.

Gradio's own markup has findings that we cannot mend; each is listed in axe_exceptions.json by rule and selector.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import QUESTION, Site, asked, breathe, log_in, open_chat, say
from tests.scenes import compare, prefer

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


@dataclass
class Visit:
    """Somebody who comes with a browser of some look, and what axe found where."""

    page: Page
    look: str
    found: dict[str, list[str]] = field(default_factory=dict)

    def look_at(self, where: str) -> None:
        """Let axe look at what is there now."""
        if serious := findings(self.page):
            self.found[where] = serious

    def told(self) -> str:
        """All findings, a line each."""
        return "\n".join(f"{where}: {what}" for where, them in self.found.items() for what in them)


@pytest.fixture(params=LOOKS)
def visit(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Visit]:
    """A browser without a past, in each of the looks."""
    context = browser.new_context(**LOOKS[request.param])
    context.set_default_timeout(20_000)
    context.add_init_script(STILL)
    yield Visit(context.new_page(), request.param)
    context.close()


def unfold(page: Page) -> None:
    """Open whatever is folded."""
    page.evaluate("""() => document.querySelectorAll('button.label-wrap:not(.open), details:not([open]) > summary')
        .forEach(fold => fold.click())""")
    expect(page.locator("button.label-wrap:visible:not(.open)")).to_have_count(0)


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


@pytest.mark.usefixtures("ended")
def test_axe_finds_nothing_serious_on_any_page(visit: Visit, site: Site) -> None:
    page = visit.page
    page.goto(site.url + "/")
    expect(page.locator("#consent")).to_be_visible()
    visit.look_at("a newcomer")
    open_chat(page, site)
    visit.look_at("an empty chat")
    say(page, QUESTION)
    asked(page)
    visit.look_at("two answers")
    page.click("#vote-a")
    expect(page.locator("#undo")).to_be_visible()
    visit.look_at("after a vote")
    page.goto(site.url + "/vote")
    expect(page.locator(".ranker:visible").first).to_be_visible()
    visit.look_at("the vote page")
    page.goto(site.url + "/you")
    expect(page.locator("#my-votes tbody tr").first).to_be_visible()
    visit.look_at("yours")
    page.goto(site.url + "/login")
    visit.look_at("the login")
    log_in(page, site.url)
    expect(page.locator("#run-log")).to_contain_text("update 14")
    # Gradio's plot, until its figure has come.
    expect(page.get_by_label("Empty value").locator("visible=true")).to_have_count(0)
    visit.look_at("the operator page")
    run = site.store.create_run("operator", ("reward", "ppo"), {})
    try:
        log_of(run.id, site)
        site.store.update_run(run.id, status="running", started=datetime.now(UTC))
        line = {"time": "2026-01-02T03:04:05Z", "stage": "ppo", "progress": 0.6, "eta_seconds": 130.0}
        site.store.add_run_metrics(run.id, [line | {"step": step, "metrics": {"kl": step}} for step in range(3)])
        expect(page.locator("#live")).to_contain_text("60%")
        expect(page.locator("#curves .js-plotly-plot")).to_be_visible()
        expect(page.get_by_label("Empty value").locator("visible=true")).to_have_count(0)
        visit.look_at("a run that is on")
        page.get_by_role("button", name="Compare").click()  # without a prompt
        expect(page.locator("#note .problem")).to_be_visible()
        visit.look_at("a problem")
        page.get_by_role("tab", name="Data and log").click()
        expect(page.locator("#found tbody tr").first).to_be_visible()
        expect(page.locator("#demonstrations .empty")).to_be_visible()
        visit.look_at("the data tab")
    finally:
        site.store.update_run(run.id, status="cancelled", finished=datetime.now(UTC))
    assert not visit.found, visit.told()


def test_axe_finds_nothing_serious_in_any_state_of_a_chat(visit: Visit, site: Site) -> None:
    page, history = visit.page, visit.page.locator("#history")
    open_chat(page, site)
    site.engine.hold = 2
    say(page, QUESTION)
    expect(page.locator("#answer-b")).to_contain_text("v0")
    visit.look_at("answers that are being written")
    site.engine.hold = None
    asked(page)
    page.click("#vote-bad")
    expect(page.locator("#remedy")).to_be_visible()
    visit.look_at("both bad")
    page.click("#write")
    expect(page.locator("#words textarea")).to_be_focused()
    visit.look_at("the editor")
    page.get_by_role("button", name="Cancel").click()
    page.click("#retry")
    asked(page)
    page.click("#vote-a")
    expect(history.locator(".bot")).to_have_count(1)
    history.locator(".bot").hover()
    page.get_by_role("button", name="Retry").click()
    asked(page)
    page.click("#vote-b")
    expect(history.locator(".branch")).to_contain_text("2 of 2")
    visit.look_at("branches")
    say(page, f"Tell me of {'the sea ' * 120}")
    asked(page)
    page.click("#vote-a")
    expect(page.locator("#undo")).to_be_visible()
    say(page, "And rain?")
    expect(page.locator("#forget")).to_be_visible()
    visit.look_at("the offer to leave turns out")

    if visit.look == "phone":
        page.get_by_role("button", name="Toggle Sidebar").click()
        expect(page.locator("#side")).to_have_class(re.compile(r"\bopen\b"))
    unfold(page)
    visit.look_at("the side panel")
    listed = page.locator("#talk-list li").first
    listed.hover()
    listed.locator("[data-delete]").click()
    expect(listed.locator(".sure")).to_be_visible()
    visit.look_at("a talk that may be deleted")
    listed.locator("[data-delete]").blur()
    listed.hover()
    listed.locator("[data-rename]").click()
    expect(page.get_by_role("textbox", name="Title")).to_be_focused()
    visit.look_at("a talk that is renamed")
    assert not visit.found, visit.told()


def test_axe_finds_nothing_serious_in_any_state_of_the_vote_page(
    visit: Visit, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None:
        return None

    page = visit.page
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))  # nobody has shared anything
    site.engine.hold = 2
    page.goto(site.url + "/vote")
    expect(page.locator("#private")).to_be_visible()
    breathe(page)
    page.click("#private")
    expect(page.locator("#answer-3")).to_contain_text("v0")
    visit.look_at("answers that are being written")
    site.engine.hold = None
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    page.click("#write")
    expect(page.locator("#words textarea")).to_be_focused()
    visit.look_at("the editor")
    page.get_by_role("button", name="Cancel").click()
    for place in range(4):
        page.locator(f'.ranker[data-place="{place}"]').focus()
        page.keyboard.press(str(place + 1))
    visit.look_at("ranks")
    page.click("#hand-in")
    expect(page.locator("#note")).to_contain_text("Thank you.")
    visit.look_at("after a ranking")
    monkeypatch.setattr(site.service, "next_to_judge", nothing)
    page.reload()
    expect(page.locator("#note")).to_contain_text("everything there is")
    visit.look_at("nothing left")
    assert not visit.found, visit.told()


def test_axe_finds_nothing_serious_in_any_state_of_the_operator_page(visit: Visit, site: Site) -> None:
    page = visit.page
    page.goto(site.url + "/login")
    page.get_by_label("Operator token").fill("a guess")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_be_visible()
    visit.look_at("a refused login")
    log_in(page, site.url)
    unfold(page)
    expect(page.locator("#schedule input").first).to_be_visible()
    expect(page.locator("#run-settings tbody tr").first).to_be_visible()
    visit.look_at("schedule and settings")
    page.get_by_label("Prompt", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#right")).to_contain_text(QUESTION)
    visit.look_at("two versions side by side")
    page.click("#compare-all")
    expect(page.locator("#all-of tbody tr")).to_have_count(12)
    visit.look_at("the fixed prompts")
    page.locator("#versions").get_by_role("button", name="Note").first.click()
    expect(page.get_by_label("The note")).to_be_focused()
    visit.look_at("a note on a version")
    page.keyboard.press("Escape")
    run = site.store.create_run("operator", ("reward",), {})
    try:
        page.get_by_role("button", name="Cancel this run").click()
        expect(page.locator("#cancel .sure")).to_be_visible()
        visit.look_at("a run that may be cancelled")
    finally:
        site.store.update_run(run.id, status="cancelled", finished=datetime.now(UTC))

    prefer(site.store, compare(site.store, "anna", "Why is the sea blue?"), 0)
    page.get_by_role("tab", name="Data and log").click()
    first = page.locator("#found tbody tr").first
    first.locator("summary").click()
    first.get_by_role("button", name="Exclude this vote", exact=True).click()
    expect(page.get_by_label("The reason")).to_be_focused()
    visit.look_at("a reason")
    assert not visit.found, visit.told()
