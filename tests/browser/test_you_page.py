"""The page of one voter: what my votes did, and what is mine to withdraw, take home or delete."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from serve.feedback.store import Store
from serve.web import you_view
from tests.browser.conftest import QUESTION, Site, asked, breathe, last_comparison, say, tab_to
from tests.scenes import compare, prefer

pytestmark = pytest.mark.browser


def learn(store: Store, *, win_rate: float) -> int:
    """A run that learned from everything there is, and the version that it made."""
    run = store.create_run("votes", ["reward", "ppo"], {})
    with store.reading() as db:
        votes = [row["id"] for row in db.execute("SELECT id FROM training_votes")]
    store.writing(
        lambda db: db.executemany(
            "INSERT INTO run_votes (run_id, vote_id) VALUES (?, ?)", [(run.id, vote) for vote in votes]
        )
    )
    report = {"gate": {"win_rate": {"value": win_rate, "low": 0.5, "high": 0.75}}}
    version = store.add_version(run=run.id, parent=0, status="staged", report=report, sha256="00").number
    store.update_run(run.id, status="succeeded", version=version, report=report)
    return version


def vote_once(page: Page, site: Site) -> str:
    """Chat, vote and go to *Yours*. Returns the voter."""
    say(page, QUESTION)
    asked(page)
    page.click("#vote-a")
    expect(page.locator("#undo")).to_be_visible()
    voter = last_comparison(site.store).voter_id
    page.goto(site.url + "/you")
    expect(page.locator("#my-votes tbody tr")).to_have_count(1)
    return voter


def test_a_voter_sees_what_votes_did_withdraws_one_and_takes_everything_home(newcomer: Page, site: Site) -> None:
    page = newcomer
    for choice in ("#vote-a", "#vote-tie"):
        say(page, QUESTION)
        asked(page)
        page.click(choice)
        expect(page.locator("#undo")).to_be_visible()
    version = learn(site.store, win_rate=0.625)
    page.goto(site.url + "/you")
    rows = page.locator("#my-votes tbody tr")
    expect(rows).to_have_count(2)
    expect(rows.nth(0)).to_contain_text("A tie")
    expect(rows.nth(1)).to_contain_text("One was better")
    expect(rows.nth(1)).to_contain_text(f"Version {version} learned from it in run 1. The checks expected")
    expect(rows.nth(1)).to_contain_text("to win 62% against those of version 0 (base); people have not decided yet.")
    prefer(site.store, compare(site.store, "ben", "Which?", versions=(0, version)), 1)
    page.reload()
    expect(rows.nth(1)).to_contain_text("people preferred its answers to those of version 0 (base) in 1 of 1 vote.")
    expect(page.locator(".card", has_text="Votes").locator(".figure")).to_have_text("2")

    rows.nth(0).get_by_role("button", name="Withdraw").click()
    expect(page.locator("#note")).to_contain_text(f"Version {version} has learned from it")
    expect(rows).to_have_count(1)

    with page.expect_download() as download:
        page.get_by_role("link", name="hustings-mine.json").click()
    mine = json.loads(download.value.path().read_text())
    assert len(mine["votes"]) == 1 and mine["conversations"][0]["messages"][0]["content"] == QUESTION


def test_everything_of_a_voter_is_deleted_after_a_word_typed(newcomer: Page, site: Site) -> None:
    page = newcomer
    voter = vote_once(page, site)
    page.get_by_role("button", name="Delete everything of mine").click()
    assert site.store.me(voter)["counts"]["votes"] == 1, "nothing happens before the word is typed"
    page.get_by_label("Type delete to go on").fill("delete")
    page.get_by_role("button", name="Delete everything of mine").click()
    expect(page.locator("#deleted")).to_have_text("Everything of yours is deleted.")
    expect(page.locator("#my-votes")).to_contain_text("No vote of yours stands.")
    assert site.store.me(voter)["counts"] == dict.fromkeys(site.store.me(voter)["counts"], 0)


def test_older_votes_are_shown_and_withdrawn_too(newcomer: Page, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(you_view, "SHOWN", 1)
    page = newcomer
    for choice in ("#vote-a", "#vote-tie"):
        say(page, QUESTION)
        asked(page)
        page.click(choice)
        expect(page.locator("#undo")).to_be_visible()
    page.goto(site.url + "/you")
    rows = page.locator("#my-votes tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.nth(0)).to_contain_text("A tie")
    expect(rows.nth(0)).to_contain_text("Waits for the next run. It learns after")
    breathe(page)
    page.get_by_role("button", name="Show older").click()
    expect(rows).to_have_count(2)
    expect(page.locator("#older")).to_be_hidden()
    rows.nth(1).get_by_role("button", name="Withdraw").click()
    expect(rows).to_have_count(1)
    expect(rows.nth(0)).to_contain_text("A tie")
    expect(rows.nth(0).get_by_role("button", name="Withdraw")).to_be_focused()


def test_an_answer_that_was_corrected_stands_once_and_is_withdrawn(newcomer: Page, site: Site) -> None:
    page = newcomer
    say(page, QUESTION)
    asked(page)
    page.click("#vote-a")
    before = last_comparison(site.store)
    for words in ("It is the ligth.", "It is the light."):
        expect(page.locator("#edit")).to_be_visible()
        breathe(page)
        page.click("#edit")
        expect(page.locator("#words textarea")).to_be_focused()
        page.locator("#words textarea").fill(words)
        page.click("#save")
        expect(page.locator("#history")).to_contain_text(words)
    page.goto(site.url + "/you")
    rows = page.locator("#my-answers tbody tr")
    expect(rows).to_have_count(1)
    expect(rows.nth(0)).to_contain_text(QUESTION)
    expect(rows.nth(0)).to_contain_text("It is the light.")
    breathe(page)
    rows.nth(0).get_by_role("button", name="Withdraw").click()
    expect(page.locator("#note")).to_contain_text("Your answer is withdrawn")
    expect(page.locator("#note")).to_have_css("position", "sticky")
    expect(page.locator("#my-answers")).to_contain_text("None yet.")
    expect(page.locator("#my-votes tbody tr")).to_have_count(1)
    assert site.store.me(before.voter_id)["demonstrations"] == []


def test_a_vote_is_withdrawn_and_everything_deleted_by_keys_alone(newcomer: Page, site: Site) -> None:
    page = newcomer
    voter = vote_once(page, site)
    breathe(page)
    tab_to(page, page.get_by_role("button", name="Withdraw"))
    page.keyboard.press("Enter")
    expect(page.locator("#my-votes")).to_contain_text("No vote of yours stands.")
    expect(page.locator("#note")).to_be_focused()
    tab_to(page, page.get_by_label("Type delete to go on"))
    page.keyboard.type("delete")
    page.keyboard.press("Enter")
    expect(page.locator("#deleted")).to_have_text("Everything of yours is deleted.")
    assert site.store.me(voter)["counts"]["conversations"] == 0


def test_the_look_that_was_chosen_holds_on_the_login_page_and_back(site: Site, person: BrowserContext) -> None:
    page = person.new_page()
    page.goto(site.url + "/you")
    look = page.get_by_role("button", name="Light or dark")
    look.click()
    expect(page.locator("body")).to_have_class(re.compile(r"\bdark\b"))
    page.goto(site.url + "/login")
    expect(page.locator("body")).to_have_css("background-color", "rgb(22, 21, 19)")
    look.click()
    expect(page.locator("body")).to_have_css("background-color", "rgb(250, 248, 244)")
    page.goto(site.url + "/you")
    expect(look).to_be_visible()
    expect(page.locator("body")).not_to_have_class(re.compile(r"\bdark\b"))


def test_a_newcomer_chooses_once_whether_prompts_are_shared(site: Site, person: BrowserContext) -> None:
    page = person.new_page()
    page.goto(site.url + "/")
    expect(page.locator("#consent")).to_contain_text("May other voters be shown prompts of yours")
    expect(page.locator("#box")).to_be_hidden()
    page.click("#agree")
    expect(page.locator("#consent")).to_be_hidden()
    expect(page.get_by_label("My prompts may be shown to other voters")).to_be_checked()
    say(page, QUESTION)
    asked(page)
    shared = "SELECT share FROM messages WHERE role = 'user' ORDER BY rowid DESC LIMIT 1"
    with site.store.reading() as db:
        assert db.execute(shared).fetchone()[0] == 1
    page.reload()
    expect(page.locator("#arena")).to_be_visible()
    expect(page.locator("#consent")).to_be_hidden()
    page.get_by_label("My prompts may be shown to other voters").uncheck()
    expect(page.locator("#note")).to_contain_text("the earlier ones neither")
    with site.store.reading() as db:
        assert db.execute(shared).fetchone()[0] == 0
