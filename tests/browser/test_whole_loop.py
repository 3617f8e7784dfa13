"""The whole loop in a browser, on the real server with a tiny model: consent, votes, a run, a swap, and back."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from tests.browser.conftest import asked, log_in, say
from tests.live_server import Server, letters, vote

pytestmark = pytest.mark.browser

BY_KEYBOARD = 3
"""Votes that are cast in the browser; fifty make a run."""


def test_votes_become_a_version_that_an_operator_sees_compares_and_takes_back(
    person: BrowserContext, tmp_path: Path, tiny_model: Path
) -> None:
    server = Server(tmp_path, tiny_model)
    with server.running() as http:
        for number in range(50 - BY_KEYBOARD):
            vote(http, number)
        chat = person.new_page()
        chat.goto(str(http.base_url))
        chat.click("#agree")
        for number in range(BY_KEYBOARD):
            say(chat, f"Question {number}?")
            asked(chat)
            a, b = (letters(chat.locator(f"#answer-{side}").inner_text()) for side in "ab")
            chat.keyboard.press("Escape")
            chat.keyboard.press("1" if a > b else "2" if b > a else "t")
            expect(chat.locator("#undo")).to_be_visible()

        operator = person.new_page()
        log_in(operator, str(http.base_url), "secret")
        expect(operator.locator("#runs")).to_contain_text("Run 1")
        expect(operator.locator("#serving .figure")).to_have_text("Version 1", timeout=120_000)
        expect(operator.locator("#runs")).to_contain_text("succeeded")
        expect(operator.locator("#curves")).to_be_visible()
        expect(operator.locator("#glance")).to_contain_text("nobody knows whether it is better")

        operator.get_by_role("button", name="On 12 fixed prompts").click()
        expect(operator.locator("#all-of tbody tr")).to_have_count(12, timeout=60_000)
        expect(operator.locator("#all-of tbody td:nth-child(3)").first).not_to_have_text("–")

        chat.goto(f"{http.base_url}/you")
        expect(chat.locator("#my-votes")).to_contain_text("Version 1 learned from it in run 1.")
        operator.get_by_role("button", name="Roll back to version 0 (base)").click()
        operator.get_by_role("button", name="Really roll back").click()
        expect(operator.locator("#serving .figure")).to_have_text("Version 0 (base)")
        operator.get_by_role("tab", name="Data and log").click()
        expect(operator.locator("#deeds")).to_contain_text("rolled back from version 1")
