"""The operators' second tab: votes found, left out and counted again, datasets in and out, and the log."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, Route, expect

from serve.feedback.exchange import import_lines
from tests.browser.conftest import TOKEN, Site, breathe
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
    page.goto(site.url + "/login")
    page.get_by_label("Operator token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    page.get_by_role("tab", name="Data and log").click()
    expect(page.locator("#found tbody tr")).to_have_count(3)
    return page


def test_votes_are_found_unfolded_excluded_and_counted_again(data: Page, site: Site) -> None:
    page = data
    rows = page.locator("#found tbody tr")
    expect(rows.nth(1)).to_contain_text("And the <b>sky</b>?")
    page.get_by_label("Holds the words").press_sequentially("jazz")
    expect(rows).to_have_count(1)
    rows.first.locator("summary").click()
    expect(rows.first).to_contain_text("A (version 0 (base)) Light.")

    rows.first.get_by_role("button", name="Exclude this voter").click()
    page.get_by_label("The reason").fill("votes at random")
    page.keyboard.press("Enter")
    expect(page.locator("#data-note")).to_contain_text("counts no more")
    expect(rows.first).to_contain_text("excluded")
    assert site.store.standing_votes() == 1
    expect(page.locator("#exclusions")).to_contain_text("votes at random")
    expect(page.locator("#deeds")).to_contain_text("votes at random")

    page.get_by_role("button", name="Lift").click()
    expect(page.locator("#exclusions")).to_contain_text("Everything counts.")
    assert site.store.standing_votes() == 3


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
    rows, note = data.locator("#found tbody tr"), data.locator("#data-note")
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


def test_an_imported_vote_on_more_answers_than_there_are_letters_is_listed(data: Page, site: Site) -> None:
    rows = [{"prompt": "Which?", "completion": f"Answer {n}.", "label": False} for n in range(30)]
    import_lines(site.store, "\n".join(json.dumps(row) for row in rows).encode(), "kto")
    data.get_by_label("Holds the words").press_sequentially("Which?")
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
    for file, told in ((bad, "Nothing was imported: line 1"), (good, "Imported: 0 votes, 1 demonstrations")):
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
    expect(told).to_contain_text("Imported: 1 votes, 0 demonstrations")
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
    expect(page.get_by_role("button", name="Train now")).to_be_visible()

    version = page.locator("#versions").get_by_role("row", name="Version 1")
    version.get_by_role("button", name="Note").click()
    page.get_by_label("The note").fill("kinder, but longer")
    page.keyboard.press("Enter")
    expect(version).to_contain_text("kinder, but longer")
    with page.expect_download() as download:
        version.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == "hustings-v1.zip"
