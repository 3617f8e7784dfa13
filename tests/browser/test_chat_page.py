"""The chat page, as a person uses it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from serve.engine import CandidateRequest
from serve.feedback.store import Store
from serve.records import Comparison, Message, Sampling
from serve.web import parts
from tests.browser.conftest import QUESTION, Site, asked, breathe, last_comparison, open_chat, say, soon, tab_to

pytestmark = pytest.mark.browser

SKY = [Message("user", QUESTION)]


def verdict_of(comparison: Comparison) -> str | None:
    assert comparison.vote is not None
    return comparison.vote.judgement.verdict


def test_two_answers_stream_side_by_side_and_a_click_chooses_one(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    for pane in ("#answer-a", "#answer-b"):
        expect(chat.locator(pane)).to_contain_text("v0 says")
        expect(chat.locator(pane)).not_to_contain_text(QUESTION)
    expect(chat.locator("#box textarea")).to_have_value("")
    site.engine.hold = None
    asked(chat)
    expect(chat.locator("#answer-a")).to_contain_text(QUESTION)
    comparison = last_comparison(site.store)
    a, b = comparison.candidates
    expect(chat.locator("#answer-a")).to_contain_text(a.answer.text)

    chat.click("#vote-a")

    expect(chat.locator("#note")).to_contain_text("You chose A. Both are by the assistant as it is now.")
    expect(chat.locator("#history .bot")).to_contain_text(a.answer.text)
    expect(chat.locator("#arena")).to_be_hidden()
    vote = site.store.comparison(comparison.id, comparison.voter_id).vote
    assert vote is not None and vote.judgement.ranking == ((a.id,), (b.id,)) and vote.evidence

    say(chat, "And at night?")
    asked(chat)
    went_on = last_comparison(site.store)
    assert [m.content for m in went_on.messages] == [QUESTION, a.answer.text, "And at night?"]


def test_a_vote_can_be_undone_by_button_and_by_key(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    comparison = last_comparison(site.store)
    chat.click("#vote-a")
    expect(chat.locator("#undo")).to_be_visible()
    chat.click("#undo")
    expect(chat.locator("#note")).to_contain_text("Your vote is undone.")
    expect(chat.locator("#arena")).to_be_visible()
    expect(chat.locator("#history .bot")).to_have_count(0)
    assert last_comparison(site.store).vote is None

    chat.locator("#arena").click()
    chat.keyboard.press("2")
    expect(chat.locator("#note")).to_contain_text("You chose B.")
    vote = last_comparison(site.store).vote
    assert vote is not None and vote.judgement.ranking == (
        (comparison.candidates[1].id,),
        (comparison.candidates[0].id,),
    )
    assert not vote.evidence, "who wrote what was known"
    expect(chat.locator("#undo")).to_be_visible()
    breathe(chat)
    expect(chat.locator("#box textarea")).not_to_be_focused()
    chat.keyboard.press("u")
    expect(chat.locator("#arena")).to_be_visible()
    chat.click("#vote-tie")

    say(chat, "And at night?")
    asked(chat)
    expect(chat.locator("#undo")).to_be_hidden()
    assert len({last_comparison(site.store).id, comparison.id}) == 2


def said_of(site: Site) -> tuple[int | None, set[str]]:
    """How much better, and why: of the last comparison's vote."""
    vote = last_comparison(site.store).vote
    assert vote is not None
    return vote.judgement.strength, set(vote.judgement.reasons)


def test_how_much_better_and_why_can_follow_and_stay_over_a_reload(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-b")
    breathe(chat)
    chat.locator("#strength label", has_text="4").click()
    chat.locator("#reasons label", has_text="Clearer").click()
    expect(chat.locator("#reasons label.selected")).to_have_count(1)
    soon(chat, lambda: said_of(site) == (4, {"Clearer"}))
    vote = last_comparison(site.store).vote
    assert vote is not None
    chat.reload()
    expect(chat.locator("#undo")).to_be_visible()
    expect(chat.locator("#strength label.selected")).to_have_text("4")
    site.store.note_vote(vote.id, vote.voter_id, reasons=["Clearer", "Rhymes"])  # as a program may
    chat.locator("#reasons label", has_text="Kinder").click()
    soon(chat, lambda: said_of(site) == (4, {"Clearer", "Kinder", "Rhymes"}))
    say(chat, "And at night?")
    asked(chat)
    chat.click("#vote-tie")
    expect(chat.locator("#undo")).to_be_visible()
    expect(chat.locator("#strength")).to_be_hidden()


def test_a_key_votes_but_not_while_typing(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.locator("#box textarea").press_sequentially("a2bt")
    expect(chat.locator("#arena")).to_be_visible()
    chat.keyboard.press("Escape")
    chat.keyboard.press("2")
    expect(chat.locator("#note")).to_contain_text("You chose B.")
    expect(chat.locator("#box textarea")).to_have_value("a2bt")
    expect(chat.locator("#arena")).to_be_hidden()
    chat.keyboard.press("m")
    expect(chat.locator("#box textarea")).to_be_focused()
    expect(chat.locator("#box textarea")).to_have_value("a2btm")


def test_shortcuts_can_be_turned_off_and_stay_off(newcomer: Page, site: Site) -> None:
    chat = newcomer
    chat.get_by_label("Keyboard shortcuts").uncheck()
    say(chat, QUESTION)
    asked(chat)
    chat.reload()
    expect(chat.locator("#arena")).to_be_visible()
    expect(chat.get_by_label("Keyboard shortcuts")).not_to_be_checked()
    chat.locator("#arena").click()
    chat.keyboard.press("1")
    chat.wait_for_timeout(300)
    assert last_comparison(site.store).status == "open"


@pytest.mark.parametrize(
    ("button", "verdict", "said"),
    [("#vote-tie", "tie", "A tie."), ("#vote-skip", "skip", "Skipped.")],
)
def test_a_tie_and_a_skip_go_on_with_one_of_the_two(
    chat: Page, site: Site, button: str, verdict: str, said: str
) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click(button)
    expect(chat.locator("#note")).to_contain_text(said)
    comparison = last_comparison(site.store)
    assert verdict_of(comparison) == verdict
    expect(chat.locator("#history .bot")).to_have_count(1)
    shown = chat.locator("#history .bot").inner_text()
    assert any(candidate.answer.text in shown for candidate in comparison.candidates)


def test_both_bad_offers_another_try_or_your_own_words(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-bad")
    expect(chat.locator("#note")).to_contain_text("Neither was good enough.")
    first = last_comparison(site.store)
    assert verdict_of(first) == "both_bad"
    chat.click("#retry")
    asked(chat)
    second = last_comparison(site.store)
    assert second.id != first.id and second.messages == first.messages

    chat.click("#vote-bad")
    chat.click("#write")
    expect(chat.locator("#words textarea")).to_be_visible()
    breathe(chat)
    chat.locator("#words textarea").fill("Air scatters blue light the most.")
    chat.click("#save")
    expect(chat.locator("#history .bot")).to_contain_text("Air scatters blue light the most.")
    say(chat, "Thanks!")
    asked(chat)
    assert [m.content for m in last_comparison(site.store).messages] == [
        QUESTION,
        "Air scatters blue light the most.",
        "Thanks!",
    ]


def test_an_edited_answer_is_a_demonstration_and_the_history(chat: Page, site: Site) -> None:
    before = site.store.demonstrations_count()
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-b")
    chat.click("#edit")
    words = chat.locator("#words textarea")
    expect(words).to_have_value(last_comparison(site.store).candidates[1].answer.text)
    breathe(chat)
    words.fill("Because of Rayleigh scattering.")
    chat.click("#save")
    expect(chat.locator("#note")).to_contain_text("kept as an example")
    expect(chat.locator("#history .bot")).to_contain_text("Because of Rayleigh scattering.")
    assert site.store.demonstrations_count() == before + 1
    chat.reload()
    expect(chat.locator("#history .bot")).to_contain_text("Because of Rayleigh scattering.")
    say(chat, "Who was Rayleigh?")
    asked(chat)
    assert last_comparison(site.store).messages[1].content == "Because of Rayleigh scattering."


def test_typing_on_without_a_vote_skips_it(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    first = last_comparison(site.store)
    say(chat, "Never mind. What is rain?")
    expect(chat.locator("#answer-a")).to_contain_text("What is rain?")
    asked(chat)
    assert verdict_of(site.store.comparison(first.id, first.voter_id)) == "skip"
    messages = last_comparison(site.store).messages
    assert [m.role for m in messages] == ["user", "assistant", "user"]
    assert messages[1].content in {candidate.answer.text for candidate in first.candidates}


def test_typing_on_while_answers_are_being_written_keeps_what_was_shown(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    site.engine.hold = None
    site.engine.delay = 0.05
    say(chat, "Stop. What is rain?")
    asked(chat)
    expect(chat.locator("#answer-a")).to_contain_text("What is rain?")
    assert [m.role for m in last_comparison(site.store).messages] == ["user", "assistant", "user"]


def test_a_vote_may_come_early_and_the_winner_finishes(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    chat.click("#vote-a")
    expect(chat.locator("#note")).to_contain_text("You chose A.")
    expect(chat.locator("#arena")).to_be_hidden()
    expect(chat.locator("#history .bot")).not_to_contain_text(QUESTION)
    site.engine.hold = None
    expect(chat.locator("#history .bot")).to_contain_text(QUESTION)


def test_reload_keeps_the_talk_and_the_open_comparison(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    chat.reload()
    expect(chat.locator("#history .user")).to_contain_text(QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    site.engine.hold = None
    asked(chat)
    expect(chat.locator("#answer-b")).to_contain_text(QUESTION)
    chat.reload()
    asked(chat)
    chat.click("#vote-b")
    expect(chat.locator("#note")).to_contain_text("You chose B.")


def test_stop_ends_both_and_what_is_there_can_be_judged(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    chat.get_by_role("button", name="Stop").click()
    asked(chat)
    assert {c.answer.finish_reason for c in last_comparison(site.store).candidates} == {"cancelled"}
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_contain_text("v0 says")


def test_never_asked_means_one_answer(chat: Page, site: Site) -> None:
    chat.get_by_label("Never").check()
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#history .bot")).to_contain_text("v0 says")
    expect(chat.locator("#arena")).to_be_hidden()
    site.engine.hold = None
    expect(chat.locator("#history .bot")).to_contain_text(QUESTION)
    expect(chat.locator("#edit")).to_be_visible()
    chat.get_by_label("Always").check()


def test_identical_answers_become_one_unasked(chat: Page, site: Site) -> None:
    site.engine.script = lambda version, seed, prompt: ["The ", "same."]
    say(chat, QUESTION)
    expect(chat.locator("#note")).to_contain_text("nothing to choose")
    expect(chat.locator("#history .bot")).to_contain_text("The same.")
    expect(chat.locator("#arena")).to_be_hidden()


def test_an_error_is_said_in_words_and_keeps_what_was_typed(chat: Page, site: Site) -> None:
    long = "word " * 600
    say(chat, long)
    expect(chat.locator("#note .problem")).to_contain_text("This message is too long for the model. Shorten it, or")
    expect(chat.locator("#box textarea")).to_have_value(long)
    site.engine.full = True
    say(chat, QUESTION)
    expect(chat.locator("#note .problem")).to_contain_text("The queue is full; try again in a moment.")
    expect(chat.locator("#box textarea")).to_have_value(QUESTION)
    site.engine.full = False
    chat.locator("#box textarea").press("Enter")
    asked(chat)


@pytest.mark.parametrize("how", ["Always", "Never"])
def test_whoever_waits_sees_the_place_in_line_until_the_answer_begins(chat: Page, site: Site, how: str) -> None:
    site.engine.hold, site.engine.room = 0, 1
    others = [site.engine.submit(site.engine.encode(SKY), [CandidateRequest(0, 1)], Sampling()) for _ in range(3)]
    chat.get_by_label(how).check()
    note = chat.locator("#note")
    say(chat, QUESTION)
    expect(note).to_have_text("Waiting in line: 2 before you.")
    others[0].cancel()
    expect(note).to_have_text("Waiting in line: 1 before you.")
    chat.reload()
    expect(note).to_have_text("Waiting in line: 1 before you.")
    others[1].cancel()
    expect(note).to_have_text("Waiting in line: you are next.")
    site.engine.hold = 1
    others[2].cancel()
    expect(chat.locator("#answer-b, #history .bot").first).to_contain_text("v0")
    expect(note).to_have_text("")
    chat.get_by_label("Always").check()
    site.engine.hold = None
    expect(chat.locator("#answer-b, #history .bot").first).to_contain_text(QUESTION)


def test_whoever_stops_in_line_is_no_longer_told_of_it(chat: Page, site: Site) -> None:
    site.engine.hold, site.engine.room = 0, 1
    other = site.engine.submit(site.engine.encode(SKY), [CandidateRequest(0, 1)], Sampling())
    say(chat, QUESTION)
    expect(chat.locator("#note")).to_have_text("Waiting in line: you are next.")
    chat.get_by_role("button", name="Stop").click()
    expect(chat.locator("#retry")).to_be_visible()
    expect(chat.locator("#note")).to_have_text("")
    other.cancel()


def test_an_answer_that_takes_too_long_says_so_and_what_is_there_can_be_judged(chat: Page, site: Site) -> None:
    usual = site.service.settings
    site.service.settings = usual.model_copy(update={"answer_timeout": timedelta(seconds=1)})
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#note .problem")).to_contain_text("This answer took too long and was stopped.")
    site.service.settings = usual
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_contain_text("v0 says")


def test_a_talk_that_is_too_long_may_go_on_without_its_oldest_turns(chat: Page, site: Site) -> None:
    chat.get_by_label("Never").check()
    oldest = f"Tell me of {'the sea ' * 120}"
    say(chat, oldest)
    expect(chat.locator("#edit")).to_be_visible()
    say(chat, "And rain?")
    expect(chat.locator("#note .problem")).to_contain_text("longer than the model can read at once")
    expect(chat.locator("#history .user")).to_have_count(1)
    site.engine.hold = 2
    chat.get_by_role("button", name="Go on without the oldest turns").click()
    expect(chat.locator("#note")).to_contain_text("without its oldest turns")
    expect(chat.locator("#offer")).to_be_hidden()
    expect(chat.locator("#box textarea")).to_have_value("")
    site.engine.hold = None
    expect(chat.locator("#history .bot").last).to_contain_text("And rain?")
    expect(chat.locator("#history .user").first).to_contain_text("Tell me of the sea")
    expect(chat.locator("#edit")).to_be_visible()
    chat.get_by_label("Always").check()
    say(chat, "And snow?")
    asked(chat)
    expect(chat.locator("#offer")).to_be_hidden()
    assert last_comparison(site.store).messages[0].content == oldest
    chat.click("#vote-bad")
    chat.reload()
    chat.click("#retry")
    expect(chat.locator("#note .problem")).to_contain_text("longer than the model can read at once")
    chat.click("#forget")
    asked(chat)


def test_an_edit_that_is_too_long_is_what_the_offer_repeats(chat: Page, site: Site) -> None:
    box, problem = chat.locator("#box textarea"), chat.locator("#note .problem")
    chat.get_by_label("Never").check()
    say(chat, f"Tell me of {'the sea ' * 120}")
    expect(chat.locator("#edit")).to_be_visible()
    say(chat, "And rain?")
    expect(problem).to_contain_text("longer than the model can read at once")
    chat.click("#forget")
    expect(chat.locator("#history .bot").last).to_contain_text("And rain?")
    expect(chat.locator("#edit")).to_be_visible()
    chat.reload()
    expect(chat.locator("#edit")).to_be_visible()
    box.fill("A draft")
    for text, refused in (("And snow?", True), ("And hail?", False)):
        chat.locator("#history .user").last.hover()
        chat.locator("#history").get_by_role("button", name="Edit").last.click()
        chat.locator("#history textarea").fill(text)
        chat.get_by_role("button", name="Submit").click()
        if refused:
            expect(problem).to_contain_text("longer than the model can read at once")
            breathe(chat)
            chat.click("#forget")
        expect(chat.locator("#history .bot").last).to_contain_text(text)
        expect(chat.locator("#edit")).to_be_visible()
        expect(box).to_have_value("A draft")
    expect(chat.locator("#history .branch")).to_contain_text("3 of 3")
    box.fill("")
    chat.get_by_label("Always").check()


def test_what_a_model_writes_cannot_run_in_the_page(chat: Page, site: Site) -> None:
    site.engine.script = lambda version, seed, prompt: [f"{seed} <img src=x onerror='window.hacked=1'>", "<b>bold</b>"]
    say(chat, "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'>")
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_contain_text("bold")
    chat.wait_for_timeout(200)
    assert chat.evaluate("window.hacked") is None


def test_conversations_are_listed_and_are_ones_own(chat: Page, newcomer: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#new-chat")
    expect(chat.locator("#arena")).to_be_hidden()
    say(chat, "What is rain?")
    asked(chat)
    expect(chat.locator(".talks button").first).to_have_text("What is rain?")
    chat.locator(".talks button", has_text=QUESTION).first.click()
    expect(chat.locator("#history .user")).to_have_text(QUESTION)
    asked(chat)
    expect(chat.locator("#talk-list [aria-current=true]")).to_have_text(QUESTION)

    expect(newcomer.locator("#talk-list")).to_contain_text("Your conversations will be listed here.")
    expect(newcomer.locator("#history .user")).to_have_count(0)


def test_a_talk_that_one_left_is_written_to_its_end_unseen(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, "Tell me of the sea.")
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    breathe(chat)
    chat.click("#new-chat")
    expect(chat.locator("#arena")).to_be_hidden()
    site.engine.hold = None
    chat.wait_for_timeout(500)
    expect(chat.locator("#arena")).to_be_hidden()
    expect(chat.locator("#history .user")).to_have_count(0)
    chat.locator(".talks button", has_text="Tell me of the sea.").click()
    asked(chat)
    expect(chat.locator("#answer-b")).to_contain_text("Tell me of the sea.")


def test_on_a_phone_the_side_panel_starts_closed(site: Site, person: BrowserContext) -> None:
    page = person.new_page()
    page.set_viewport_size({"width": 390, "height": 800})
    open_chat(page, site)
    expect(page.locator("#side")).not_to_have_class(re.compile("open"))
    page.get_by_role("button", name="Toggle Sidebar").click()
    page.get_by_role("button", name="New chat").click()
    expect(page.locator("#side")).not_to_have_class(re.compile("open"))
    say(page, QUESTION)
    asked(page)
    page.click("#vote-b")
    expect(page.locator("#note")).to_contain_text("You chose B.")


def test_a_page_may_open_before_the_model_is_loaded(newcomer: Page, site: Site) -> None:
    site.service._engine = None
    newcomer.reload()
    expect(newcomer.locator("#note")).to_contain_text("The model is still loading.")
    say(newcomer, QUESTION)
    expect(newcomer.locator("#note .problem")).to_contain_text("still loading")
    expect(newcomer.locator("#box textarea")).to_have_value(QUESTION)
    site.service.attach(site.engine)
    expect(newcomer.locator("#note")).to_have_text("")
    newcomer.locator("#box textarea").press("Enter")
    asked(newcomer)


def talks(page: Page) -> Locator:
    """The list of conversations."""
    return page.locator("#talk-list [data-talk]")


def search(page: Page, text: str) -> None:
    """As on a keyboard: Gradio does not notice what is put in by script."""
    field = page.get_by_label("Search your conversations")
    field.press("ControlOrMeta+a")
    field.press("Backspace")
    field.press_sequentially(text)


def test_conversations_are_renamed_searched_and_deleted(newcomer: Page, site: Site) -> None:
    chat = newcomer
    say(chat, "How do I bake bread?")
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#undo")).to_be_visible()
    chat.click("#new-chat")
    expect(chat.locator("#history .user")).to_have_count(0)
    say(chat, QUESTION)
    asked(chat)
    expect(talks(chat)).to_have_text([QUESTION, "How do I bake bread?"])

    chat.locator("#talk-list li").nth(1).hover()
    chat.get_by_role("button", name="Rename “How do I bake bread?”").click()
    breathe(chat)
    chat.get_by_role("textbox", name="Title").fill("Bread")
    chat.keyboard.press("Enter")
    expect(talks(chat)).to_have_text([QUESTION, "Bread"])
    breathe(chat)
    expect(chat.locator("#history .user")).to_have_text([QUESTION])  # renamed, not opened

    search(chat, "BAKE")
    expect(talks(chat)).to_have_text(["Bread"])
    talks(chat).first.click()
    expect(chat.locator("#history .user")).to_contain_text("bake bread")
    expect(talks(chat)).to_have_text(["Bread"])
    search(chat, "nothing like it")
    expect(chat.locator("#talk-list")).to_contain_text("Nothing of yours holds these words.")
    search(chat, "")

    chat.locator("#talk-list li").nth(1).hover()
    chat.get_by_role("button", name="Delete “Bread”").click()
    expect(chat.get_by_role("button", name="Delete, with 1 vote?")).to_be_visible()
    chat.keyboard.press("Tab")
    expect(chat.get_by_role("button", name="Delete, with 1 vote?")).to_have_count(0)
    chat.get_by_role("button", name="Delete “Bread”").click()
    chat.get_by_role("button", name="Delete, with 1 vote?").click()
    expect(talks(chat)).to_have_text([QUESTION])
    expect(chat.locator("#history .user")).to_have_count(0)
    expect(chat.locator("#note")).to_have_text("Deleted.")


def test_a_list_that_is_drawn_anew_keeps_the_title_that_is_being_typed(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    listed = chat.locator("#talk-list ul")
    before = listed.evaluate("list => list.outerHTML")
    chat.locator("#talk-list li").first.hover()
    chat.get_by_role("button", name=f"Rename “{QUESTION}”").first.click()
    field = chat.get_by_role("textbox", name="Title")
    field.fill("Blue")
    listed.evaluate("(list, before) => { list.outerHTML = before; }", before)
    expect(field).to_be_focused()
    field.press_sequentially(" skies")
    field.press("Enter")
    expect(talks(chat).first).to_have_text("Blue skies")


def test_a_deleted_talk_takes_its_draft_along(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.locator("#box textarea").fill("Half a sentence")
    chat.wait_for_function("Object.values(localStorage).includes('Half a sentence')")
    for _ in range(2):
        chat.locator("#talk-list li:has([aria-current])").hover()
        chat.locator("#talk-list li:has([aria-current]) [data-delete]").click()
    expect(chat.locator("#note")).to_have_text("Deleted.")
    chat.wait_for_timeout(500)
    assert not chat.evaluate("Object.values(localStorage).includes('Half a sentence')")


def test_a_talk_that_is_deleted_while_it_is_answered_stays_away(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-b")).to_contain_text("v0 says")
    breathe(chat)
    for _ in range(2):
        chat.locator("#talk-list li:has([aria-current])").hover()
        chat.locator("#talk-list li:has([aria-current]) [data-delete]").click()
    expect(chat.locator("#note")).to_have_text("Deleted.")
    chat.wait_for_timeout(400)
    expect(chat.locator("#note")).to_have_text("Deleted.")
    expect(chat.locator("#history .user, #arena")).to_have_count(0)


def test_light_or_dark_is_chosen_for_all_pages_and_as_the_system_has_it_before(newcomer: Page, site: Site) -> None:
    chat, dark = newcomer, re.compile(r"\bdark\b")
    expect(chat.locator("body")).not_to_have_class(dark)
    chat.get_by_role("button", name="Light or dark").click()
    expect(chat.locator("body")).to_have_class(dark)
    chat.goto(site.url + "/you")
    expect(chat.locator("body")).to_have_class(dark)
    chat.get_by_role("button", name="Light or dark").click()
    expect(chat.locator("body")).not_to_have_class(dark)
    chat.emulate_media(color_scheme="dark")
    expect(chat.locator("body")).to_have_class(dark)
    chat.get_by_role("button", name="Light or dark").click()
    chat.reload()
    expect(chat.locator("#my-votes")).to_be_visible()
    expect(chat.locator("body")).not_to_have_class(dark)


def test_a_turn_can_be_said_otherwise_and_the_old_branch_comes_back(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_have_count(1)
    answer = chat.locator("#history .bot").inner_text()
    chat.locator("#history .user").hover()
    chat.get_by_role("button", name="Edit").first.click()
    chat.locator("#history textarea").fill("Why is the sea blue?")
    chat.get_by_role("button", name="Submit").click()
    asked(chat)
    expect(chat.locator("#history .user")).to_contain_text("Why is the sea blue?")
    expect(chat.locator("#history .branch")).to_contain_text("2 of 2")
    chat.click("#vote-b")
    chat.locator("#history .branch").get_by_role("button", name="The one before").click()
    expect(chat.locator("#history .user")).to_contain_text(QUESTION)
    expect(chat.locator("#history .bot")).to_contain_text(answer)
    expect(chat.locator("#history .branch")).to_contain_text("1 of 2")


def test_an_answer_can_be_asked_for_anew(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_have_count(1)
    chat.locator("#history .bot").hover()
    chat.get_by_role("button", name="Retry").click()
    asked(chat)
    chat.click("#vote-b")
    expect(chat.locator("#history .branch")).to_contain_text("2 of 2")


def test_a_tab_that_was_left_behind_undoes_and_keeps_nothing_of_what_came_since(newcomer: Page, site: Site) -> None:
    left, problem = newcomer, newcomer.locator("#note .problem")
    say(left, QUESTION)
    asked(left)
    left.click("#vote-a")
    expect(left.locator("#undo")).to_be_visible()
    other = left.context.new_page()
    other.goto(left.url)
    expect(other.locator("#undo")).to_be_visible()
    say(other, "And at night?")
    asked(other)
    other.click("#vote-b")
    expect(other.locator("#note")).to_contain_text("You chose B.")

    left.click("#undo")
    expect(problem).to_contain_text("This talk has gone on in another tab.")
    expect(left.locator("#history .user")).to_have_count(2)
    assert last_comparison(site.store).vote is not None

    breathe(left)
    left.click("#edit")
    words = left.locator("#words textarea")
    expect(words).to_be_focused()
    words.fill("Half an answer")
    say(other, "And at dawn?")
    asked(other)
    other.click("#vote-a")
    expect(other.locator("#note")).to_contain_text("You chose A.")
    before = site.store.demonstrations_count()
    for _ in range(2):
        left.click("#save")
        expect(problem).to_contain_text("This talk has gone on in another tab.")
        expect(left.locator("#history .user")).to_have_count(3)
        expect(words).to_have_value("Half an answer")
        left.wait_for_timeout(200)
    assert site.store.demonstrations_count() == before


def test_a_second_enter_on_a_slow_line_says_nothing_twice(newcomer: Page, site: Site) -> None:
    line = newcomer.context.new_cdp_session(newcomer)
    line.send("Network.enable")
    slow = {"offline": False, "latency": 300, "downloadThroughput": -1, "uploadThroughput": -1}
    line.send("Network.emulateNetworkConditions", slow)
    say(newcomer, QUESTION)
    newcomer.locator("#box textarea").press("Enter")
    asked(newcomer)
    newcomer.wait_for_timeout(700)
    expect(talks(newcomer)).to_have_count(1)
    expect(newcomer.locator("#history .user")).to_have_count(1)


def test_a_message_that_was_refused_stays_a_draft(chat: Page, site: Site) -> None:
    say(chat, "Who invented rye bread?")
    asked(chat)
    site.engine.full = True
    say(chat, "And when?")
    expect(chat.locator("#note .problem")).to_contain_text("The queue is full")
    chat.click("#new-chat")
    expect(chat.locator("#history .user")).to_have_count(0)
    chat.get_by_role("button", name="Who invented rye bread?", exact=True).click()
    expect(chat.locator("#box textarea")).to_have_value("And when?")


def test_the_answer_before_is_still_there_when_no_new_one_was_good(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#history .bot")).to_have_count(1)
    answer = chat.locator("#history .bot").inner_text()
    chat.locator("#history .bot").hover()
    chat.get_by_role("button", name="Retry").click()
    asked(chat)
    chat.click("#vote-bad")
    expect(chat.locator("#history .bot")).to_have_count(0)
    breathe(chat)
    chat.locator("#history").get_by_role("button", name="Back to the answer before").click()
    expect(chat.locator("#history .bot")).to_contain_text(answer)


def test_branches_stand_beside_their_turns_also_after_one_without_an_answer(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-bad")
    expect(chat.locator("#remedy")).to_be_visible()
    say(chat, "And at night?")
    asked(chat)
    chat.click("#vote-a")
    expect(chat.locator("#history .user")).to_have_count(2)
    chat.locator("#history .bot").hover()
    chat.get_by_role("button", name="Retry").click()
    asked(chat)
    chat.click("#vote-b")
    expect(chat.locator("#history .bot-row .branch")).to_contain_text("2 of 2")
    expect(chat.locator("#history .user-row .branch")).to_have_count(0)


def test_settings_of_ones_own_are_used_kept_and_no_evidence(newcomer: Page, site: Site) -> None:
    chat = newcomer
    chat.get_by_role("button", name="How it answers").click()
    chat.get_by_label("What it should keep in mind").fill("Answer in one word.")
    chat.get_by_label("number input for Longest answer").fill("32")
    chat.get_by_label("number input for Longest answer").press("Enter")
    say(chat, QUESTION)
    asked(chat)
    comparison = last_comparison(site.store)
    assert [m.content for m in comparison.messages] == ["Answer in one word.", QUESTION]
    assert {c.answer.sampling.max_tokens for c in comparison.candidates} == {32}
    chat.click("#vote-a")
    expect(chat.locator("#undo")).to_be_visible()
    vote = last_comparison(site.store).vote
    assert vote is not None and not vote.evidence
    chat.reload()
    chat.get_by_role("button", name="How it answers").click()
    expect(chat.get_by_label("number input for Longest answer")).to_have_value("32")


def test_what_a_talk_keeps_in_mind_is_its_own_and_what_a_new_one_shall_outlives_a_reload(
    newcomer: Page, site: Site
) -> None:
    chat, field = newcomer, newcomer.get_by_label("What it should keep in mind")
    manner = chat.get_by_role("button", name="How it answers")
    manner.click()
    breathe(chat)
    before = chat.evaluate("localStorage.getItem('hustings-system')")
    field.fill("Be brief.")
    chat.wait_for_function("before => localStorage.getItem('hustings-system') !== before", arg=before)
    chat.reload()
    manner.click()
    expect(field).to_have_value("Be brief.")
    say(chat, QUESTION)
    asked(chat)
    expect(field).to_be_disabled()
    expect(chat.locator("#system")).to_contain_text("Set when the talk began")

    chat.click("#new-chat")
    expect(field).to_be_enabled()
    expect(field).to_have_value("Be brief.")
    field.fill("")
    say(chat, "What is rain?")
    asked(chat)
    expect(field).to_have_value("")
    chat.get_by_role("button", name=QUESTION, exact=True).click()
    expect(field).to_have_value("Be brief.")
    expect(field).to_be_disabled()
    assert [m.role for m in last_comparison(site.store).messages] == ["user"]


def test_a_new_chat_says_how_many_votes_it_takes_until_it_learns(chat: Page, site: Site) -> None:
    expect(chat.locator("#history .placeholder")).to_contain_text(parts.until_it_learns(site.training.due()))
    run = site.store.create_run("operator", ["reward"], {})
    chat.click("#new-chat")
    expect(chat.locator("#history .placeholder")).to_contain_text("It is learning from the votes so far.")
    site.store.update_run(run.id, status="cancelled", finished=datetime.now(UTC))


def test_the_address_names_the_talk_for_a_second_tab_and_the_back_button(newcomer: Page, site: Site) -> None:
    chat = newcomer
    say(chat, "How do I bake bread?")
    asked(chat)
    first = chat.url
    assert "?talk=" in first
    chat.click("#new-chat")
    expect(chat.locator("#history .user")).to_have_count(0)
    say(chat, QUESTION)
    asked(chat)
    other = chat.context.new_page()
    other.goto(first)
    expect(other.locator("#history .user")).to_contain_text("bake bread")
    chat.evaluate("history.back()")  # the page loads itself anew
    expect(chat.locator("#history .user")).to_contain_text("bake bread")
    other.goto(site.url + "/?talk=somebody-elses")
    expect(other.locator("#history .user")).to_contain_text(QUESTION)


def test_what_is_typed_outlives_a_reload_and_is_gone_once_it_is_sent(newcomer: Page, site: Site) -> None:
    chat = newcomer
    kept = "[localStorage, sessionStorage].some(held => Object.values(held).includes('Half a thou'))"
    chat.locator("#box textarea").fill("Half a thou")
    chat.wait_for_function(kept)
    chat.reload()
    expect(chat.locator("#box textarea")).to_have_value("Half a thou")
    chat.locator("#box textarea").press("Enter")
    asked(chat)
    assert last_comparison(site.store).messages[-1].content == "Half a thou"
    chat.wait_for_function(f"!{kept}")
    chat.reload()
    expect(chat.locator("#arena")).to_be_visible()
    expect(chat.locator("#box textarea")).to_have_value("")


def test_what_is_typed_belongs_to_its_talk(newcomer: Page, site: Site) -> None:
    chat, box = newcomer, newcomer.locator("#box textarea")
    say(chat, "How do I bake bread?")
    asked(chat)
    expect(box).to_have_value("")
    box.fill("With rye, of course")
    chat.click("#new-chat")
    expect(chat.locator("#history .user")).to_have_count(0)
    expect(box).to_have_value("")
    breathe(chat)
    box.fill("Something else")
    chat.reload()  # a new chat stays one
    expect(box).to_have_value("Something else")
    expect(chat.locator("#history .user")).to_have_count(0)
    chat.get_by_role("button", name="How do I bake bread?", exact=True).click()
    expect(chat.locator("#history .user")).to_contain_text("bake bread")
    expect(box).to_have_value("With rye, of course")
    box.press("Enter")
    expect(chat.locator("#history .user")).to_have_count(2)
    chat.click("#new-chat")
    expect(box).to_have_value("Something else")
    breathe(chat)
    box.press("Enter")
    asked(chat)
    chat.click("#new-chat")
    expect(chat.locator("#history .user")).to_have_count(0)
    expect(box).to_have_value("")


def test_a_better_answer_half_written_outlives_a_reload_until_it_is_left(newcomer: Page, site: Site) -> None:
    chat, words = newcomer, newcomer.locator("#words textarea")
    say(chat, QUESTION)
    asked(chat)
    chat.click("#vote-a")
    chat.get_by_role("button", name="Edit answer").click()
    expect(words).to_be_focused()
    words.fill("Because of the sky, mo")
    chat.reload()
    chat.get_by_role("button", name="Edit answer").click()
    expect(words).to_have_value("Because of the sky, mo")
    chat.get_by_role("button", name="Cancel").click()
    expect(words).to_have_count(0)
    chat.get_by_role("button", name="Edit answer").click()
    expect(words).to_have_value(re.compile("v0 says"))
    words.fill("Another half")
    say(chat, "And at night?")  # the editor closes: what is in it was for the answer above
    asked(chat)
    chat.click("#vote-a")
    chat.get_by_role("button", name="Edit answer").click()
    chat.wait_for_timeout(400)
    expect(words).to_have_value(re.compile("v0 says"))


def test_what_is_typed_before_the_page_knows_its_talk_stays(newcomer: Page, site: Site) -> None:
    newcomer.add_init_script("""
        new MutationObserver((_, observer) => {
          const box = document.querySelector('#box textarea');
          if (!box) return;
          observer.disconnect();
          box.value = 'Very early';
          box.dispatchEvent(new Event('input', {bubbles: true}));
        }).observe(document, {childList: true, subtree: true});
    """)
    newcomer.reload()
    expect(newcomer.locator("#talk-list .side-foot, #talk-list .talks")).to_be_visible()
    newcomer.wait_for_timeout(600)
    expect(newcomer.locator("#box textarea")).to_have_value("Very early")


def test_on_a_phone_answers_stack_and_can_be_voted_on(site: Site, browser: Browser) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    try:
        open_chat(page, site)
        say(page, QUESTION)
        asked(page)
        a, b = (page.locator(f"#answer-{name}").bounding_box() for name in "ab")
        assert a is not None and b is not None and b["y"] > a["y"] + a["height"] - 1
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, "nothing sticks out"
        expect(page.get_by_role("heading", level=1)).to_have_text("Two answers. You choose. It learns.")
        page.locator("#vote-b").tap()
        expect(page.locator("#note")).to_contain_text("You chose B.")
        page.wait_for_timeout(300)
        expect(page.locator("#box textarea")).not_to_be_focused()
    finally:
        context.close()


def test_code_can_be_copied_and_prices_are_no_formulas(chat: Page, site: Site) -> None:
    words = ["From $3000 to $4000 ", "is $$a^2$$ **more**.\n\n", "- one\n- two\n\n", "```python\nprint(1)\n```\n"]
    site.engine.script = lambda version, seed, prompt: [f"{seed}: ", *words]
    say(chat, QUESTION)
    asked(chat)
    expect(chat.locator("#answer-a")).to_contain_text("From $3000 to $4000 is")
    expect(chat.locator("#answer-a .katex").first).to_be_visible()
    expect(chat.locator("#answer-a strong")).to_have_text("more")
    expect(chat.locator("#answer-a li")).to_have_text(["one", "two"])
    chat.context.grant_permissions(["clipboard-read", "clipboard-write"])
    chat.locator("#answer-a pre").hover()
    chat.locator("#answer-a .copy_code_button").click()
    soon(chat, lambda: chat.evaluate("navigator.clipboard.readText()").strip() == "print(1)")
    chat.click("#vote-a")
    history = chat.locator("#history .bot")
    expect(history).to_contain_text("From $3000 to $4000 is")
    expect(history.locator(".katex").first).to_be_visible()
    expect(history.locator("strong")).to_have_text("more")
    expect(history.locator(".copy_code_button")).to_be_attached()


def test_completion_is_announced_once_and_what_streams_is_not(chat: Page, site: Site) -> None:
    site.engine.hold = 2
    say(chat, QUESTION)
    expect(chat.locator("#answer-a")).to_contain_text("v0 says")
    live = "#arena [aria-live]:not([aria-live=off]), #arena [role=status], #arena [role=log]"
    expect(chat.locator(live)).to_have_count(0)
    assert "better" not in chat.locator("#said-status").inner_text()
    chat.evaluate("""() => {
      window.told = [];
      new MutationObserver(() => window.told.push(document.getElementById('said-status').textContent))
        .observe(document.getElementById('said-status'), {childList: true});
    }""")
    site.engine.hold = None
    asked(chat)
    chat.wait_for_timeout(500)
    told = chat.evaluate("window.told")
    assert [words.startswith("Both answers are there.") for words in told] == [True]


AT_END = "innerHeight + scrollY >= document.documentElement.scrollHeight - 90"


def test_the_page_follows_what_is_written_unless_the_reader_has_scrolled_up(chat: Page, site: Site) -> None:
    site.engine.script = lambda version, seed, prompt: [f"{seed}\n\n", *[f"line {i}\n\n" for i in range(60)]]
    say(chat, QUESTION)
    asked(chat)
    chat.wait_for_function(AT_END)
    assert chat.evaluate("scrollY") > 500
    chat.click("#vote-a")
    expect(chat.locator("#arena")).to_be_hidden()
    chat.evaluate("scrollTo(0, 0)")
    chat.wait_for_timeout(200)
    say(chat, "And at night?")
    asked(chat)
    assert chat.evaluate("scrollY") < 200


def test_the_page_keeps_following_what_grows_faster_than_it_is_told_of_its_scrolling(chat: Page) -> None:
    grow = """() => new Promise(done => {
        let left = 5;
        new ResizeObserver((_, observer) => {  // after the page's own has scrolled, before its scroll event
            if (!left--) return observer.disconnect(), done();
            const tall = document.createElement('div');
            tall.className = 'tall';
            tall.style.height = '1000px';
            document.body.append(tall);
        }).observe(document.body);
    })"""
    at_end, clear = f"scrollY > 3000 && {AT_END}", "document.querySelectorAll('.tall').forEach(tall => tall.remove())"
    chat.evaluate(grow)
    chat.wait_for_function(at_end)
    chat.evaluate("scrollTo(0, 0)")  # the reader's, in a long chat; a new one is short, and followed again
    chat.wait_for_timeout(200)
    chat.evaluate(clear)
    chat.wait_for_timeout(200)
    chat.evaluate(grow)
    chat.wait_for_function(at_end)
    chat.evaluate(clear)


def test_both_answers_grow_at_the_same_pace_in_the_page(chat: Page, site: Site) -> None:
    site.engine.script = lambda version, seed, prompt: ["wonderful "] * 9 if seed % 2 else ["ab "] * 9
    site.engine.hold = 5
    say(chat, QUESTION)
    panes = chat.locator("#answer-a, #answer-b")
    behind, ahead = panes.filter(has_text="ab"), panes.filter(has_text="wonderful")
    expect(behind).to_contain_text(" ".join(["ab"] * 5))
    expect(ahead).to_contain_text("wonderful")
    assert ahead.inner_text().split().count("wonderful") == 1, "five are written"
    site.engine.hold = None
    asked(chat)
    expect(behind).to_contain_text(" ".join(["ab"] * 9))
    expect(ahead).to_contain_text(" ".join(["wonderful"] * 9))


def votes_cast(store: Store, comparison_id: str) -> int:
    """How many rows there are, undone ones too."""
    with store.reading() as db:
        return int(db.execute("SELECT count(*) FROM votes WHERE comparison_id = ?", (comparison_id,)).fetchone()[0])


def test_a_vote_in_one_tab_is_known_in_the_other_and_when_one_goes_back(newcomer: Page, site: Site) -> None:
    say(newcomer, QUESTION)
    asked(newcomer)
    comparison = last_comparison(site.store)
    other = newcomer.context.new_page()
    other.goto(newcomer.url)
    asked(other)
    newcomer.click("#vote-a")
    expect(newcomer.locator("#note")).to_contain_text("You chose A.")

    breathe(other)
    other.click("#vote-b")
    expect(other.locator("#note .problem")).to_contain_text("You have voted on this")
    expect(other.locator("#arena")).to_be_hidden()
    expect(other.locator("#history .bot")).to_contain_text(comparison.candidates[0].answer.text)

    newcomer.click("#new-chat")
    expect(newcomer.locator("#history .user")).to_have_count(0)
    newcomer.evaluate("history.back()")
    expect(newcomer.locator("#history .bot")).to_contain_text(comparison.candidates[0].answer.text)
    expect(newcomer.locator("#undo")).to_be_visible()
    assert votes_cast(site.store, comparison.id) == 1


def test_answers_that_waited_for_more_than_a_day_are_judged_no_more(chat: Page, site: Site) -> None:
    say(chat, QUESTION)
    asked(chat)
    waited = last_comparison(site.store).id
    long_ago = "2020-01-01T00:00:00.000000Z"
    site.store.writing(lambda db: db.execute("UPDATE comparisons SET expires = ? WHERE id = ?", (long_ago, waited)))
    chat.click("#vote-a")
    expect(chat.locator("#note .problem")).to_contain_text("These answers waited for more than a day")
    assert votes_cast(site.store, waited) == 0


def test_whoever_keeps_no_cookies_is_told_and_loses_nothing(newcomer: Page, site: Site) -> None:
    newcomer.context.clear_cookies()
    say(newcomer, QUESTION)
    expect(newcomer.locator("#note .problem")).to_contain_text("Allow cookies, and reload the page.")
    expect(newcomer.locator("#box textarea")).to_have_value(QUESTION)


def test_two_tabs_with_a_new_chat_keep_apart_what_is_typed(newcomer: Page, site: Site) -> None:
    other = newcomer.context.new_page()
    open_chat(other, site)
    other.locator("#box textarea").fill("Second thoughts")
    other.wait_for_function("[sessionStorage, localStorage].some(s => Object.values(s).includes('Second thoughts'))")
    say(newcomer, QUESTION)
    asked(newcomer)
    other.reload()
    expect(other.locator("#box textarea")).to_have_value("Second thoughts")


def test_a_vote_key_that_is_pressed_twice_is_no_message(chat: Page, site: Site) -> None:
    box = chat.locator("#box textarea")
    say(chat, QUESTION)
    asked(chat)
    chat.keyboard.press("Escape")
    chat.keyboard.press("1")
    expect(chat.locator("#note")).to_contain_text("You chose A.")
    expect(chat.locator("#votes")).to_be_hidden()
    chat.evaluate("votedAt = Date.now()")  # however slow this machine is
    chat.keyboard.press("1")
    expect(box).not_to_be_focused()
    chat.evaluate("votedAt = 0")
    chat.keyboard.press("1")
    expect(box).to_have_value("1")
    box.fill("")


def test_a_chat_can_be_had_by_keyboard_alone(site: Site, person: BrowserContext) -> None:
    page = person.new_page()
    keys, note, box = page.keyboard, page.locator("#note"), page.locator("#box textarea")
    history, branch = page.locator("#history"), page.locator("#history .branch")
    page.goto(site.url + "/")
    expect(page.locator("#consent")).to_be_visible()
    tab_to(page, page.locator("#private"))
    keys.press("Enter")
    expect(box).to_be_visible()
    tab_to(page, box)
    keys.type(QUESTION)
    keys.press("Enter")
    asked(page)
    keys.press("Escape")
    keys.press("1")
    expect(note).to_contain_text("You chose A.")
    expect(page.locator("#undo")).to_be_visible()

    breathe(page)
    tab_to(page, page.locator("#strength input").first)
    keys.press("Space")
    soon(page, lambda: said_of(site) == (1, set()))
    tab_to(page, page.locator("#reasons input").first)
    keys.press("Space")
    soon(page, lambda: said_of(site) == (1, {parts.REASONS[0]}))
    tab_to(page, page.locator("#undo"))
    keys.press("Enter")
    expect(page.locator("#vote-b")).to_be_visible()
    breathe(page)
    keys.press("2")
    expect(note).to_contain_text("You chose B.")

    expect(page.locator("#arena")).to_be_hidden()
    tab_to(page, history.get_by_role("button", name="Retry"))
    keys.press("Enter")
    asked(page)
    breathe(page)
    keys.press("1")
    expect(branch).to_contain_text("3 of 3")  # A that was undone, B, and this one
    tab_to(page, branch.get_by_role("button", name="The one before"))
    keys.press("Enter")
    expect(branch).to_contain_text("2 of 3")

    tab_to(page, history.get_by_role("button", name="Edit"))
    keys.press("Enter")
    expect(history.locator("textarea")).to_be_visible()
    tab_to(page, history.locator("textarea"))
    keys.press("ControlOrMeta+a")
    keys.type("Why is the sea blue?")
    tab_to(page, history.get_by_role("button", name="Submit"))
    keys.press("Enter")
    asked(page)
    expect(history.locator(".user")).to_contain_text("Why is the sea blue?")
    assert last_comparison(site.store).messages[-1].content == "Why is the sea blue?"
