"""The vote page: a queue of answers to rank, by mouse and by keyboard alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from tests.browser.conftest import Site, breathe
from tests.browser.test_chat_page import last_comparison
from tests.scenes import compare

pytestmark = pytest.mark.browser


@pytest.fixture
def voting(site: Site, person: BrowserContext) -> Page:
    """The vote page of a newcomer, with four answers to a shipped prompt."""
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))  # nobody has shared anything
    page = person.new_page()
    page.goto(site.url + "/vote")
    expect(page.locator("#consent")).to_be_visible()
    breathe(page)
    page.click("#private")
    expect(rankers(page)).to_have_count(4)
    expect(page.locator("#note")).to_contain_text("Which is best?")
    return page


def rankers(page: Page) -> Locator:
    """The heads of the answers that are shown."""
    return page.locator(".ranker:visible")


def test_four_answers_are_ranked_by_the_keyboard_alone_ties_too(voting: Page, site: Site) -> None:
    page = voting
    comparison = last_comparison(site.store)
    expect(rankers(page).first).to_be_focused()
    for key in ("2", "j", "1", "j", "2"):
        page.keyboard.press(key)
    expect(page.locator("#hand-in")).to_be_disabled()
    page.keyboard.press("k")
    expect(rankers(page).nth(1)).to_be_focused()
    for key in ("k", "k", "4"):
        page.keyboard.press(key)
    expect(rankers(page).nth(0).locator("output")).to_have_text("2nd, a tie")
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("Thank you. A: version 0 (base)")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None and vote.evidence
    a, b, c, d = (candidate.id for candidate in comparison.candidates)
    assert vote.judgement.ranking == ((b,), (a, c), (d,))
    expect(page.locator("#progress")).to_contain_text("1 judged today, 1 in all")
    expect(rankers(page).first.locator("output")).to_have_text("not ranked")

    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    expect(page.locator("#asked")).to_contain_text(comparison.messages[-1].content[:40])
    page.keyboard.press("x")
    expect(page.locator("#progress")).to_contain_text("1 judged today")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None and vote.judgement.verdict == "both_bad"


def test_answers_are_ranked_with_up_and_down_buttons(voting: Page, site: Site) -> None:
    page = voting
    comparison = last_comparison(site.store)
    expect(page.locator("#hand-in")).to_be_disabled()
    for name, moves in {"A": ("up",), "B": ("up", "down"), "C": ("down",), "D": ("down", "up")}.items():
        for direction in moves:
            page.get_by_role("button", name=f"Answer {name}: {direction}").click()
    page.click("#hand-in")
    expect(page.locator("#note")).to_contain_text("Thank you.")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None
    a, b, c, d = (candidate.id for candidate in comparison.candidates)
    assert vote.judgement.ranking == ((a,), (b,), (d,), (c,))


def test_a_better_answer_can_be_written_and_skipping_brings_another(voting: Page, site: Site) -> None:
    page, before = voting, site.store.demonstrations_count()
    first = last_comparison(site.store)
    page.keyboard.press("e")
    expect(page.locator("#words textarea")).to_be_visible()
    page.locator("#words textarea").fill("These words are mine: jux 123.")
    page.click("#save")
    expect(page.locator("#note")).to_contain_text("kept as an example")
    assert site.store.demonstrations_count() == before + 1
    page.locator(".ranker").first.focus()
    page.keyboard.press("s")
    expect(page.locator("#asked")).not_to_contain_text(first.messages[-1].content)
    vote = site.store.comparison(first.id, first.voter_id).vote
    assert vote is not None and vote.judgement.verdict == "skip"


def test_a_vote_in_another_tab_is_told_and_nothing_is_doubled(voting: Page, site: Site) -> None:
    page = voting
    comparison = last_comparison(site.store)
    other = page.context.new_page()
    other.goto(site.url + "/vote")
    expect(other.locator("#asked")).to_contain_text(comparison.messages[-1].content[:40])
    for tab, told in ((other, "Thank you."), (page, "You have judged that one already.")):
        tab.bring_to_front()
        for place in range(4):
            rankers(tab).nth(place).focus()
            tab.keyboard.press("1")
        tab.keyboard.press("Enter")
        expect(tab.locator("#note")).to_contain_text(told)
    with site.store.reading() as db:
        votes = db.execute("SELECT count(*) FROM votes WHERE comparison_id = ?", (comparison.id,)).fetchone()[0]
    assert votes == 1


def test_ranks_are_gone_with_the_answers_they_were_for_also_where_the_prompt_stays(
    site: Site, person: BrowserContext
) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    compare(site.store, "anna", "Why is the sea blue?", texts=("One.", "Two."), share=True)
    compare(site.store, "ben", "Why is the sea blue?", texts=("Three.", "Four."), share=True)
    page = person.new_page()
    page.goto(site.url + "/vote")
    page.click("#private")
    expect(rankers(page)).to_have_count(2)
    for key in ("1", "j", "2", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#note")).to_contain_text("Thank you.")
    expect(rankers(page).first.locator("output")).to_have_text("not ranked")
    expect(page.locator("#hand-in")).to_be_disabled()


def test_shortcuts_can_be_turned_off_on_the_vote_page(voting: Page, site: Site) -> None:
    page = voting
    page.get_by_label("Keyboard shortcuts").uncheck()
    rankers(page).first.focus()
    page.keyboard.press("1")
    page.keyboard.press("s")
    page.wait_for_timeout(300)
    expect(rankers(page).first.locator("output")).to_have_text("not ranked")
    assert last_comparison(site.store).status == "open"


def test_ranks_and_a_better_answer_outlive_a_reload(voting: Page) -> None:
    page = voting
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    for key in ("3", "j", "1"):
        page.keyboard.press(key)
    expect(page.locator("#hand-in")).to_have_text("2 still to rank")
    page.keyboard.press("e")
    expect(page.locator("#words textarea")).to_be_focused()
    page.keyboard.type("Better, mo")
    page.reload()
    expect(rankers(page).first.locator("output")).to_have_text("3rd")
    expect(page.locator("#hand-in")).to_have_text("2 still to rank")
    page.keyboard.press("Enter")
    expect(rankers(page).nth(2)).to_be_focused()
    page.keyboard.press("e")
    expect(page.locator("#words textarea")).to_have_value("Better, mo")


def test_a_second_click_leaves_the_way_back(voting: Page, site: Site) -> None:
    page, comparison = voting, last_comparison(site.store)
    page.evaluate("() => [1, 2].forEach(() => document.querySelector('[data-verdict=both_bad]').click())")
    expect(page.locator("#note")).to_contain_text("You have judged that one already.")
    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    assert site.store.comparison(comparison.id, comparison.voter_id).vote is None
