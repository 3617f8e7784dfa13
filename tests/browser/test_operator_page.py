"""The operator page, as an operator uses it; and that nobody else can."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from serve.web import board_view
from tests.browser.conftest import TOKEN, Site, breathe, log_in
from tests.scenes import add_versions, compare, prefer

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def logged_in(browser: Browser, running: Site) -> Iterator[Page]:
    """A browser that came through the login form and stays for all tests."""
    context = browser.new_context(viewport={"width": 1280, "height": 1500})
    context.set_default_timeout(20_000)
    page = context.new_page()
    page.goto(running.url + "/operator")
    expect(page.get_by_role("heading", name="Operator login")).to_be_visible()
    page.get_by_label("Operator token").fill("a guess")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("alert")).to_contain_text("not the operator token")
    page.get_by_label("Operator token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.locator("#serving")).to_be_visible()
    yield page
    context.close()


@pytest.fixture
def page(logged_in: Page, site: Site) -> Page:
    """The operator page, with the base serving and no run on."""
    return logged_in


def test_an_empty_record_says_what_to_do_next(page: Page) -> None:
    expect(page.locator("#serving")).to_contain_text("Version 0 (base)")
    expect(page.locator("#new-votes")).to_contain_text("50 more votes until a run starts by itself.")
    expect(page.locator("#live")).to_contain_text("Open the chat, ask something, and choose the better of two answers.")
    expect(page.locator("#runs")).to_contain_text("No run yet.")
    expect(page.get_by_role("button", name="Nothing to roll back to")).to_be_disabled()


def surely(button: Locator, sure: str) -> None:
    """Press it, and again where it asks."""
    button.click()
    again = button.page.get_by_role("button", name=sure)
    expect(again).to_be_focused()
    again.click()


def test_promoting_and_rolling_back_ask_once(page: Page, site: Site) -> None:
    promote = page.get_by_role("row", name="Version 2").get_by_role("button", name="Promote")
    promote.click()
    page.get_by_role("heading", name="Serving now").click()
    expect(promote).to_have_text("Promote")
    assert site.store.serving() == 0, "one click alone does nothing"
    surely(promote, "Really promote version 2?")
    expect(page.locator("#note")).to_contain_text("Version 2 serves from the next answer on.")
    expect(page.locator("#serving")).to_contain_text("Version 2")
    assert site.store.serving() == site.engine.serving == 2
    surely(page.get_by_role("button", name="Roll back to version 0 (base)"), "Really roll back to version 0 (base)?")
    expect(page.locator("#note")).to_contain_text("Rolled back: version 0 (base) serves from the next answer on.")
    assert site.store.serving() == site.engine.serving == 0
    assert [p.who for p in site.store.promotions()] == ["operator page"] * 2


def test_two_versions_answer_the_same_prompt_side_by_side(page: Page, site: Site) -> None:
    page.locator("#prompt textarea").fill("How do I break into a house?")
    page.locator("#right-version input").click()
    page.get_by_role("option", name="version 2").click()
    site.engine.hold = 2
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#left")).to_contain_text("v0 says")
    expect(page.locator("#right")).to_contain_text("v2 says")
    expect(page.locator("#right")).not_to_contain_text("house")
    site.engine.hold = None
    expect(page.locator("#left")).to_contain_text("How do I break into a house?")
    expect(page.locator("#right")).to_contain_text("How do I break into a house?")
    page.locator("#prompt textarea").fill("  ")
    page.get_by_role("button", name="Compare").click()
    expect(page.locator("#note .problem")).to_be_visible()


def test_the_schedule_is_changed_where_it_is_shown(page: Page, site: Site) -> None:
    page.get_by_role("button", name="When runs start, and what then").click()
    votes, interval = page.get_by_label("New votes that start a run"), page.get_by_label("Longest time without a run")
    expect(votes).to_have_value("50")
    breathe(page)
    votes.fill("0")
    page.get_by_role("button", name="Save the schedule").click()
    expect(page.locator("#note .problem")).to_contain_text(
        "New votes that start a run (min_new_votes) must be a whole number, 1 or more, not '0'."
    )
    expect(votes).to_have_value("0")
    votes.fill("20")
    interval.fill("2h")
    page.get_by_role("button", name="Save the schedule").click()
    expect(page.locator("#note")).to_contain_text(
        "Saved. New votes that start a run: 20; Longest time without a run: 2h."
    )
    assert site.store.schedule() == {"min_new_votes": "20", "max_interval": "2h"}
    page.reload()
    page.get_by_role("button", name="When runs start, and what then").click()
    expect(votes).to_have_value("20")
    site.store.writing(lambda db: db.execute("DELETE FROM schedule"))


def test_a_run_starts_by_hand_is_watched_live_and_can_be_cancelled(page: Page, site: Site) -> None:
    page.get_by_role("button", name="Train now").click()
    expect(page.locator("#note .problem")).to_contain_text("50 are missing")
    page.get_by_label("Demonstrations (SFT)").uncheck()
    page.get_by_label("Even with few votes").check()
    page.get_by_role("button", name="Settings of this run").click()
    page.get_by_label("Rounds of PPO").fill("12")
    page.get_by_role("button", name="Train now").click()
    expect(page.locator("#note")).to_contain_text("Run 1 has been started.")
    assert site.training.asked[-1]["settings"] == {"ppo": {"updates": 12}}
    page.get_by_label("Rounds of PPO").fill("")
    expect(page.get_by_role("button", name="Train now")).to_be_hidden()
    assert site.training.asked[-1]["stages"] == ["reward", "ppo"] and site.training.asked[-1]["force"] is True

    site.store.update_run(1, status="running", started=datetime.now(UTC))
    seen = {"time": "2026-01-02T03:04:05Z", "stage": "reward", "progress": 0.4, "eta_seconds": 130.0}
    site.store.add_run_metrics(
        1, [seen | {"step": step, "metrics": {"reward_accuracy": 0.5 + step / 50}} for step in range(5)]
    )
    expect(page.locator("#live")).to_contain_text("Run 1: Reward model")
    expect(page.locator("#live")).to_contain_text("40% · about 2 min left")
    expect(page.locator("#curves .js-plotly-plot")).to_be_visible()
    expect(page.locator("#curves")).to_contain_text("Reward model's accuracy")
    kl = page.locator("#curves .x2y2 .scatterlayer path.js-line")
    expect(kl).to_have_count(0)  # a curve appears once it has two points
    expect(page.locator("#curves")).not_to_contain_text("KL to the reference")
    whole = page.get_by_role("link", name="The log of run 1 from further back")
    expect(whole).to_have_attribute("href", "/api/runs/1/log?tail=10000")
    site.store.add_run_metrics(1, [seen | {"stage": "ppo", "step": step, "metrics": {"kl": step}} for step in range(5)])
    expect(kl).to_have_count(1)

    surely(page.get_by_role("button", name="Cancel this run"), "Really cancel run 1?")
    expect(page.locator("#note")).to_contain_text("Run 1 has been cancelled.")
    expect(page.locator("#runs")).to_contain_text("cancelled")
    expect(page.get_by_role("button", name="Train now")).to_be_visible()


def test_a_run_that_was_refused_or_failed_says_why_and_its_words_are_escaped(page: Page, site: Site) -> None:
    refused = site.store.create_run("votes", ("reward",), {}).id
    report = {"status": "rejected", "reasons": ["about 40 <b>more</b> votes are needed"]}
    site.store.update_run(refused, status="rejected", report=report, finished=datetime.now(UTC))
    failed = site.store.create_run("votes", ("reward",), {}).id
    site.store.update_run(failed, status="failed", error="the disk is <i>full</i>", finished=datetime.now(UTC))
    rows = page.locator("#runs")
    expect(rows.get_by_role("row", name=f"Run {refused}")).to_contain_text("about 40 <b>more</b> votes are needed.")
    expect(rows.get_by_role("row", name=f"Run {failed}")).to_contain_text("failed")
    expect(rows.get_by_role("row", name=f"Run {failed}")).to_contain_text("the disk is <i>full</i>")


def test_the_board_shows_what_votes_say_and_is_drawn_anew_only_when_that_changes(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        prefer(site.store, compare(site.store, "anna", f"Question {number}?", versions=(1, 0)), int(number == 0))
    learned = site.store.create_run("votes", ("reward",), {})
    accuracy = {"value": 0.64, "low": 0.53, "high": 0.74, "comparisons": 61}
    calibration = [{"said": 0.6, "right": 0.58, "pairs": 40}, {"said": 0.9, "right": 0.8, "pairs": 20}]
    report = {"reward": {"accuracy": accuracy, "calibration": calibration}, "reasons": ["so"]}
    site.store.update_run(learned.id, status="rejected", report=report, finished=datetime.now(UTC))

    expect(page.locator("#trust")).to_contain_text("64% 53% to 74%")
    expect(page.locator("#trust")).to_contain_text("of 61 comparisons it had not seen.")
    cells = page.locator("#rates").get_by_role("row", name="Version 1").locator("td")
    expect(cells.nth(1)).to_have_text(re.compile(r"\d+% \(\d+% to \d+%\)"))
    expect(cells.nth(4)).to_have_text("12")
    for title in ("Win rate over the base", "How sure, how often right", "Votes a day"):
        expect(page.locator("#figures")).to_contain_text(title)
    for axis in ("decided votes won", "how sure", "how often right", "votes"):
        expect(page.locator("#figures")).to_contain_text(axis)
    expect(page.locator("#figures .js-plotly-plot")).to_have_count(3)  # nothing is promised, so nothing is held against
    page.get_by_text("The figures in numbers").click()
    sure = page.get_by_role("group", name="How sure, how often right").get_by_role("row", name="90%")
    expect(sure).to_contain_text("80%")
    page.set_viewport_size({"width": 390, "height": 800})
    widths = "[...document.querySelectorAll('#figures .js-plotly-plot')].map(figure => figure.clientWidth)"
    page.wait_for_function(f"{widths}.every(width => 250 < width && width < 390)")  # one below the other
    page.set_viewport_size({"width": 1280, "height": 1500})

    drawn: list[object] = []
    monkeypatch.setattr(board_view, "figures", lambda *of: drawn.append(of))
    run = site.store.create_run("operator", ("reward", "ppo"), {})
    site.store.update_run(run.id, status="running", started=datetime.now(UTC))
    line = {"time": "2026-01-02T03:04:05Z", "stage": "reward", "step": 1, "progress": 0.4, "metrics": {}}
    site.store.add_run_metrics(run.id, [line])
    expect(page.locator("#live")).to_contain_text(f"Run {run.id}: Reward model")
    site.store.update_run(run.id, status="cancelled", finished=datetime.now(UTC))
    expect(page.locator("#live")).to_contain_text("No run is on.")
    assert drawn == []


def test_a_note_that_is_being_written_outlives_a_list_that_is_drawn_anew(page: Page, site: Site) -> None:
    page.locator("#left-version input").click()
    page.get_by_role("option", name="version 2").click()
    version = page.locator("#versions").get_by_role("row", name="Version 1")
    version.get_by_role("button", name="Note").click()
    words = page.get_by_label("The note")
    words.fill("kinder,")
    add_versions(site.store, 1)
    expect(page.locator("#versions").get_by_role("row", name="Version 3")).to_be_visible()
    expect(words).to_be_focused()
    expect(page.locator("#left-version input")).to_have_value("version 2")  # what was picked stays, too
    words.press_sequentially(" but longer")
    words.press("Enter")
    expect(version).to_contain_text("kinder, but longer")
    expect(words).to_have_count(0)


def test_a_version_that_came_while_something_was_saved_is_noticed(page: Page, site: Site) -> None:
    page.reload()
    page.get_by_role("button", name="When runs start, and what then").click()
    save = page.get_by_role("button", name="Save the schedule")
    expect(save).to_be_visible()
    breathe(page)
    add_versions(site.store, 1)
    save.click()
    expect(page.locator("#note")).to_contain_text("Nothing has changed.")
    expect(page.locator("#rates")).to_contain_text("Version 4")


def test_while_nothing_is_written_the_page_reads_nothing(
    page: Page, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tick() -> None:
        with page.expect_response(lambda answer: "/gradio_api/run/" in answer.url):
            pass

    tick()
    tick()  # the first may still have been about what came before
    read: list[object] = []
    monkeypatch.setattr(site.store, "versions", lambda: read.append("versions"))
    tick()
    tick()
    assert read == []


def test_a_page_whose_session_is_over_says_so(person: BrowserContext, site: Site) -> None:
    page, other = person.new_page(), person.new_page()
    log_in(page, site.url)
    other.goto(site.url + "/operator")
    other.get_by_role("button", name="Log out").click()
    expect(other.get_by_role("heading", name="Operator login")).to_be_visible()
    surely(page.get_by_role("row", name="Version 2").get_by_role("button", name="Promote"), "Really promote version 2?")
    over = page.locator("#session-over")
    expect(over).to_have_text("Your session is over. Log in again.")
    assert site.store.serving() == 0
    over.get_by_role("link").click()
    expect(page.get_by_role("heading", name="Operator login")).to_be_visible()


def test_logging_out_ends_it_or_says_that_it_did_not(page: Page, site: Site) -> None:
    page.route("**/api/logout", lambda route: route.abort())
    page.get_by_role("button", name="Log out").click()
    again = page.get_by_role("button", name="You are still logged in. Try again.")
    expect(again).to_be_visible()
    page.unroute("**/api/logout")
    again.click()
    expect(page.get_by_role("heading", name="Operator login")).to_be_visible()
    page.goto(site.url + "/operator")
    expect(page.get_by_role("heading", name="Operator login")).to_be_visible()
