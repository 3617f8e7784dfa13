"""The server goes away and comes back, while somebody writes and while somebody votes."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, expect

from serve.folder import DataFolder
from tests.browser.conftest import open_chat, say, serving

pytestmark = pytest.mark.browser


def test_what_is_typed_and_voted_on_outlives_a_server_that_comes_back(person: BrowserContext, tmp_path: Path) -> None:
    folder, page = DataFolder(tmp_path / "feedback.db"), person.new_page()
    box, lost = page.locator("#box textarea"), page.get_by_text("Connection to the server was lost")
    with serving(folder) as site:
        open_chat(page, site)
        say(page, "Why is the sea blue?")
        expect(page.locator("#vote-a")).to_be_visible()
        port = int(site.url.rpartition(":")[2])

    page.click("#vote-a")  # nobody is there to hear it
    expect(lost).to_be_visible()
    with serving(folder, port) as site:  # Gradio loads the page anew by itself
        expect(lost).to_have_count(0)
        expect(page.locator("#vote-a")).to_be_visible()
        assert site.store.standing_votes() == 0
        page.click("#vote-a")
        expect(page.locator("#note")).to_contain_text("You chose A")
        box.fill("And at night?")

    box.press("Enter")
    expect(lost).to_be_visible()
    expect(box).to_have_value("And at night?")
    with serving(folder, port) as site:
        expect(lost).to_have_count(0)
        expect(box).to_have_value("And at night?")
        box.press("Enter")
        expect(page.locator("#history .user")).to_have_count(2)
        expect(page.locator("#vote-a")).to_be_visible()
        expect(box).to_have_value("")
        assert site.store.standing_votes() == 1
