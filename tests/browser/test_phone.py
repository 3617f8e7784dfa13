"""The vote page and *Yours* on a phone: by touch alone, 390 pixels wide, and nothing sticks out."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.browser.conftest import QUESTION, Site, asked, breathe, last_comparison, open_chat, say

pytestmark = pytest.mark.browser

WIDTH = 390


@pytest.fixture
def phone(browser: Browser) -> Iterator[Page]:
    """A phone's browser without a past."""
    context = browser.new_context(viewport={"width": WIDTH, "height": 844}, has_touch=True, is_mobile=True)
    context.set_default_timeout(20_000)
    yield context.new_page()
    context.close()


def width(page: Page) -> int:
    """Of all there is."""
    return int(page.evaluate("document.documentElement.scrollWidth"))


def test_answers_are_ranked_undone_and_bettered_by_touch(phone: Page, site: Site) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))  # nobody has shared anything
    phone.goto(site.url + "/vote")
    expect(phone.locator("#private")).to_be_visible()
    breathe(phone)
    phone.locator("#private").tap()
    expect(phone.locator("#note")).to_contain_text("All answers are there.")
    comparison = last_comparison(site.store)
    tops = [box["y"] for n in range(4) if (box := phone.locator(f"#answer-{n}").bounding_box()) is not None]
    assert len(tops) == 4 and tops == sorted(set(tops)), "one below the other"
    assert width(phone) <= WIDTH
    for place, rank in enumerate((2, 1, 3)):  # the last one's follows
        phone.locator(f'.ranker[data-place="{place}"] [data-rank="{rank}"]').tap()
    phone.get_by_role("button", name="Hand in").tap()
    expect(phone.locator("#note")).to_contain_text("Thank you.")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    a, b, c, d = (candidate.id for candidate in comparison.candidates)
    assert vote is not None and vote.judgement.ranking == ((b,), (a,), (c,), (d,))

    phone.locator("#undo").tap()
    expect(phone.locator("#note")).to_contain_text("Undone.")
    phone.locator("#write").tap()
    words = phone.locator("#words textarea")
    expect(words).to_be_visible()
    assert width(phone) <= WIDTH
    breathe(phone)
    words.fill("Toast it.")
    phone.locator("#save").tap()
    expect(phone.locator("#note")).to_contain_text("kept as an example")
    expect(words).to_be_hidden()
    phone.get_by_role("button", name="Skip").tap()
    expect(phone.locator("#note")).to_contain_text("Skipped.")


def test_yours_is_read_and_taken_back_by_touch(phone: Page, site: Site) -> None:
    open_chat(phone, site)
    say(phone, QUESTION)
    asked(phone)
    phone.locator("#vote-a").tap()
    expect(phone.locator("#undo")).to_be_visible()
    voter = last_comparison(site.store).voter_id
    phone.goto(site.url + "/you")
    rows = phone.locator("#my-votes tbody tr")
    expect(rows).to_have_count(1)
    assert width(phone) <= WIDTH
    breathe(phone)
    rows.first.get_by_role("button", name="Withdraw").tap()
    expect(phone.locator("#my-votes")).to_contain_text("No vote of yours stands.")
    expect(phone.locator("#note")).to_contain_text("Your vote is withdrawn")
    expect(phone.locator("#note")).to_be_in_viewport()
    phone.get_by_label("Type delete to go on").fill("delete")
    phone.get_by_role("button", name="Delete everything of mine").tap()
    expect(phone.locator("#deleted")).to_have_text("Everything of yours is deleted.")
    assert width(phone) <= WIDTH
    assert site.store.me(voter)["counts"]["conversations"] == 0
