"""What people can do, on a real store and a scripted engine."""

from __future__ import annotations

import asyncio
import json
import random
import sqlite3
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from serve.engine import Finished, Token
from serve.errors import (
    AdapterError,
    AlreadyVoted,
    Conflict,
    Forbidden,
    InvalidInput,
    NotFound,
    PromptTooLong,
    Unavailable,
)
from serve.feedback.ballots import ballots
from serve.feedback.snapshot import shipped_prompts
from serve.feedback.store import Store
from serve.folder import DataFolder
from serve.limits import MAX_BYTES, SamplingRequest
from serve.live import Delta, End, Failure, LiveAnswers, LiveComparison, Start
from serve.policy.adapters import WEIGHTS, Registry
from serve.records import Comparison, Due, Judgement, Message
from serve.service import FIXED, Service
from serve.settings import Settings
from tests.fakes import FakeEngine, FakeTraining, publish
from tests.scenes import assistant, user

ASK = [Message("user", "Why is the sea blue?")]


class World:
    """A service and everything around it."""

    def __init__(self, folder: Path, engine: FakeEngine, **settings: Any) -> None:
        self.folder = DataFolder(folder / "feedback.db")
        self.store = Store.open(self.folder)
        self.registry = Registry(self.folder, self.store, base_hash=None)
        self.engine = engine
        self.service = Service(
            store=self.store,
            engine=engine,
            registry=self.registry,
            settings=Settings(db=self.folder.db, **{"compare_share": 0.0, **settings}),
            rng=random.Random(1),
        )

    def close(self) -> None:
        self.engine.close()
        self.store.close()


Make = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Make]:
    made: list[World] = []

    def make(engine: FakeEngine | None = None, **settings: Any) -> World:
        made.append(World(tmp_path, engine or FakeEngine(), **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(job: Coroutine[Any, Any, Any]) -> Any:
    """On a fresh event loop, and never for long."""
    return asyncio.run(asyncio.wait_for(job, 10))


async def until_step(live: LiveAnswers, step: int) -> None:
    """Until every draft has shown this many tokens."""
    async for _ in live.events():
        if all(len(draft.deltas) >= step for draft in live.drafts):
            return


def first(live: LiveComparison) -> Judgement:
    """The leftmost is best."""
    return Judgement(ranking=tuple((draft.id,) for draft in live.drafts))


def test_a_comparison_streams_and_is_recorded_as_it_was_streamed(world: Make) -> None:
    w = world()

    async def talk() -> tuple[LiveComparison, list[Any]]:
        live = await w.service.compare("anna", ASK)
        return live, [event async for event in live.events()]

    live, events = run(talk())
    assert isinstance(events[0], Start)
    assert all(candidate.answer.text == "" for candidate in events[0].comparison.candidates)
    stored = w.store.comparison(live.comparison.id, "anna")
    for candidate in stored.candidates:
        deltas = [event for event in events if isinstance(event, Delta) and event.id == candidate.id]
        assert candidate.answer.text == "".join(delta.text for delta in deltas) != ""
        assert candidate.answer.token_ids == tuple(delta.token_id for delta in deltas)
        assert candidate.answer.logprobs == tuple(delta.logprob for delta in deltas)
        assert End(candidate.id, "stop") in events
    assert w.service.counts["answers_stop"] == 2


def test_both_candidates_are_decoded_in_the_same_steps(world: Make) -> None:
    w = world()

    async def talk() -> list[Any]:
        live = await w.service.compare("anna", ASK)
        return [event async for event in live.events() if isinstance(event, Delta)]

    deltas = run(talk())
    ids = {delta.id for delta in deltas}
    steps = [{delta.step for delta in deltas if delta.id == one} for one in ids]
    assert len(ids) == 2
    assert steps[0] == steps[1] == {1, 2, 3, 4, 5}


def test_a_late_watcher_sees_everything_from_the_beginning(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> tuple[list[Any], list[Any]]:
        live = await w.service.compare("anna", ASK)
        early = asyncio.create_task(collect(live))
        await until_step(live, 2)
        found = w.service.live(live.comparison.id, "anna")
        assert found is live
        late = asyncio.create_task(collect(found))
        w.engine.release()
        return await early, await late

    async def collect(live: LiveAnswers) -> list[Any]:
        return [event async for event in live.events()]

    early, late = run(talk())
    assert early == late
    assert sum(isinstance(event, End) for event in late) == 2


def test_a_comparison_is_live_only_for_its_voter_and_only_until_it_is_recorded(world: Make) -> None:
    w = world(FakeEngine(hold=1))

    async def talk() -> None:
        live = await w.service.compare("anna", ASK)
        assert w.service.live(live.comparison.id, "bert") is None
        with pytest.raises(NotFound):
            await w.service.comparison(live.comparison.id, "bert")
        await until_step(live, 1)
        standing = await w.service.comparison(live.comparison.id, "anna")
        assert [candidate.answer.text for candidate in standing.candidates] == ["v0 ", "v0 "]
        w.engine.release()
        await live.wait()
        await asyncio.sleep(0)
        assert w.service.live(live.comparison.id, "anna") is None

    run(talk())


def test_seeds_differ_within_a_comparison_and_are_evidence_only_when_the_server_chose(world: Make) -> None:
    w = world()

    async def talk(**asked: Any) -> Any:
        live = await w.service.compare("anna", ASK, **asked)
        await live.wait()
        await w.service.vote("anna", live.comparison.id, first(live))
        return w.store.comparison(live.comparison.id, "anna")

    by_server, by_seed = run(talk()), run(talk(seed=7))
    by_sampling = run(talk(sampling=SamplingRequest(temperature=0.5)))
    assert len({candidate.answer.seed for candidate in by_server.candidates}) == 2
    assert sorted(candidate.answer.seed for candidate in by_seed.candidates) == [7, 8]
    assert [c.vote.evidence for c in (by_server, by_seed, by_sampling)] == [True, False, False]


def test_the_order_of_candidates_is_random(world: Make) -> None:
    w = world()

    async def talk() -> set[tuple[int, ...]]:
        orders = set()
        for _ in range(20):
            live = await w.service.compare("anna", ASK, seed=7)
            orders.add(tuple(draft.request.seed for draft in live.drafts))
        return orders

    assert run(talk()) == {(7, 8), (8, 7)}


def test_identical_answers_are_drawn_once_more_and_watchers_begin_again(world: Make) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: ["same"] if seed < 9 else [f"other {seed}"]))

    async def talk() -> tuple[LiveComparison, list[Any]]:
        live = await w.service.compare("anna", ASK, k=3, seed=6)
        return live, [event async for event in live.events()]

    live, events = run(talk())
    starts = [i for i, event in enumerate(events) if isinstance(event, Start)]
    assert len(starts) == 2
    assert not [event for event in events[: starts[1]] if isinstance(event, End) and event.id != live.drafts[0].id]
    again = events[starts[1] :]
    texts = {
        draft.id: "".join(event.text for event in again if isinstance(event, Delta) and event.id == draft.id)
        for draft in live.drafts
    }
    assert sorted(texts.values()) == ["other 10", "other 9", "same"]
    stored = w.store.comparison(live.comparison.id, "anna")
    assert {c.id: c.answer.text for c in stored.candidates} == texts
    assert all(c.answer.text in ("same", f"other {c.answer.seed}") for c in stored.candidates)


def test_answers_that_stay_identical_are_drawn_again_only_once(world: Make) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: ["same"]))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        await live.wait()
        return live

    live = run(talk())
    assert [draft.text for draft in live.drafts] == ["same", "same"]
    assert len(w.engine.generations) == 2


def test_greedy_answers_are_not_drawn_again(world: Make) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: ["same"]))

    async def talk() -> None:
        live = await w.service.compare("anna", ASK, sampling=SamplingRequest(temperature=0.0))
        await live.wait()

    run(talk())
    assert len(w.engine.generations) == 1


def test_identical_answers_stay_when_the_engine_is_full(world: Make) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: ["same"], hold=1))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        w.engine.full = True
        w.engine.release()
        await live.wait()
        return live

    live = run(talk())
    stored = w.store.comparison(live.comparison.id, "anna")
    assert [c.answer.finish_reason for c in stored.candidates] == ["stop", "stop"]
    assert live.error is None


def test_an_early_vote_keeps_what_was_shown_stops_the_loser_and_lets_the_winner_finish(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> tuple[LiveComparison, Any]:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        receipt = await w.service.vote("anna", live.comparison.id, first(live))
        w.engine.release()
        await live.wait()
        return live, receipt

    live, receipt = run(talk())
    winner, loser = live.drafts
    assert receipt.continues_with == winner.id
    assert (winner.finish_reason, loser.finish_reason) == ("stop", "cancelled")
    turns = w.store.conversation(live.comparison.conversation_id, "anna")
    assert [turn.message.content for turn in turns] == [ASK[0].content, winner.text]
    with w.store.reading() as db:
        shown = dict(db.execute("SELECT id, shown_text FROM candidates").fetchall())
    assert shown[winner.id] == "".join(delta.text for delta in winner.deltas[:2])


def test_neither_answer_is_seen_to_be_ahead(world: Make) -> None:
    """One writes long tokens, the other short ones, and ends: what is seen, stored and learned from is as long."""

    def pace(version: int, seed: int, prompt: str) -> list[str]:
        return ["wonderful "] * 2 if seed % 2 else ["ab "] * 9

    w = world(FakeEngine(pace, hold=5))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        async for _ in live.events():
            if max(len(draft.deltas) for draft in live.drafts) == 5:
                break
        long, short = sorted(live.drafts, key=lambda draft: draft.deltas[0].text, reverse=True)
        assert (long.finish_reason, short.finish_reason) == ("stop", None)
        seen = {draft.id: draft for draft in live.shown}
        assert (seen[long.id].text, seen[long.id].finish_reason) == ("wonderful ", None)
        assert seen[short.id].text == short.text == "ab " * 5
        texts = {c.id: c.answer.text for c in (await w.service.comparison(live.comparison.id, "anna")).candidates}
        assert texts == {draft.id: draft.text for draft in live.shown}
        await w.service.vote("anna", live.comparison.id, Judgement(ranking=((long.id,), (short.id,))))
        w.engine.release()
        await live.wait()
        assert live.shown == live.drafts
        return live

    run(talk())
    with w.store.reading() as db:
        (ballot,) = ballots(db)
    assert {answer.text for answer in ballot.answers} == {"wonderful ", "ab " * 5}
    assert [answer.partial for answer in ballot.answers if answer.text == "wonderful "] == [True]


def test_a_vote_on_what_has_shown_nothing_is_refused_but_a_skip_is_not(world: Make) -> None:
    w = world(FakeEngine(hold=0))

    async def talk() -> None:
        live = await w.service.compare("anna", ASK)
        with pytest.raises(Conflict):
            await w.service.vote("anna", live.comparison.id, first(live))
        receipt = await w.service.vote("anna", live.comparison.id, Judgement(verdict="skip"))
        w.engine.release()
        await live.wait()
        assert [draft.id for draft in live.drafts if draft.finish_reason == "stop"] == [receipt.continues_with]

    run(talk())


def test_an_early_vote_whose_caller_leaves_still_stops_the_loser(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> None:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        voting = asyncio.create_task(w.service.vote("anna", live.comparison.id, first(live)))
        for _ in range(3):
            await asyncio.sleep(0)
        voting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await voting
        async for event in live.events():
            if isinstance(event, End):
                break
        assert [draft.finish_reason for draft in live.drafts] == [None, "cancelled"]
        w.engine.release()
        await live.wait()
        assert w.store.comparison(live.comparison.id, "anna").vote is not None

    run(talk())


def test_what_grows_is_told_where_it_has_changed_until_it_ends_or_nobody_watches(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> None:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        looks = iter([True] * 4 + [False])
        told = [[draft.text for draft in drafts] async for drafts in live.growing(0.01, lambda: next(looks))]
        assert told == [[draft.text for draft in live.shown]] and next(looks, None) is None
        w.engine.release()
        told = [[draft.text for draft in drafts] async for drafts in live.growing(0.01)]
        assert live.done and told[-1] == [draft.text for draft in live.drafts]

    run(talk())


def test_the_next_run_is_as_far_as_training_says_unless_one_is_on(world: Make) -> None:
    w = world()
    training = FakeTraining(w.store)
    assert run(w.service.next_run(training)) == Due(0, 50, None, None)
    w.store.create_run("operator", ["reward"], {})
    assert run(w.service.next_run(training)) is None


def test_an_early_both_bad_stops_every_candidate(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> Any:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        await w.service.vote("anna", live.comparison.id, Judgement(verdict="both_bad"))
        return await live.wait()

    assert [draft.finish_reason for draft in run(talk())] == ["cancelled", "cancelled"]


def test_a_refused_early_vote_changes_nothing(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        with pytest.raises(InvalidInput):
            await w.service.vote("anna", live.comparison.id, Judgement(ranking=((live.drafts[0].id,),)))
        w.engine.release()
        await live.wait()
        return live

    live = run(talk())
    assert not live.judged
    assert [draft.finish_reason for draft in live.drafts] == ["stop", "stop"]


def test_the_same_key_gives_the_same_receipt_and_another_vote_is_refused(world: Make) -> None:
    w = world()

    async def talk() -> None:
        live = await w.service.compare("anna", ASK)
        await live.wait()
        once = await w.service.vote("anna", live.comparison.id, first(live), idempotency_key="k")
        again = await w.service.vote("anna", live.comparison.id, first(live), idempotency_key="k")
        assert once == again
        with pytest.raises(AlreadyVoted):
            await w.service.vote("anna", live.comparison.id, first(live))

    run(talk())


def test_typing_on_stops_what_is_still_written_and_skips_its_vote(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> tuple[LiveComparison, LiveComparison]:
        old = await w.service.compare("anna", ASK)
        await until_step(old, 2)
        more = [*ASK, Message("assistant", old.drafts[0].text), Message("user", "And the sky?")]
        new = await w.service.compare("anna", more, conversation_id=old.comparison.conversation_id)
        assert old.done
        w.engine.release()
        await new.wait()
        return old, new

    old, new = run(talk())
    assert [draft.finish_reason for draft in old.drafts] == ["cancelled", "cancelled"]
    vote = w.store.comparison(old.comparison.id, "anna").vote
    assert vote is not None
    assert vote.judgement.verdict == "skip"
    assert w.store.comparison(new.comparison.id, "anna").status == "open"


def test_a_failing_engine_is_told_and_recorded(world: Make) -> None:
    w = world()
    w.engine.fail_at = 3

    async def talk() -> tuple[LiveComparison, list[Any]]:
        live = await w.service.compare("anna", ASK)
        return live, [event async for event in live.events()]

    live, events = run(talk())
    assert any(isinstance(event, Failure) and "scripted failure" in str(event.error) for event in events)
    assert isinstance(live.error, Unavailable)
    assert [c.answer.finish_reason for c in w.store.comparison(live.comparison.id, "anna").candidates] == ["error"] * 2


def test_a_generation_that_dies_ends_its_drafts_instead_of_hanging(world: Make) -> None:
    class Dying(FakeEngine):
        def submit(self, *args: Any) -> Any:
            generation = super().submit(*args)

            class Torn:
                cancel = staticmethod(generation.cancel)

                async def __aiter__(self) -> Any:
                    yield Token(0, 5, -0.1, "half", 1)
                    raise RuntimeError("the thread died")

            return Torn()

    w = world(Dying())

    async def talk() -> LiveAnswers:
        live = await w.service.answer("anna", ASK)
        await live.wait()
        return live

    live = run(talk())
    assert isinstance(live.error, Unavailable)
    assert (live.drafts[0].text, live.drafts[0].finish_reason) == ("half", "error")


def test_an_answer_that_takes_too_long_is_stopped_told_and_recorded_as_far_as_it_came(world: Make) -> None:
    w = world(FakeEngine(hold=2), answer_timeout="0.2s")

    async def talk() -> tuple[LiveComparison, list[Any]]:
        live = await w.service.compare("anna", ASK)
        return live, [event async for event in live.events()]

    live, events = run(talk())
    assert isinstance(live.error, Unavailable)
    (told,) = (i for i, event in enumerate(events) if isinstance(event, Failure))
    assert "0.2 s" in str(events[told].error) and "answer_timeout" in str(events[told].error)
    assert {event.finish_reason for event in events[told + 1 :] if isinstance(event, End)} == {"cancelled"}
    stored = w.store.comparison(live.comparison.id, "anna").candidates
    assert [(c.answer.finish_reason, len(c.answer.token_ids)) for c in stored] == [("cancelled", 2)] * 2


def test_answers_drawn_once_more_have_no_more_time_than_others(world: Make) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: ["same"], delay=0.15), answer_timeout="0.4s")

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        await live.wait()
        return live

    live = run(talk())
    assert len(w.engine.generations) == 2
    assert sorted(draft.finish_reason or "" for draft in live.drafts) == ["cancelled", "stop"]


def test_an_answer_that_ended_in_time_is_left_alone(world: Make) -> None:
    w = world(answer_timeout="0.1s")

    async def talk() -> LiveAnswers:
        live = await w.service.answer("anna", ASK)
        await live.wait()
        await asyncio.sleep(0.2)
        return live

    live = run(talk())
    assert live.error is None
    assert not w.engine.generations[0].cancelled


def test_nothing_is_recorded_when_the_engine_refuses(world: Make) -> None:
    w = world()
    w.engine.full = True
    with pytest.raises(Unavailable):
        run(w.service.compare("anna", ASK))
    assert w.store.conversations("anna") == []


def test_nothing_goes_on_being_generated_when_the_record_refuses(world: Make) -> None:
    w = world(FakeEngine(hold=1))
    with pytest.raises(NotFound):
        run(w.service.compare("anna", ASK, conversation_id="somebody-elses"))
    assert w.engine.generations[0].done.wait(5)
    assert all(isinstance(e, Finished) and e.finish_reason == "cancelled" for e in last_events(w.engine))


def last_events(engine: FakeEngine) -> list[Any]:
    return [event for event in engine.generations[-1]._events if isinstance(event, Finished)]


@pytest.mark.parametrize(
    ("messages", "asked", "word"),
    [
        ([], {}, "user"),
        ([Message("user", "  ")], {}, "empty"),
        ([Message("user", "hi"), Message("assistant", "ho")], {}, "user"),
        ([Message("user", "\ud800")], {}, "surrogate"),
        ([Message("user", "x" * (MAX_BYTES + 1))], {}, "bytes"),
        (ASK, {"k": 1}, "2 to 6"),
        (ASK, {"k": 7}, "2 to 6"),
        (ASK, {"seed": -1}, "seed"),
        (ASK, {"seed": 2**63}, "seed"),
        (ASK, {"sampling": SamplingRequest(max_tokens=0)}, "max_tokens"),
        (ASK, {"sampling": SamplingRequest(temperature=2.1)}, "temperature"),
        (ASK, {"sampling": SamplingRequest(temperature=float("nan"))}, "temperature"),
        (ASK, {"sampling": SamplingRequest(top_p=0.0)}, "top_p"),
        (ASK, {"sampling": SamplingRequest(top_k=-1)}, "top_k"),
        (ASK, {"sampling": SamplingRequest(top_k=1_000_001)}, "top_k"),
        (ASK, {"sampling": SamplingRequest(stop=("",))}, "stop"),
        (ASK, {"versions": [0, 0, 0], "k": 2, "operator": True}, "versions"),
    ],
)
def test_what_is_out_of_bounds_is_refused_naming_it(
    world: Make, messages: list[Message], asked: dict[str, Any], word: str
) -> None:
    with pytest.raises(InvalidInput, match=word):
        run(world().service.compare("anna", messages, **asked))


def test_a_prompt_too_long_names_both_figures(world: Make) -> None:
    with pytest.raises(PromptTooLong, match=r"2006 tokens .* 256.* 2048"):
        run(world().service.compare("anna", [Message("user", "x" * 2000)]))


LONG_TALK = [user("x" * 1000), assistant("y" * 900), user("And the sky?"), assistant("Blue."), user("And at night?")]


@pytest.mark.parametrize("asking", [True, False])
def test_a_talk_that_is_too_long_is_read_in_part_if_asked_and_recorded_whole(
    world: Make, tmp_path: Path, asking: bool
) -> None:
    w = world()
    ask = w.service.compare if asking else w.service.answer

    async def talk() -> LiveAnswers:
        with pytest.raises(PromptTooLong) as refused:
            await ask("anna", LONG_TALK)
        assert refused.value.oldest_can_go
        live: LiveAnswers = await ask("anna", LONG_TALK, truncation="auto")
        await live.wait()
        return live

    live = run(talk())
    assert live.prompt_tokens == len(w.engine.encode(LONG_TALK[2:]))
    assert live.conversation_id is not None
    turns = w.store.conversation(live.conversation_id, "anna")
    assert [turn.message for turn in turns[:5]] == LONG_TALK


def test_training_sees_of_a_long_talk_what_the_model_saw(world: Make, tmp_path: Path) -> None:
    w = world()

    async def talk() -> None:
        live = await w.service.compare("anna", LONG_TALK, truncation="auto")
        await live.wait()
        await w.service.vote("anna", live.comparison.id, first(live))

    run(talk())
    w.store.create_run("operator", ["reward"], {})
    w.store.snapshot(1, tmp_path / "snapshot.db")
    with closing(sqlite3.connect(tmp_path / "snapshot.db")) as db:
        (asked,) = db.execute("SELECT id, messages FROM prompts WHERE asked > 0").fetchall()
        assert db.execute("SELECT prompt_id FROM votes").fetchall() == [(asked[0],)]
    assert [message["content"] for message in json.loads(asked[1])] == ["And the sky?", "Blue.", "And at night?"]
    with w.store.reading() as record:
        (ballot,) = ballots(record)
    assert list(ballot.messages) == LONG_TALK[2:]


def test_only_operators_name_versions(world: Make) -> None:
    w = world()
    with pytest.raises(Forbidden):
        run(w.service.compare("anna", ASK, versions=[0, 0]))
    with pytest.raises(Forbidden):
        run(w.service.answer("anna", ASK, version=0))


def test_runs_do_not_draw_what_an_operator_asked_of_a_named_version(world: Make) -> None:
    w = world()

    async def asked_for(version: int | None) -> int:
        await (await w.service.answer("op", ASK, version=version, operator=True)).wait()
        versions = None if version is None else [version] * 2
        await (await w.service.compare("op", ASK, versions=versions, operator=True)).wait()
        with w.store.reading() as record:
            return len(record.execute("SELECT * FROM messages WHERE asked > 0").fetchall())

    async def scene() -> list[int]:
        return [await asked_for(0), await asked_for(None)]

    assert run(scene()) == [0, 2]


def test_named_versions_answer_and_unknown_ones_are_not_found(world: Make, tmp_path: Path) -> None:
    w = world()
    publish(w.registry, tmp_path / "adapter", 2)

    async def talk() -> LiveComparison:
        live = await w.service.compare("op", ASK, versions=[2, 0, 1], operator=True)
        await live.wait()
        return live

    live = run(talk())
    assert sorted(draft.request.version for draft in live.drafts) == [0, 1, 2]
    assert all(draft.text.startswith(f"v{draft.request.version} ") for draft in live.drafts)
    with pytest.raises(NotFound):
        run(w.service.compare("op", ASK, versions=[0, 9], operator=True))


def probabilities(store: Store) -> set[float]:
    with store.reading() as db:
        return {row[0] for row in db.execute("SELECT probability FROM comparisons")}


async def pairs(w: World, number: int, **asked: Any) -> list[list[int]]:
    found = []
    for _ in range(number):
        live = await w.service.compare("anna", ASK, **asked)
        found.append(sorted(draft.request.version for draft in live.drafts))
        await live.wait()
    return found


def test_a_share_of_comparisons_is_against_the_predecessor_or_the_base(world: Make, tmp_path: Path) -> None:
    w = world(compare_share=0.5)
    publish(w.registry, tmp_path / "adapter", 2)
    run(w.service.promote(1, who="op", why="test"))
    run(w.service.promote(2, who="op", why="test"))
    found = run(pairs(w, 40, asked=0.5))
    assert {tuple(pair) for pair in found} == {(2, 2), (0, 2), (1, 2)}
    assert probabilities(w.store) == {0.25, 0.125}


def test_with_nothing_to_compare_with_the_serving_version_answers_twice(world: Make) -> None:
    w = world(compare_share=1.0)
    assert run(pairs(w, 3)) == [[0, 0]] * 3
    assert probabilities(w.store) == {1.0}


def test_a_canary_is_compared_with_the_serving_version(world: Make, tmp_path: Path) -> None:
    w = world(canary_share=1.0)
    publish(w.registry, tmp_path / "adapter", 2)
    w.store.set_version_status(2, "canary", who="test", why="test")
    assert run(pairs(w, 5)) == [[0, 2]] * 5


def test_a_broken_old_adapter_keeps_nobody_from_chatting(world: Make, tmp_path: Path) -> None:
    w = world(canary_share=1.0)
    publish(w.registry, tmp_path / "adapter")
    w.store.set_version_status(1, "canary", who="test", why="test")
    (w.folder.adapter(1) / WEIGHTS).write_bytes(b"damaged")
    assert run(pairs(w, 2)) == [[0, 0]] * 2


def test_promotion_and_rollback_move_engine_and_record_together(world: Make, tmp_path: Path) -> None:
    w = world()
    publish(w.registry, tmp_path / "adapter")
    assert run(w.service.promote(1, who="op", why="better")) == 1
    assert (w.engine.serving, w.store.serving()) == (1, 1)
    with pytest.raises(Conflict, match="look again"):
        run(w.service.rollback(who="op", why="a page that is behind", to=1))
    assert run(w.service.rollback(who="op", why="worse", to=0)) == 0
    assert (w.engine.serving, w.store.serving()) == (0, 0)
    assert [(p.from_version, p.to_version, p.who, p.why) for p in w.store.promotions()] in (
        [(0, 1, "op", "better"), (1, 0, "op", "worse")],
        [(1, 0, "op", "worse"), (0, 1, "op", "better")],
    )


def test_a_broken_adapter_is_not_promoted_and_the_old_version_keeps_serving(world: Make, tmp_path: Path) -> None:
    w = world()
    publish(w.registry, tmp_path / "adapter")
    (w.folder.adapter(1) / WEIGHTS).write_bytes(b"damaged")
    with pytest.raises(AdapterError, match=WEIGHTS):
        run(w.service.promote(1, who="op", why="?"))
    with pytest.raises(NotFound):
        run(w.service.promote(9, who="op", why="?"))
    with pytest.raises(Conflict):
        run(w.service.rollback(who="op", why="?"))
    assert (w.engine.serving, w.store.serving()) == (0, 0)


def test_a_version_that_the_engine_refuses_is_not_promoted(world: Make, tmp_path: Path) -> None:
    class Refusing(FakeEngine):
        def load(self, version: int, adapter: Path | None) -> None:
            raise AdapterError("rank 128 does not fit")

    w = world(Refusing())
    publish(w.registry, tmp_path / "adapter")
    with pytest.raises(AdapterError):
        run(w.service.promote(1, who="op", why="?"))
    assert w.store.serving() == 0


def test_of_the_promotions_that_come_while_one_waits_only_the_last_happens(world: Make, tmp_path: Path) -> None:
    class Crowded(FakeEngine):
        """No place is free for version 1 at first."""

        asked, freed = threading.Event(), threading.Event()

        def load(self, version: int, adapter: Path | None) -> None:
            self.asked.set()
            assert version > 1 or self.freed.wait(10)
            super().load(version, adapter)

    engine = Crowded()
    w = world(engine)
    publish(w.registry, tmp_path / "adapter", 4)

    async def promotions() -> list[int | BaseException]:
        first = asyncio.create_task(w.service.promote(1, who="op", why="one"))
        await asyncio.to_thread(engine.asked.wait, 10)
        others = []
        for version in (2, 3, 4):
            others.append(asyncio.create_task(w.service.promote(version, who="op", why="more")))
            await asyncio.sleep(0.05)
        engine.freed.set()
        return await asyncio.gather(first, *others, return_exceptions=True)

    first, second, third, fourth = run(promotions())
    assert (first, fourth) == (1, 4)
    for superseded in (second, third):
        assert isinstance(superseded, Conflict)
    assert (w.engine.serving, w.store.serving()) == (4, 4)
    assert sorted(p.to_version for p in w.store.promotions()) == [1, 4]


def test_an_answer_in_flight_keeps_its_version_and_the_next_turn_uses_what_serves(world: Make, tmp_path: Path) -> None:
    w = world(FakeEngine(hold=1))
    publish(w.registry, tmp_path / "adapter")

    async def talk() -> tuple[LiveAnswers, LiveAnswers]:
        before = await w.service.answer("anna", ASK)
        await until_step(before, 1)
        await w.service.promote(1, who="op", why="better")
        w.engine.release()
        after = await w.service.answer("anna", ASK)
        await before.wait()
        await after.wait()
        return before, after

    before, after = run(talk())
    assert before.drafts[0].text.startswith("v0 ")
    assert after.drafts[0].text.startswith("v1 ")


def test_an_unasked_answer_becomes_the_next_message_with_its_version(world: Make) -> None:
    w = world()

    async def talk() -> LiveAnswers:
        live = await w.service.answer("anna", ASK)
        await live.wait()
        return live

    live = run(talk())
    assert live.conversation_id is not None
    turns = w.store.conversation(live.conversation_id, "anna")
    assert [(turn.message.role, turn.version) for turn in turns] == [("user", None), ("assistant", 0)]
    assert turns[1].message.content == live.drafts[0].text


def test_side_by_side_uses_one_seed_and_records_nothing(world: Make, tmp_path: Path) -> None:
    w = world(FakeEngine(lambda version, seed, prompt: [f"v{version} seed {seed}"]))
    publish(w.registry, tmp_path / "adapter")

    async def talk() -> LiveAnswers:
        live = await w.service.side_by_side(ASK, (0, 1), seed=5)
        await live.wait()
        return live

    live = run(talk())
    assert {draft.id: draft.text for draft in live.drafts} == {"left": "v0 seed 5", "right": "v1 seed 5"}
    with w.store.reading() as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone()[0] == 0


def test_fixed_prompts_are_answered_alike_each_time_and_nothing_is_recorded(world: Make) -> None:
    w = world()
    found = run(w.service.on_fixed_prompts(0))
    assert found == run(w.service.on_fixed_prompts(0)) and len(found) == FIXED
    assert [answer for _, answer in found] == [f"v0 says {i} to: {prompt}" for i, (prompt, _) in enumerate(found)]
    with w.store.reading() as db:
        assert db.execute("SELECT count(*) FROM answers").fetchone()[0] == 0


@pytest.mark.parametrize(("fail_at", "words"), [(2, "broke off"), (None, "had not ended")])
def test_fixed_prompts_have_no_answer_where_one_breaks_off_or_takes_too_long(
    world: Make, fail_at: int | None, words: str
) -> None:
    w = world(FakeEngine(hold=2), answer_timeout="0.2s")
    w.engine.fail_at = fail_at
    with pytest.raises(Unavailable, match=words):
        run(w.service.on_fixed_prompts(0))
    assert all(generation.done.wait(5) for generation in w.engine.generations), "nobody waits for the others any more"


def test_who_has_nothing_to_judge_ranks_answers_to_shipped_prompts(world: Make) -> None:
    w = world()

    async def talk() -> None:
        await (await w.service.compare("ben", ASK, share=True)).wait()
        brought = len(list(shipped_prompts()))
        assert await w.service.left_to_judge("anna") == 1 + brought
        shared = await w.service.next_to_judge("anna")
        assert await w.service.left_to_judge("anna") == brought
        assert isinstance(shared, Comparison) and not shared.own
        assert await w.service.next_to_judge("anna") == shared, "until it is judged"
        await w.service.vote("anna", shared.id, Judgement(verdict="skip"))

        live = await w.service.next_to_judge("anna")
        assert isinstance(live, LiveComparison) and len(live.drafts) == 4
        await live.wait()
        assert await w.service.left_to_judge("anna") == brought - 1
        waiting = await w.service.next_to_judge("anna")
        assert isinstance(waiting, Comparison) and waiting.id == live.comparison.id, "another page shows the same"
        receipt = await w.service.vote(
            "anna", waiting.id, Judgement(ranking=tuple((c.id,) for c in waiting.candidates))
        )
        assert len(receipt.revealed) == 4
        assert await w.service.judged("anna", datetime.now(UTC) - timedelta(days=1)) == (1, 1, 2), "one was skipped"
        assert await w.service.judged("anna", datetime.now(UTC) + timedelta(days=1)) == (1, 0, 0)
        another = await w.service.next_to_judge("anna")
        assert isinstance(another, LiveComparison) and another.comparison.messages != waiting.messages
        await another.wait()

    run(talk())
    assert w.store.conversations("anna") == [], "they are no talks of hers"
    with w.store.reading() as db:
        assert db.execute("SELECT sum(asked) FROM messages").fetchone()[0] == 1, "nobody asked what was shipped"
        assert db.execute("SELECT evidence FROM votes ORDER BY rowid DESC LIMIT 1").fetchone()[0] == 1


def test_what_was_given_out_comes_back_before_anything_new(world: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    w = world()
    monkeypatch.setattr("serve.service.APART", 0)

    async def next_one(repeated: float) -> Comparison:
        monkeypatch.setattr("serve.service.REPEATED", repeated)
        found = await w.service.next_to_judge("anna")
        assert isinstance(found, Comparison)
        return found

    async def judge(comparison: Comparison) -> None:
        await w.service.vote("anna", comparison.id, Judgement(ranking=tuple((c.id,) for c in comparison.candidates)))

    async def talk() -> None:
        for _ in range(3):
            await (await w.service.compare("ben", ASK, share=True)).wait()
        pairs = [await next_one(0.0)]
        await judge(pairs[0])
        pairs.append(await next_one(0.0))
        await judge(pairs[1])
        again = await next_one(1.0)
        assert [c.answer.id for c in again.candidates] in [[c.answer.id for c in p.candidates[::-1]] for p in pairs]
        assert await next_one(0.0) == again
        await judge(again)
        third = await next_one(0.0)
        assert await next_one(1.0) == third and third.messages == tuple(ASK)

    run(talk())


@pytest.mark.parametrize(("settings", "k"), [({"rank_candidates": 3}, 3), ({"rank_candidates": 6, "batch_rows": 5}, 5)])
def test_shipped_prompts_that_the_fold_models_differ_on_are_ranked_first(
    world: Make, settings: dict[str, int], k: int
) -> None:
    w, doubted = world(**settings), list(shipped_prompts())[7]

    async def talk() -> None:
        asked = await w.service.compare("ben", doubted, shipped=True)
        await asked.wait()
        first, second = (candidate.answer.id for candidate in asked.comparison.candidates)
        w.store.set_doubts(w.store.create_run("votes", ["reward"], {}).id, [(first, second, 0.5)])
        pair = await w.service.next_to_judge("anna")
        assert isinstance(pair, Comparison), "what ben was asked waits for others, too"
        await w.service.vote("anna", pair.id, Judgement(verdict="skip"))
        live = await w.service.next_to_judge("anna")
        assert isinstance(live, LiveComparison)
        assert (len(live.drafts), live.comparison.messages) == (k, doubted)
        await live.wait()

    run(talk())


def test_sometimes_is_a_coin_with_a_known_probability(world: Make) -> None:
    service = world().service
    assert service.should_ask("always") == (True, 1.0)
    assert service.should_ask("never") == (False, 0.0)
    tosses = [service.should_ask("sometimes") for _ in range(500)]
    probability = tosses[0][1]
    assert 0 < probability < 1
    assert abs(sum(asked for asked, _ in tosses) / 500 - probability) < 0.1


def test_forgetting_stops_what_is_written_and_leaves_nothing(world: Make) -> None:
    w = world(FakeEngine(hold=1))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 1)
        await w.service.forget("anna")
        return live

    live = run(talk())
    assert live.done
    with w.store.reading() as db:
        assert [db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in ("answers", "voters")] == [0, 0]


def test_without_an_engine_the_service_is_not_ready_and_attaching_serves_what_was_promoted(
    world: Make, tmp_path: Path
) -> None:
    w = world()
    publish(w.registry, tmp_path / "adapter")
    w.registry.promote(1, "op", "before the restart")
    service = Service(store=w.store, engine=None, registry=w.registry, settings=w.service.settings)
    assert not service.ready
    with pytest.raises(Unavailable, match="loading"):
        run(service.compare("anna", ASK))
    service.attach(w.engine)
    assert service.ready
    assert service.serving == 1


def test_closing_ends_and_records_what_is_written_and_refuses_what_is_new(world: Make) -> None:
    w = world(FakeEngine(hold=2))

    async def talk() -> LiveComparison:
        live = await w.service.compare("anna", ASK)
        await until_step(live, 2)
        await w.service.close()
        assert live.done
        with pytest.raises(Unavailable, match="stopping"):
            await w.service.compare("anna", ASK)
        return live

    live = run(talk())
    stored = w.store.comparison(live.comparison.id, "anna")
    assert [c.answer.finish_reason for c in stored.candidates] == ["cancelled", "cancelled"]
    assert all(len(c.answer.token_ids) == 2 for c in stored.candidates)
