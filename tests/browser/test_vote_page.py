"""The vote page: a queue of answers to rank, by mouse and by keyboard alone."""

from __future__ import annotations

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect

from serve.errors import Unavailable
from serve.records import Comparison, Vote
from tests.browser.conftest import Site, breathe, last_comparison, soon, tab_to
from tests.scenes import compare

pytestmark = pytest.mark.browser


@pytest.fixture
def voting(site: Site, person: BrowserContext) -> Page:
    """The vote page of a newcomer, with four answers to a shipped prompt."""
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))  # nobody has shared anything
    page = arrive(site, person)
    expect(rankers(page)).to_have_count(4)
    expect(page.locator("#note")).to_contain_text("Which is best?")
    return page


def arrive(site: Site, person: BrowserContext) -> Page:
    """The vote page once a newcomer has chosen."""
    page = person.new_page()
    page.goto(site.url + "/vote")
    expect(page.locator("#consent")).to_be_visible()
    breathe(page)
    page.click("#private")
    return page


def vote_on(comparison: Comparison, site: Site) -> Vote | None:
    """The vote that stands on it."""
    return site.store.comparison(comparison.id, comparison.voter_id).vote


def rankers(page: Page) -> Locator:
    """The heads of the answers that are shown."""
    return page.locator(".ranker:visible")


def test_four_answers_are_ranked_by_the_keyboard_alone_ties_too(voting: Page, site: Site) -> None:
    page = voting
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    comparison = last_comparison(site.store)
    expect(rankers(page).first).to_be_focused()
    expect(page.locator("#undo")).to_be_hidden()
    for key in ("2", "j", "1"):
        page.keyboard.press(key)
    expect(page.locator("#hand-in")).to_be_disabled()
    for key in ("j", "2"):
        page.keyboard.press(key)
    expect(page.locator("#said-status")).to_have_text("Answer C, 2nd, a tie. Answer D, 3rd")
    expect(rankers(page).nth(3).locator("output")).to_have_text("3rd")
    expect(page.locator("#hand-in")).to_be_enabled()
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
    expect(page.locator("#progress")).to_contain_text("1 judged within a day, 1 in all.")
    expect(page.locator("#progress")).to_contain_text("It learns after 49 more votes.")
    expect(page.locator("#reasons")).to_be_visible()
    expect(page.locator("#strength")).to_be_hidden()  # of more than two answers
    expect(rankers(page).first.locator("output")).to_have_text("not ranked")

    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    expect(page.locator("#asked")).to_contain_text(comparison.messages[-1].content[:40])
    page.keyboard.press("x")
    expect(page.locator("#note")).to_contain_text("None was good. A: version 0 (base)")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None and vote.judgement.verdict == "both_bad"


def test_a_newcomer_consents_and_ranks_with_ties_without_a_mouse(site: Site, person: BrowserContext) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    page = person.new_page()
    page.goto(site.url + "/vote")
    expect(page.locator("#private")).to_be_visible()
    breathe(page)
    tab_to(page, page.locator("#private"))
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    comparison = last_comparison(site.store)
    expect(rankers(page).first).to_be_focused()
    for place, key in enumerate(("2", "1", "ArrowUp", "2")):
        if place:
            tab_to(page, page.locator(f'.ranker[data-place="{place}"]'))
        page.keyboard.press(key)
    expect(rankers(page).nth(2).locator("output")).to_have_text("1st, a tie")
    tab_to(page, page.locator("#hand-in"))
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("Thank you.")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    a, b, c, d = (candidate.id for candidate in comparison.candidates)
    assert vote is not None and vote.judgement.ranking == ((b, c), (a, d))


def test_what_is_shown_follows_from_what_the_page_says(voting: Page) -> None:
    page = voting
    page.evaluate("() => { document.querySelector('#asked .asked').dataset.answers = '2'; }")
    expect(rankers(page)).to_have_count(2)
    expect(page.get_by_role("button", name="Answer A: rank")).to_have_count(2)
    expect(page.locator("#hand-in")).to_be_visible()
    expect(page.locator("#write")).to_be_visible()
    page.evaluate("() => document.querySelector('#asked .asked').remove()")
    expect(rankers(page)).to_have_count(0)
    for hidden in ("#hand-in", "#write", "#undo", "#afterthought"):
        expect(page.locator(hidden)).to_be_hidden()


def test_answers_are_ranked_by_tapping_and_the_last_rank_follows(voting: Page, site: Site) -> None:
    page = voting
    comparison = last_comparison(site.store)
    expect(page.locator("#hand-in")).to_be_disabled()
    for name, rank in (("A", 4), ("B", 2), ("A", 1), ("D", 3)):
        page.get_by_role("button", name=f"Answer {name}: rank {rank}").click()
    expect(page.get_by_role("button", name="Answer C: rank 4")).to_have_attribute("aria-pressed", "true")
    expect(page.get_by_role("button", name="Answer A: rank 4")).to_have_attribute("aria-pressed", "false")
    page.click("#hand-in")
    expect(page.locator("#note")).to_contain_text("Thank you.")
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None
    a, b, c, d = (candidate.id for candidate in comparison.candidates)
    assert vote.judgement.ranking == ((a,), (b,), (d,), (c,))


def test_a_better_answer_can_be_written_and_skipping_brings_another(voting: Page, site: Site) -> None:
    page, before = voting, site.store.demonstrations_count()
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    expect(rankers(page).first).to_be_focused()
    first = last_comparison(site.store)
    page.keyboard.press("j")
    page.keyboard.press("e")
    expect(page.locator("#words textarea")).to_have_value(first.candidates[1].answer.text)
    expect(page.locator("#write")).to_be_hidden()
    page.click("#save")
    expect(page.locator("#note")).to_contain_text("That is the answer as it was.")
    page.locator("#words textarea").fill("These words are mine: jux 123.")
    page.click("#save")
    expect(page.locator("#note")).to_contain_text("kept as an example")
    assert site.store.demonstrations_count() == before + 1
    page.locator(".ranker").first.focus()
    page.keyboard.press("s")
    expect(page.locator("#asked")).not_to_contain_text(first.messages[-1].content)
    expect(page.locator("#note")).to_contain_text("Skipped.")
    expect(page.locator("#note")).not_to_contain_text("version")
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


def test_ranks_and_a_better_answer_outlive_a_reload(voting: Page, site: Site) -> None:
    page = voting
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    for key in ("3", "j", "1"):
        page.keyboard.press(key)
    expect(page.locator("#hand-in")).to_have_text("2 still to rank")
    page.keyboard.press("e")
    expect(page.locator("#words textarea")).to_have_value(last_comparison(site.store).candidates[1].answer.text)
    expect(page.locator("#words textarea")).to_be_focused()
    page.keyboard.press("Control+a")
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
    expect(page.locator("#note")).to_contain_text("None was good.")
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    assert site.store.comparison(comparison.id, comparison.voter_id).vote is None


def test_a_vote_counts_and_can_be_undone_though_nothing_new_can_be_brought(voting: Page, site: Site) -> None:
    page, comparison = voting, last_comparison(site.store)
    expect(page.locator("#note")).to_contain_text("All answers are there.")
    site.engine.full = True
    page.keyboard.press("x")
    expect(page.locator("#note")).to_contain_text("None was good.")
    expect(page.locator("#note")).to_contain_text("The next answers have to wait: the queue is full")
    expect(rankers(page)).to_have_count(0)
    breathe(page)
    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    expect(rankers(page)).to_have_count(4)
    assert site.store.comparison(comparison.id, comparison.voter_id).vote is None


def test_every_question_is_read_out_also_one_like_the_one_before(site: Site, person: BrowserContext) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    for name in ("anna", "ben", "carl"):
        compare(site.store, name, "Why is the sea blue?", texts=(f"{name}: light.", f"{name}: water."), share=True)
    page = arrive(site, person)
    for number in (1, 2, 3):
        expect(page.locator("#said-status")).to_contain_text(f"Question {number}: Why is the sea blue?")
        expect(rankers(page)).to_have_count(2)
        expect(rankers(page).first).to_be_focused()
        for key in ("1", "j", "2", "Enter"):
            page.keyboard.press(key)
    expect(rankers(page)).to_have_count(4)
    expect(page.locator("#progress")).to_contain_text("3 judged within a day, 3 in all.")


def test_one_key_decides_a_pair_and_more_can_be_said_of_it_also_after_a_reload(
    site: Site, person: BrowserContext
) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    for name in ("anna", "ben"):
        compare(site.store, name, "Why is the sea blue?", texts=(f"{name}: light.", f"{name}: water."), share=True)
    page = arrive(site, person)
    expect(rankers(page)).to_have_count(2)
    expect(rankers(page).first).to_be_focused()
    expect(page.locator("#afterthought")).to_be_hidden()
    judged = last_comparison(site.store)
    page.keyboard.press("2")
    expect(page.locator("#said-status")).to_have_text("Answer A, 2nd. Answer B, 1st")
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("Thank you.")
    vote = vote_on(judged, site)
    left, right = (candidate.id for candidate in judged.candidates)
    assert vote is not None and vote.judgement.ranking == ((right,), (left,))
    breathe(page)
    page.locator("#strength label", has_text="4").click()
    page.locator("#reasons label", has_text="Clearer").click()

    def noted() -> bool:
        vote = vote_on(judged, site)
        return vote is not None and (vote.judgement.strength, vote.judgement.reasons) == (4, ("Clearer",))

    soon(page, noted)
    page.reload()
    expect(page.locator("#strength label.selected")).to_have_text("4")
    expect(page.locator("#reasons label.selected")).to_have_text("Clearer")
    expect(rankers(page).first).to_be_focused()
    page.keyboard.press("u")
    expect(page.locator("#note")).to_contain_text("Undone.")
    expect(page.locator("#undo")).to_be_hidden()
    expect(page.locator("#afterthought")).to_be_hidden()
    assert vote_on(judged, site) is None


def test_a_pair_comes_again_with_sides_swapped_also_after_a_reload(
    site: Site, person: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    compare(site.store, "anna", "Why is the sea blue?", texts=("Light.", "Water."), share=True)
    monkeypatch.setattr("serve.service.APART", 0)
    monkeypatch.setattr("serve.service.REPEATED", 1.0)
    page = arrive(site, person)
    expect(rankers(page)).to_have_count(2)
    expect(rankers(page).first).to_be_focused()
    first = last_comparison(site.store)
    for key in ("1", "j", "2", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#note")).to_contain_text("Thank you.")
    expect(page.locator("#answer-0")).to_contain_text(first.candidates[1].answer.text)
    monkeypatch.setattr("serve.service.REPEATED", 0.0)
    again = last_comparison(site.store)
    assert again.id != first.id
    expect(rankers(page).first).to_be_focused()
    page.keyboard.press("2")
    page.reload()
    expect(rankers(page).first.locator("output")).to_have_text("2nd")
    expect(page.locator("#answer-0")).to_contain_text(first.candidates[1].answer.text)
    expect(rankers(page).first).to_be_focused()
    for key in ("j", "1", "Enter"):
        page.keyboard.press(key)
    expect(page.locator("#note")).to_contain_text("Thank you.")
    vote = site.store.comparison(again.id, again.voter_id).vote
    left, right = (candidate.id for candidate in again.candidates)
    assert vote is not None and not vote.evidence and vote.judgement.ranking == ((right,), (left,))


def test_who_has_judged_everything_is_told_how_many_votes_are_missing(
    site: Site, person: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    monkeypatch.setattr("serve.service.shipped", lambda: ())
    page = arrive(site, person)
    expect(page.locator("#note")).to_contain_text("You have judged everything there is.")
    expect(page.locator("#progress")).to_contain_text("It learns after 50 more votes.")


def test_a_choice_that_cannot_be_kept_is_told(
    site: Site, person: BrowserContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> None:
        raise Unavailable("the disk is full; free some space")

    monkeypatch.setattr(site.service, "give_consent", refuse)
    page = arrive(site, person)
    expect(page.locator("#note .problem")).to_be_visible()
    expect(page.locator("#note")).to_contain_text("The disk is full; free some space.")
    expect(page.locator("#consent")).to_be_visible()
