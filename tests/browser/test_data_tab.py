"""The operators' second tab: votes found, left out and counted again, datasets in and out, and the log."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from serve.feedback.browsing import PAGE, Search
from serve.feedback.exchange import import_lines
from serve.records import Message
from tests.browser.conftest import Site, breathe, log_in
from tests.scenes import compare, prefer, say

pytestmark = pytest.mark.browser


@pytest.fixture
def data(site: Site, person: BrowserContext) -> Page:
    """Three votes by two voters, and the tab that shows them."""
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    prefer(site.store, compare(site.store, "anna", "Why is the sea blue?"), 0)
    say(site.store, compare(site.store, "ben", "And the <b>sky</b>?"), "tie")
    prefer(site.store, compare(site.store, "ben", "What is jazz?"), 1)
    page = person.new_page()
    log_in(page, site.url)
    page.get_by_role("tab", name="Data and log").click()
    expect(page.locator("#found tbody tr")).to_have_count(3)
    return page


def test_votes_are_found_unfolded_excluded_and_counted_again(data: Page, site: Site) -> None:
    page = data
    rows = page.locator("#found tbody tr")
    expect(rows.nth(1)).to_contain_text("And the <b>sky</b>?")
    find(page, "Holds the words", "jazz")
    expect(rows).to_have_count(1)
    rows.first.locator("summary").click()
    expect(rows.first).to_contain_text("A (version 0 (base)) Light.")

    rows.first.get_by_role("button", name="Exclude this voter").click()
    page.get_by_label("The reason").fill("votes at random")
    page.keyboard.press("Enter")
    expect(page.locator("#note")).to_contain_text("counts no more")
    expect(rows.first).to_contain_text("excluded")
    assert site.store.standing_votes() == 1
    expect(page.locator("#exclusions")).to_contain_text("votes at random")
    expect(page.locator("#deeds")).to_contain_text("votes at random")

    page.get_by_role("button", name="Lift").click()
    expect(page.locator("#exclusions")).to_contain_text("Everything counts.")
    assert site.store.standing_votes() == 3


def find(page: Page, field: str, words: str) -> None:
    """Fill one of the fields in and press Enter."""
    box = page.locator("#find").get_by_label(field)
    box.fill(words)
    box.press("Enter")


def leave_out(row: Locator, button: str, reason: str) -> None:
    """Unfold a row, press one of its buttons and say why."""
    breathe(row.page)
    row.locator("details").evaluate("fold => { fold.open = true; }")
    row.get_by_role("button", name=button, exact=True).click()
    row.page.get_by_label("The reason").fill(reason)
    row.page.keyboard.press("Enter")


def test_one_vote_is_flagged_or_excluded_and_versions_that_learned_from_it_are_marked(
    data: Page, site: Site, tmp_path: Path
) -> None:
    run = site.store.create_run("votes", ("reward", "ppo"), {})
    site.store.snapshot(run.id, tmp_path / "snapshot.db")
    version = site.store.add_version(run=run.id, parent=0, status="staged", report={}, sha256="00").number
    site.store.update_run(run.id, status="succeeded", version=version, finished=datetime.now(UTC))
    rows, note = data.locator("#found tbody tr"), data.locator("#note")
    leave_out(rows.first, "Flag this vote", "look again")
    expect(note).to_contain_text("The vote is marked.")
    expect(rows.first).to_contain_text("flagged")
    assert site.store.standing_votes() == 3
    leave_out(rows.first, "Exclude this vote", "a slip")
    expect(note).to_contain_text("The vote counts no more.")
    expect(data.locator("#exclusions tbody tr")).to_have_count(2)
    assert site.store.standing_votes() == 2
    data.get_by_role("tab", name="Overview").click()
    marked = data.locator("#versions").get_by_role("row", name=f"Version {version}")
    expect(marked).to_contain_text("learned from 1 excluded vote")


def test_every_field_narrows_what_is_found(data: Page, site: Site) -> None:
    rows, note, fields = data.locator("#found tbody tr"), data.locator("#note"), data.locator("#find")
    prefer(site.store, compare(site.store, "anna", "Which version?", versions=(1, 0), evidence=False), 0)
    number = str(site.store.leave_out(vote=vote_on(site, "What is jazz?"), kind="flag", reason="odd", who="ada").voter)
    for field, words, count in (
        ("Voter", number, 2),
        ("Voter", number.removeprefix("voter-"), 2),
        ("Asked by", number, 2),
        ("Version", "1", 1),
        ("Since (UTC)", "2999-01-01", 0),
        ("Before (UTC)", "2020-01-31", 0),
        ("Since (UTC)", "2020-01-31", 4),
    ):
        find(data, field, words)
        expect(rows).to_have_count(count)
        find(data, field, "")
        expect(rows).to_have_count(4)
    for box, count in (("Blind ones only", 3), ("Flagged or excluded only", 1)):
        fields.get_by_label(box).check()
        expect(rows).to_have_count(count)
        fields.get_by_label(box).uncheck()
        expect(rows).to_have_count(4)
    fields.get_by_label("Said").click()
    data.get_by_role("option", name="A tie").click()
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("tie")
    for field, words, told in (
        ("Voter", "9" * 24, "A voter is a whole number"),
        ("Version", "x", "A version is a whole number, not “x”"),
        ("Since (UTC)", "31.1.2026", "Since is a date such as 2026-01-31"),
    ):
        find(data, field, words)
        expect(note).to_contain_text(told)
        find(data, field, "")
        expect(note).to_have_text("")


def vote_on(site: Site, prompt: str) -> str:
    """The id of the vote on it."""
    return next(str(row["id"]) for row in site.store.find_votes(Search())[0] if row["prompt"] == prompt)


def test_words_are_looked_for_when_they_are_all_there(data: Page) -> None:
    rows, words = data.locator("#found tbody tr"), data.get_by_label("Holds the words")
    words.press_sequentially("jazz")
    expect(rows).to_have_count(3)
    data.get_by_role("button", name="Find", exact=True).click()
    expect(rows).to_have_count(1)


def test_the_author_of_a_shared_prompt_is_excluded_by_a_vote_on_it(data: Page, site: Site) -> None:
    say(site.store, compare(site.store, "cleo", "Buy now?", share=True), "tie")
    pair = site.store.next_in_queue("ben")
    assert pair is not None
    say(site.store, pair, "both_bad")
    find(data, "Holds the words", "buy")
    row = data.locator("#found tbody tr").first
    expect(row).to_contain_text("asked by voter-")
    leave_out(row, "Exclude this author", "spam")
    expect(data.locator("#note")).to_contain_text(re.compile(r"Voter-\d+ counts no more\."))
    expect(data.locator("#exclusions")).to_contain_text("spam")
    assert site.store.next_in_queue("dora") is None


def test_pages_are_turned_both_ways_and_stay_when_something_is_left_out(data: Page, site: Site) -> None:
    for number in range(2 * PAGE):
        say(site.store, compare(site.store, "anna", f"Question {number}."), "tie")
        site.store.add_demonstration("anna", [Message("user", f"Show me {number}.")], "So.")
    data.get_by_role("tab", name="Overview").click()
    data.get_by_role("tab", name="Data and log").click()
    rows, shown = data.locator("#found tbody tr"), data.locator("#demonstrations tbody tr")
    expect(rows.first).to_contain_text("Question 99.")
    expect(data.get_by_role("button", name="Newer votes")).to_have_count(0)
    for begins in ("Question 49.", "What is jazz?"):
        data.get_by_role("button", name="Older votes").click()
        expect(rows.first).to_contain_text(begins)
    expect(data.get_by_role("button", name="Older votes")).to_have_count(0)
    data.get_by_role("button", name="Older demonstrations").click()
    expect(shown.first).to_contain_text("Show me 49.")
    leave_out(rows.first, "Exclude this vote", "a slip")
    expect(rows.first).to_contain_text("excluded")
    expect(rows.first).to_contain_text("What is jazz?")
    expect(shown.first).to_contain_text("Show me 49.")
    data.get_by_role("button", name="Newer votes").click()
    expect(rows.first).to_contain_text("Question 49.")
    data.get_by_role("button", name="Newer demonstrations").click()
    expect(shown.first).to_contain_text("Show me 99.")
    find(data, "Holds the words", "show me 7.")
    expect(shown).to_have_count(1)
    expect(rows).to_have_count(0)
    expect(data.locator("#found")).to_contain_text("No vote is like that.")


def test_what_is_said_stays_in_sight_and_the_focus_in_the_list(data: Page, site: Site) -> None:
    for number in range(20):
        prefer(site.store, compare(site.store, "ben", f"Question {number}."), 0)
    find(data, "Holds the words", "Question")
    rows = data.locator("#found tbody tr")
    expect(rows).to_have_count(20)
    leave_out(rows.last, "Exclude this vote", "a slip")
    expect(rows.last).to_contain_text("excluded")
    expect(data.locator("#note .note")).to_be_in_viewport()
    expect(rows.last.locator("summary")).to_be_focused()
    leave_out(rows.first, "Flag this vote", "look again")
    lift = data.locator("#exclusions").get_by_role("button", name="Lift")
    expect(lift).to_have_count(2)
    lift.first.focus()
    data.keyboard.press("Enter")
    expect(lift).to_have_count(1)
    expect(lift).to_be_focused()
    data.keyboard.press("Enter")
    expect(data.locator("#exclusions")).to_contain_text("Everything counts.")
    data.wait_for_function("document.querySelector('#exclusions').contains(document.activeElement)")


def test_an_excluded_vote_is_told_by_its_voter_and_prompt(data: Page) -> None:
    leave_out(data.locator("#found tbody tr").first, "Exclude this vote", "a slip")
    told = re.compile(r"A vote of voter-\d+ on “What is jazz\?”")
    expect(data.locator("#exclusions tbody tr")).to_contain_text(told)
    expect(data.locator("#deeds")).not_to_contain_text("jazz")


def test_the_log_is_of_now_whenever_the_tab_is_opened(data: Page, site: Site) -> None:
    data.get_by_role("tab", name="Overview").click()
    site.store.log_deed("operator page", "something new")
    data.get_by_role("tab", name="Data and log").click()
    expect(data.locator("#deeds")).to_contain_text("something new")


def test_an_empty_record_says_what_will_be_there(site: Site, person: BrowserContext) -> None:
    site.store.writing(lambda db: db.execute("DELETE FROM voters"))
    page = person.new_page()
    log_in(page, site.url)
    page.get_by_role("tab", name="Data and log").click()
    expect(page.locator("#found")).to_contain_text("No vote yet.")
    expect(page.locator("#demonstrations")).to_contain_text("None yet.")
    find(page, "Voter", "3")
    expect(page.locator("#found")).to_contain_text("No vote is like that.")
    expect(page.locator("#demonstrations")).to_contain_text("No demonstration is like that.")


def test_an_imported_vote_on_more_answers_than_there_are_letters_is_listed(data: Page, site: Site) -> None:
    rows = [{"prompt": "Which?", "completion": f"Answer {n}.", "label": False} for n in range(30)]
    import_lines(site.store, "\n".join(json.dumps(row) for row in rows).encode(), "kto")
    find(data, "Holds the words", "Which?")
    listed = data.locator("#found tbody tr")
    expect(listed).to_have_count(1)
    listed.first.locator("summary").click()
    expect(listed.first).to_contain_text("30 (imported) Answer 29.")


def test_a_dataset_comes_in_whole_or_not_at_all_and_goes_out(data: Page, site: Site, tmp_path: Path) -> None:
    page = data
    row = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    good.write_text(json.dumps(row) + "\n")
    bad.write_text(json.dumps(row | {"messages": row["messages"][:1]}) + "\n")
    page.locator("#import select[name=format]").select_option("sft")
    before = site.store.demonstrations_count()
    for file, told in ((bad, "Nothing was imported: line 1"), (good, "Imported: 0 votes, 1 demonstration, ")):
        page.locator("#import input[type=file]").set_input_files(file)
        page.locator("#import").get_by_role("button", name="Import").click()
        expect(page.locator("#imported")).to_contain_text(told)
    assert site.store.demonstrations_count() == before + 1
    shown = page.locator("#demonstrations tbody tr")
    expect(shown).to_have_count(1)
    expect(shown).to_contain_text("imported")
    expect(shown).to_contain_text("Answered Hello.")
    leave_out(shown, "Exclude this voter", "the wrong file")
    expect(shown).to_contain_text("excluded")
    assert site.store.demonstrations_count() == before
    with page.expect_download() as download:
        page.get_by_role("link", name="TRL preference").first.click()
    assert len(download.value.path().read_text().splitlines()) == 2


def test_a_file_comes_in_once_though_its_answer_was_lost(data: Page, site: Site, tmp_path: Path) -> None:
    page, file, held = data, tmp_path / "votes.jsonl", list[Route]()
    talk = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: And?\n\nAssistant: "
    file.write_text(json.dumps({"chosen": f"{talk}Yes.", "rejected": f"{talk}No."}))
    page.locator("#import select[name=format]").select_option("hh")
    page.locator("#import input[type=file]").set_input_files(file)
    button, told = page.locator("#import").get_by_role("button", name="Import"), page.locator("#imported")
    address = re.compile("/api/import")
    page.route(address, lambda route: held.append(route))
    with page.expect_request(address):
        button.click()
    expect(button).to_be_disabled()
    held[0].abort()
    expect(told).to_contain_text("It may have been imported: look at the log before you try again.")
    page.unroute(address)
    button.click()
    expect(told).to_contain_text("Imported: 1 vote, 0 demonstrations")
    rows = page.locator("#found tbody tr")
    expect(rows).to_have_count(4)
    expect(rows.first).to_contain_text("Asked HiAnswered Hello.Asked And?A (imported) Yes.")
    button.click()
    expect(told).to_contain_text("Nothing was imported: this file was imported already, on ")
    assert site.store.standing_votes() == 4


def test_a_file_that_is_too_large_stays_where_it_is(data: Page, tmp_path: Path) -> None:
    (tmp_path / "large.jsonl").write_bytes(b" " * (2**20 + 1))
    expect(data.locator("#import")).to_contain_text("File (JSON lines, 64 MB at most)")
    data.locator("#import").evaluate("form => { form.dataset.limit = 2 ** 20; }")
    data.locator("#import input[type=file]").set_input_files(tmp_path / "large.jsonl")
    data.locator("#import").get_by_role("button", name="Import").click()
    expect(data.locator("#imported")).to_have_text(
        "Nothing was imported: the file has more than 1 MB. Import it in parts."
    )


def test_a_run_takes_settings_and_a_version_a_note(data: Page, site: Site) -> None:
    page = data
    page.get_by_role("tab", name="Overview").click()
    page.get_by_role("button", name="Settings of this run").click()
    expect(page.locator("#run-settings")).to_contain_text("Rounds of rollouts and optimisation.")
    page.get_by_label("Settings, one a line").fill("ppo.updates 12")
    page.get_by_role("button", name="Train now").click()
    expect(page.locator("#note")).to_contain_text("NAME=VALUE")
    page.get_by_label("Settings, one a line").fill("ppo.updates = 12\nseed = 7")
    page.get_by_role("button", name="Train now").click()
    expect(page.locator("#note")).to_contain_text("has been started")
    assert site.training.asked[-1]["settings"] == {"ppo": {"updates": 12}, "seed": 7}
    page.get_by_role("button", name="Cancel this run").click()
    page.get_by_role("button", name="Really cancel run").click()
    expect(page.get_by_role("button", name="Train now")).to_be_visible()

    version = page.locator("#versions").get_by_role("row", name="Version 1")
    version.get_by_role("button", name="Note").click()
    page.get_by_label("The note").fill("kinder, but longer")
    page.keyboard.press("Enter")
    expect(version).to_contain_text("kinder, but longer")
    with page.expect_download() as download:
        version.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "hustings-v1.zip"
