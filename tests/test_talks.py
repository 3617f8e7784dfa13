"""The steps of a talk on the chat page, on a real store and a scripted engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest

from serve.engine import CandidateRequest, Token
from serve.errors import Conflict, InvalidInput, PromptTooLong, Unavailable
from serve.limits import SamplingRequest
from serve.live import LiveAnswers, LiveComparison
from serve.records import Judgement, Message, Sampling, VoteReceipt
from serve.web import chat_view
from serve.web.talks import Talks
from tests.fakes import FakeEngine, Web

if TYPE_CHECKING:
    from serve.engine.local import LocalEngine


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.close()


async def asked(talks: Talks) -> LiveComparison:
    """Anna asks; two answers wait for her vote."""
    live = await talks.say("anna", "Why is the sea blue?", None, "always")
    assert isinstance(live, LiveComparison)
    await live.wait()
    return live


@pytest.mark.parametrize("refused", [Unavailable, PromptTooLong])
@pytest.mark.parametrize("how", ["always", "never"])
def test_a_turn_that_is_refused_leaves_the_vote_open(
    web: Web, how: Literal["always", "never"], refused: type[Exception]
) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        web.engine.full = refused is Unavailable
        text = "And the sky?" if web.engine.full else "And the sky?" * 200
        with pytest.raises(refused):
            await talks.say("anna", text, live.conversation_id, how)
        scene = await talks.scene("anna", live.conversation_id)
        assert scene.asked is not None
        assert scene.asked.id == live.comparison.id
        assert [message.content for message in scene.messages] == ["Why is the sea blue?"]

    asyncio.run(talk())


@pytest.mark.parametrize("how", ["always", "never"])
def test_typing_on_skips_the_vote_and_goes_on_from_one_of_the_answers(
    web: Web, how: Literal["always", "never"]
) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        after = await talks.say("anna", "And the sky?", live.conversation_id, how)
        assert after is not None
        await after.wait()
        texts = [turn.message.content for turn in await web.service.conversation(live.conversation_id or "", "anna")]
        assert texts[0::2][:2] == ["Why is the sea blue?", "And the sky?"]
        with web.store.reading() as db:
            (vote,) = db.execute("SELECT * FROM votes").fetchall()
        assert (vote["verdict"], vote["source"]) == ("skip", "server")
        chosen = {draft.id: draft.text for draft in live.drafts}[vote["continues_with"]]
        assert texts[1] == chosen

    asyncio.run(talk())


def test_answers_that_are_the_same_are_settled_by_the_server(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(lambda version, seed, prompt: ["The same."]))
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        scene = await talks.scene("anna", live.conversation_id)
        for _ in ("one tab", "another"):
            assert (await talks.settle_twins("anna", scene)).settled

    asyncio.run(talk())
    with web.store.reading() as db:
        assert [row["source"] for row in db.execute("SELECT source FROM votes")] == ["server"]
    web.close()


@pytest.mark.parametrize("in_line", [False, True], ids=["answered", "in line"])
def test_stopping_gives_the_place_back_at_once(web: Web, slow_engine: LocalEngine, in_line: bool) -> None:
    web.service.attach(slow_engine)
    web.service.settings = web.settings.model_copy(update={"max_tokens": 800})  # 16 s
    talks = Talks(web.service)
    prompt = slow_engine.encode([Message("user", "Why is the sea blue?")])
    pair = [CandidateRequest(0, 1), CandidateRequest(0, 2)]
    other = slow_engine.submit(prompt, pair, Sampling(800)) if in_line else None

    async def talk() -> None:
        live = await talks.say("anna", "Why is the sea blue?", None, "always")
        assert live is not None
        assert live.conversation_id is not None
        if not in_line:
            async for _ in live.events():
                if all(draft.deltas for draft in live.drafts):
                    break
        assert live.place == int(in_line)
        await talks.stop("anna", live.conversation_id)
        assert [draft.finish_reason for draft in live.drafts] == ["cancelled", "cancelled"]
        assert slow_engine.waiting == 0

    asyncio.run(asyncio.wait_for(talk(), 3))
    if other is None:
        assert isinstance(next(iter(slow_engine.submit(prompt, pair, Sampling(1)))), Token)


def texts(web: Web, conversation_id: str | None) -> list[str]:
    """The branch where the talk stands."""
    return [turn.message.content for turn in web.store.conversation(conversation_id or "", "anna")]


def message_ids(web: Web, conversation_id: str | None) -> list[str]:
    """The same, by their ids."""
    return [turn.message_id for turn in web.store.conversation(conversation_id or "", "anna")]


def test_an_earlier_turn_can_be_said_otherwise_and_the_old_branch_stays(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        first = await talks.say("anna", "Why is the sea blue?", None, "never", system="Be brief.")
        assert first is not None
        await first.wait()
        place = first.conversation_id or ""
        second = await talks.say("anna", "And the sky?", place, "never")
        assert second is not None
        await second.wait()
        before = texts(web, place)
        assert before[:2] == ["Be brief.", "Why is the sea blue?"] and len(before) == 5
        _, first_turn, answer, *_ = message_ids(web, place)
        for wrong, text in ((answer, "Hm?"), (first_turn, before[1]), (first_turn, " ")):
            with pytest.raises(InvalidInput):
                await talks.ask_instead("anna", place, wrong, text, "never")
        await (await talks.ask_instead("anna", place, first_turn, "Why is the lake blue?", "never")).wait()
        now = texts(web, place)
        assert now[:2] == ["Be brief.", "Why is the lake blue?"] and len(now) == 3
        branches = await web.service.branches("anna", place)
        old, new = next(ids for ids in branches.values() if len(ids) == 2)
        assert new in branches
        await web.service.switch_branch("anna", old)
        assert texts(web, place) == before

    asyncio.run(talk())


def test_a_settled_turn_can_be_answered_anew(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        place = live.conversation_id or ""
        with pytest.raises(InvalidInput, match="Choose between"):
            await talks.retry("anna", place, message_ids(web, place)[-1])
        await web.service.vote("anna", live.comparison.id, Judgement(ranking=tuple((d.id,) for d in live.drafts)))
        chosen = texts(web, place)
        sampling = SamplingRequest(temperature=0.1)
        again = await talks.retry("anna", place, message_ids(web, place)[-1], sampling=sampling)
        assert isinstance(again, LiveComparison)
        await again.wait()
        assert texts(web, place) == chosen[:1]
        receipt = await web.service.vote("anna", again.comparison.id, Judgement(verdict="tie"))
        assert receipt.continues_with
        branches = await web.service.branches("anna", place)
        assert sorted(map(len, branches.values())) == [1, 2]
        with web.store.reading() as db:
            evidence = [row[0] for row in db.execute("SELECT evidence FROM votes ORDER BY rowid")]
        assert evidence == [1, 0], "the second was asked for with a temperature of the voter's own"

    asyncio.run(talk())


def test_the_last_vote_can_be_taken_back_also_while_the_winner_is_written(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=2))
    talks = Talks(web.service)

    async def talk() -> None:
        live = await talks.say("anna", "Why is the sea blue?", None, "always")
        assert isinstance(live, LiveComparison)
        place = live.conversation_id or ""
        with pytest.raises(Conflict, match="another tab"):
            await talks.undo("anna", place, "")
        async for _ in live.events():
            if all(len(draft.deltas) == 2 for draft in live.drafts):
                break
        await web.service.vote("anna", live.comparison.id, Judgement(ranking=tuple((d.id,) for d in live.drafts)))
        judged = (await talks.scene("anna", place)).judged
        assert judged is not None and judged.vote is not None
        await talks.undo("anna", place, judged.vote.id)
        scene = await talks.scene("anna", place)
        assert scene.judged is None and scene.asked is not None and scene.asked.id == live.comparison.id
        assert [message.content for message in scene.messages] == ["Why is the sea blue?"]

    asyncio.run(talk())
    web.close()


def test_a_tab_that_was_left_behind_undoes_keeps_and_edits_nothing_of_what_came_since(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        place = live.conversation_id or ""
        first = await web.service.vote("anna", live.comparison.id, Judgement(verdict="tie"))
        _, answer = message_ids(web, place)
        after = await talks.say("anna", "And the sky?", place, "always")
        assert isinstance(after, LiveComparison)
        await after.wait()
        await web.service.vote("anna", after.comparison.id, Judgement(verdict="tie"))
        later = message_ids(web, place)[2]
        for step in (
            talks.undo("anna", place, first.id),
            talks.revise("anna", place, answer, "Water is."),
            talks.retry("anna", place, answer),
        ):
            with pytest.raises(Conflict, match="gone on in another tab"):
                await step
        assert web.store.demonstrations_count() == 0 and web.store.standing_votes() == 2
        await (await talks.ask_instead("anna", place, message_ids(web, place)[0], "Why?", "never")).wait()
        with pytest.raises(Conflict, match="gone on in another tab"):
            await talks.ask_instead("anna", place, later, "And rain?", "never")
        assert texts(web, place)[0] == "Why?"

    asyncio.run(talk())


def test_an_edit_of_a_talk_that_is_too_long_may_leave_its_oldest_turns_out(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        live = await talks.say("anna", f"Tell me of {'the sea ' * 120}", None, "never")
        assert live is not None
        await live.wait()
        place = live.conversation_id or ""
        after = await talks.say("anna", "And rain?", place, "never", truncation="auto")
        assert after is not None
        await after.wait()
        turn = message_ids(web, place)[2]
        with pytest.raises(PromptTooLong):
            await talks.ask_instead("anna", place, turn, "And snow?", "never")
        await (await talks.ask_instead("anna", place, turn, "And snow?", "never", truncation="auto")).wait()
        assert texts(web, place)[2] == "And snow?"

    asyncio.run(talk())


@pytest.mark.parametrize("judged", [True, False], ids=["both bad", "stopped"])
def test_an_answer_that_another_try_has_left_behind_can_be_gone_back_to(tmp_path: Path, judged: bool) -> None:
    web = Web(tmp_path)
    talks = Talks(web.service)

    async def talk() -> None:
        live = await asked(talks)
        place = live.conversation_id or ""
        await web.service.vote("anna", live.comparison.id, Judgement(verdict="tie"))
        prompt, chosen = message_ids(web, place)
        web.engine.hold = None if judged else 0
        again = await talks.retry("anna", place, chosen)
        assert isinstance(again, LiveComparison)
        if judged:
            await again.wait()
            await web.service.vote("anna", again.comparison.id, Judgement(verdict="both_bad"))
        else:
            await talks.stop("anna", place)
        scene = await talks.scene("anna", place)
        assert scene.stuck and scene.turns[-1].message_id == prompt and scene.earlier == chosen
        assert f'data-to="{chosen}">Back to the answer before' in chat_view.branches(scene)
        await web.service.switch_branch("anna", chosen)
        scene = await talks.scene("anna", place)
        assert scene.settled and scene.earlier is None

    asyncio.run(talk())
    web.close()


def test_a_message_in_another_tab_is_not_swallowed_while_one_is_on_its_way(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        one, other = await asked(talks), await asked(talks)
        sent, twice, elsewhere = await asyncio.gather(
            talks.say("anna", "And the sky?", one.conversation_id, "never"),
            talks.say("anna", "And the sky?", one.conversation_id, "never"),
            talks.say("anna", "And rain?", other.conversation_id, "never"),
        )
        assert sent is not None and twice is None and elsewhere is not None
        await sent.wait()
        await elsewhere.wait()
        after, refused = await asyncio.gather(
            talks.say("anna", "And snow?", one.conversation_id, "never"),
            talks.say("anna", "And hail?", one.conversation_id, "never"),
            return_exceptions=True,
        )
        assert isinstance(after, LiveAnswers) and isinstance(refused, Conflict)
        assert "still on its way" in str(refused)
        await after.wait()

    asyncio.run(talk())


def test_what_a_program_asks_in_a_talk_is_shown_there_if_there_are_panes_for_it(web: Web) -> None:
    talks = Talks(web.service)

    async def talk() -> None:
        first = await talks.say("anna", "Why is the sea blue?", None, "never")
        assert first is not None
        await first.wait()
        place = first.conversation_id or ""
        web.engine.hold = 1
        messages = [turn.message for turn in await web.service.conversation(place, "anna")]
        messages.append(Message("user", "And the sky?"))
        pair = await web.service.compare("anna", messages, conversation_id=place)
        assert (await talks.scene("anna", place)).writing is pair
        pair.cancel()
        await pair.wait()
        many = await web.service.compare("anna", messages, k=3, conversation_id=place)
        scene = await talks.scene("anna", place)
        assert scene.writing is None and scene.asked is None
        many.cancel()
        await many.wait()

    asyncio.run(talk())


def test_a_talk_goes_on_with_an_answer_that_has_words(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(lambda version, seed, prompt: ["Words."] if seed % 2 else []))
    talks = Talks(web.service)

    async def talk() -> None:
        for _ in range(8):
            live = await asked(talks)
            receipt = await web.service.vote("anna", live.comparison.id, Judgement(verdict="tie"))
            assert {draft.id: draft.text for draft in live.drafts}[receipt.continues_with or ""] == "Words."
        web.engine.script = lambda version, seed, prompt: []
        live = await asked(talks)
        receipt = await web.service.vote("anna", live.comparison.id, Judgement(verdict="tie"))
        assert receipt.continues_with is None
        said = chat_view.outcome("tie", live.comparison, receipt, 0)
        assert said == "A tie. Both are by the assistant as it is now."
        a, b = (draft.id for draft in live.drafts)
        said = chat_view.outcome("a", live.comparison, VoteReceipt("", {a: 2, b: 1}, a), 2)
        assert said == "You chose A. <b>A</b>: the assistant as it is now · <b>B</b>: an earlier one"

    asyncio.run(talk())
    web.close()
