"""What people can do with Hustings. Pages and HTTP API both call this; nothing else talks to store and engine."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import logging
import random
import secrets
import threading
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, Protocol

from serve import schedule
from serve.board import Board, board
from serve.copies import delete_copies, settle
from serve.engine import CandidateRequest, Engine, Generation
from serve.errors import Conflict, Forbidden, HustingsError, InvalidInput, NotFound, Unavailable
from serve.feedback import exchange
from serve.feedback.browsing import Search
from serve.feedback.database import stamp
from serve.feedback.entries import (
    Consent,
    ConversationSummary,
    ConversationTurn,
    Exclusion,
    HeadToHead,
    ImportCounts,
    Kind,
    MetricPoint,
    NewCandidate,
    PromptRef,
)
from serve.feedback.snapshot import shipped_prompts
from serve.feedback.store import Store
from serve.feedback.votes import Shown
from serve.limits import (
    MAX_BYTES,
    SamplingRequest,
    check_count,
    check_messages,
    check_number,
    check_seed,
    check_text,
    fill_in,
    size_of,
)
from serve.live import Draft, LiveAnswers, LiveComparison
from serve.policy.model_card import archive
from serve.records import (
    BASE_VERSION,
    Comparison,
    Demonstration,
    Due,
    Judgement,
    Message,
    Run,
    Sampling,
    SettingInfo,
    Stage,
    Version,
    Vote,
    VoteReceipt,
)
from serve.truncation import Reading, Truncation, read

if TYPE_CHECKING:
    from pathlib import Path

    from serve.policy.adapters import Registry
    from serve.settings import Settings

log = logging.getLogger(__name__)

SOMETIMES = 0.3
"""Share of turns that ask for a vote when the voter said "sometimes"."""

REPEATED, APART = 0.1, 20
"""Share of what is judged in the queue that its voter judged before, so many judgements ago at least."""

FIXED = 12
"""Prompts on which operators compare two versions."""


class Training(Protocol):
    """What the web needs of the scheduler. Thread-safe, blocking."""

    def trigger(
        self, *, stages: Sequence[Stage] | None, settings: Mapping[str, Any] | None, force: bool, who: str
    ) -> Run:
        """Start a run. Raises RunActive, NothingToLearn, InvalidInput."""

    def cancel(self, run_id: int, *, who: str) -> Run:
        """End a run. Raises NotFound, Conflict when it is over."""

    def due(self) -> Due:
        """How far the next run is."""

    def settings(self) -> list[SettingInfo]:
        """What a run can be told, with bounds, in words."""

    def score(self, items: Sequence[tuple[Sequence[Message], str]]) -> list[float] | None:
        """What the newest reward model says of answers to messages; None where there is none. Raises Unavailable."""


class Service:
    """Chat, compare, vote, and the operator's switches. One per process; its methods belong to one event loop."""

    def __init__(
        self,
        *,
        store: Store,
        engine: Engine | None,
        registry: Registry | None,
        settings: Settings,
        rng: random.Random | None = None,
    ) -> None:
        """`engine` None: the model is still loading, `attach` brings it. `registry` None: only the base answers."""
        self.store = store
        self.settings = settings
        self.counts: Counter[str] = Counter()
        """`tokens` and, by finish reason, `answers_…`, since the start."""
        self._engine = engine
        self._registry = registry
        self._rng = rng or random.Random(secrets.randbits(64))
        self._live: dict[str, LiveComparison] = {}
        self._writing: dict[LiveAnswers, str] = {}  # → whose it is
        self._switching = threading.Lock()
        self._board_lock = threading.Lock()
        self._board: tuple[object, Board] | None = None  # with the state of the record that it is of
        self._latest: object = None
        """Stands for the promotion or rollback that was asked for last."""
        self._closed = False

    # ---- readiness

    @property
    def ready(self) -> bool:
        """The model can answer."""
        return self._engine is not None and not self._closed

    @property
    def engine(self) -> Engine:
        """The engine. Raises Unavailable until it is loaded, and when the server stops."""
        if self._closed:
            raise Unavailable("the server is stopping; try again when it is back")
        if self._engine is None:
            raise Unavailable("the model is still loading; try again in a moment")
        return self._engine

    def attach(self, engine: Engine, version: int | None = None) -> None:
        """The engine is loaded: make it serve this version, or the promoted one. Blocking.

        Raises AdapterError if the version is broken.
        """
        serving = self.store.serving() if version is None else version
        engine.load(serving, self._verify(serving))
        engine.serve(serving)
        self._engine = engine

    async def close(self) -> None:
        """Refuse what is new, end what is being written, and record how far it came. Idempotent."""
        self._closed = True
        writing = list(self._writing)
        for live in writing:
            live.cancel()
        for live in writing:
            await live.wait()

    # ---- talking

    async def compare(
        self,
        voter: str,
        messages: Sequence[Message],
        *,
        k: int | None = None,
        conversation_id: str | None = None,
        share: bool = False,
        sampling: SamplingRequest | None = None,
        seed: int | None = None,
        versions: Sequence[int] | None = None,
        operator: bool = False,
        asked: float = 1.0,
        shipped: bool = False,
        truncation: Truncation = "disabled",
    ) -> LiveComparison:
        """Ask for a vote: K answers to the prompt, in random order.

        `versions` names who answers (operators only) and then sets K; `asked` is the probability with which the
        server chose to ask at all; `shipped` says that nobody here asked this, but the project brings it. With
        `truncation` `auto` a prompt that is too long is read without its oldest turns; the record keeps it whole.
        Raises InvalidInput, PromptTooLong, NotFound, Forbidden, Unavailable.
        """
        if versions is not None and not operator:
            raise Forbidden("only operators may name versions; leave `versions` out, or log in")
        k = check_count(k, versions)
        check_seed(seed)
        wanted = fill_in(sampling, self.settings)
        prompt = await self._read(messages, wanted, truncation)
        if versions is None:
            drawn, probability = await self._draw(k)
        else:
            drawn, probability = list(versions), None
            for version in sorted(set(drawn)):
                await asyncio.to_thread(self._load, version)
        first = self._rng.getrandbits(32) if seed is None else seed
        requests = [CandidateRequest(version, first + i) for i, version in enumerate(drawn)]
        self._rng.shuffle(requests)

        generation = self.engine.submit(prompt.token_ids, requests, wanted)
        try:
            await self._leave_open(voter, conversation_id)
            comparison = await asyncio.to_thread(
                self._store_comparison,
                voter,
                messages,
                requests,
                wanted,
                conversation_id=conversation_id,
                share=share,
                test=versions is not None,
                shipped=shipped,
                evidence=versions is None and seed is None and (sampling is None or sampling.empty),
                probability=None if probability is None else asked * probability,
                dropped=prompt.dropped,
            )
        except BaseException:
            generation.cancel()
            raise

        async def resample(again: Sequence[CandidateRequest]) -> Generation:
            return self.engine.submit(prompt.token_ids, again, wanted)

        live = LiveComparison(
            comparison, generation, self._record, resample, prompt_tokens=len(prompt.token_ids), timeout=self._timeout
        )
        self._live[comparison.id] = live
        live.when_done(lambda: self._live.pop(comparison.id))
        self._follow(live, voter)
        return live

    async def answer(
        self,
        voter: str,
        messages: Sequence[Message],
        *,
        version: int | None = None,
        sampling: SamplingRequest | None = None,
        seed: int | None = None,
        n: int = 1,
        conversation_id: str | None = None,
        share: bool = False,
        operator: bool = False,
        truncation: Truncation = "disabled",
    ) -> LiveAnswers:
        """Answers without asking for a vote. With `n` 1 the answer becomes the conversation's next message.

        `version` None is what serves; only operators may name one, and what they ask it is no prompt for runs.
        `truncation` and what is raised are as in `compare`.
        """
        if version is not None and not operator:
            raise Forbidden("only operators may name versions; ask for the model `hustings`, or log in")
        check_number(n)
        check_seed(seed)
        wanted = fill_in(sampling, self.settings)
        prompt = await self._read(messages, wanted, truncation)
        test = version is not None
        if version is None:
            version = self.engine.serving
        else:
            await asyncio.to_thread(self._load, version)
        first = self._rng.getrandbits(32) if seed is None else seed
        requests = [CandidateRequest(version, first + i) for i in range(n)]
        generation = self.engine.submit(prompt.token_ids, requests, wanted)
        try:
            await self._leave_open(voter, conversation_id)
            ref, ids = await asyncio.to_thread(
                self._store_answers,
                voter,
                messages,
                requests,
                wanted,
                conversation_id=conversation_id,
                share=share,
                test=test,
                dropped=prompt.dropped,
            )
        except BaseException:
            generation.cancel()
            raise

        async def record(draft: Draft) -> None:
            await self._record(draft)
            if n == 1 and draft.answer_id and draft.text and draft.finish_reason != "error":
                await asyncio.to_thread(self.store.add_reply, ref, draft.answer_id)

        drafts = [Draft(i, i, r) for i, r in zip(ids, requests, strict=True)]
        live = LiveAnswers(
            drafts,
            generation,
            record,
            prompt_tokens=len(prompt.token_ids),
            timeout=self._timeout,
            conversation_id=ref.conversation_id,
        )
        self._follow(live, voter)
        return live

    async def on_fixed_prompts(self, version: int) -> list[tuple[str, str]]:
        """A version's answers to prompts that are always the same, with the same seeds: (prompt, answer).

        For operators; nothing is recorded. Raises NotFound, AdapterError, Unavailable, TookTooLong.
        """
        await asyncio.to_thread(self._load, version)
        wanted = fill_in(None, self.settings)
        prompts = await asyncio.to_thread(fixed_prompts)
        asked: list[LiveAnswers] = []
        try:
            for seed, messages in enumerate(prompts):
                asked.append(await self._unrecorded(messages, wanted, {"answer": CandidateRequest(version, seed)}))
            for live in asked:
                await live.wait()
                if live.error is not None:
                    raise live.error
        finally:
            for live in asked:
                live.cancel()  # whoever left no longer waits for it
        return [(messages[-1].content, live.drafts[0].text) for messages, live in zip(prompts, asked, strict=True)]

    async def side_by_side(
        self,
        messages: Sequence[Message],
        versions: tuple[int, int],
        *,
        sampling: SamplingRequest | None = None,
        seed: int | None = None,
    ) -> LiveAnswers:
        """The same prompt answered by two versions with one seed, for operators; nothing is recorded.

        The drafts' ids are `left` and `right`.
        """
        check_seed(seed)
        wanted = fill_in(sampling, self.settings)
        for version in sorted(set(versions)):
            await asyncio.to_thread(self._load, version)
        first = self._rng.getrandbits(32) if seed is None else seed
        requests = {
            side: CandidateRequest(version, first) for side, version in zip(("left", "right"), versions, strict=True)
        }
        return await self._unrecorded(messages, wanted, requests)

    def should_ask(self, how: Literal["always", "sometimes", "never"]) -> tuple[bool, float]:
        """Whether to ask for a vote on this turn, and the probability of asking; tossed before generation."""
        probability = {"always": 1.0, "sometimes": SOMETIMES, "never": 0.0}[how]
        return self._rng.random() < probability, probability

    def live(self, comparison_id: str, voter: str) -> LiveComparison | None:
        """The comparison, while it is being written."""
        live = self._live.get(comparison_id)
        return live if live is not None and live.comparison.voter_id == voter else None

    def writing_in(self, conversation_id: str) -> LiveAnswers | None:
        """What is being written in a conversation; the newest, if there is more than one."""
        found = (live for live in reversed(self._writing) if live.conversation_id == conversation_id and not live.done)
        return next(found, None)

    # ---- judging

    async def comparison(self, comparison_id: str, voter: str) -> Comparison:
        """A comparison as it stands, also while it is being written. Raises NotFound."""
        stored = await asyncio.to_thread(self.store.comparison, comparison_id, voter)
        live = self.live(comparison_id, voter)
        return stored if live is None else live.with_texts(stored)

    async def vote(
        self, voter: str, comparison_id: str, judgement: Judgement, *, idempotency_key: str | None = None
    ) -> VoteReceipt:
        """Judge a comparison. A vote before the end keeps what was shown; the winner finishes, the others stop.

        Raises InvalidInput, NotFound, AlreadyVoted, Expired, Conflict when an answer has shown nothing yet.
        """
        live = self.live(comparison_id, voter)
        if live is None or live.done:
            return await asyncio.to_thread(
                self.store.add_vote, comparison_id, voter, judgement, idempotency_key=idempotency_key
            )
        shown = {draft.id: (draft.text, draft.token_ids) for draft in live.shown if draft.deltas}
        # A vote that is on its way in stops the losers, also where its caller leaves meanwhile.
        return await asyncio.shield(self._vote_early(live, voter, judgement, idempotency_key, shown))

    async def _vote_early(
        self, live: LiveComparison, voter: str, judgement: Judgement, idempotency_key: str | None, shown: Shown
    ) -> VoteReceipt:
        before, live.judged = live.judged, True
        try:
            receipt = await asyncio.to_thread(
                self.store.add_vote,
                live.comparison.id,
                voter,
                judgement,
                idempotency_key=idempotency_key,
                shown=shown,
            )
        except HustingsError:
            live.judged = before
            raise
        losers = [draft.id for draft in live.drafts if draft.id != receipt.continues_with]
        live.cancel(*losers)
        return receipt

    async def settle(self, voter: str, comparison_id: str) -> None:
        """End a comparison that there is nothing to choose in, unasked. Raises as `vote`."""
        await asyncio.to_thread(self.store.add_vote, comparison_id, voter, Judgement(verdict="skip"), source="server")

    async def withdraw(self, voter: str, vote_id: str) -> str:
        """Take a vote back; a new one may follow on the comparison whose id is returned. Raises NotFound, Conflict."""
        return await asyncio.to_thread(self.store.withdraw_vote, vote_id, voter)

    async def note_vote(
        self,
        voter: str,
        vote_id: str,
        *,
        strength: int | None = None,
        reasons: Sequence[str] | None = None,
        offered: Sequence[str] | None = None,
    ) -> Vote:
        """Say afterwards how much better it was, or why; with `offered`, reasons that are not among those stay.

        Raises NotFound, Conflict, InvalidInput.
        """
        return await asyncio.to_thread(
            self.store.note_vote, vote_id, voter, strength=strength, reasons=reasons, offered=offered
        )

    async def demonstrate(
        self,
        voter: str,
        messages: Sequence[Message],
        answer: str,
        *,
        conversation_id: str | None = None,
        comparison_id: str | None = None,
    ) -> Demonstration:
        """Keep an answer written or edited by a person; in a conversation it is the history from here on.

        With a conversation or a comparison it goes when that prompt does.

        Raises InvalidInput, NotFound.
        """
        check_messages(messages)
        check_text(answer, "the answer")
        for what, said in (("messages are", messages), ("answer is", [Message("assistant", answer)])):
            if (size := size_of(said)) > MAX_BYTES:
                raise InvalidInput(f"the {what} {size:,} bytes long, but {MAX_BYTES:,} are allowed")
        return await asyncio.to_thread(
            self.store.add_demonstration,
            voter,
            messages,
            answer,
            conversation_id=conversation_id,
            comparison_id=comparison_id,
        )

    async def withdraw_demonstration(self, voter: str, demonstration_id: str) -> None:
        """Take back what a voter wrote; a talk that went on with it keeps it as its history. Raises NotFound."""
        await asyncio.to_thread(self.store.withdraw_demonstration, demonstration_id, voter)

    async def next_in_queue(self, voter: str) -> Comparison | None:
        """A comparison that this voter has not judged, also while it is being written."""
        found = await asyncio.to_thread(self.store.next_in_queue, voter)
        with contextlib.suppress(NotFound):  # unshared this very moment
            return None if found is None else await self.comparison(found.id, voter)
        return None

    async def next_to_judge(self, voter: str) -> Comparison | LiveComparison | None:
        """What is next in the queue; where nothing is, several answers to a shipped prompt, as they are written.

        What was given out comes again until it is judged. Now and then something new is a pair that the voter judged
        before, with sides swapped. The shipped prompt is one on which the fold models differ most, as far as they have
        read answers to any. None when this voter has judged everything. Raises Unavailable.
        """
        found = await asyncio.to_thread(self.store.open_in_queue, voter)
        if found is None and self._rng.random() < REPEATED:
            found = await asyncio.to_thread(self.store.repeat, voter, APART)
        if found is None:
            found = await asyncio.to_thread(self.store.next_in_queue, voter)
        if found is not None:
            return self.live(found.id, voter) or found
        asked = await asyncio.to_thread(self.store.shipped_asked, voter)
        fresh = [messages for messages in await asyncio.to_thread(shipped) if messages[-1].content not in asked]
        if not fresh:
            return None
        doubts = await asyncio.to_thread(self.store.doubts_of_shipped)
        prompt = max(fresh, key=lambda messages: (doubts.get(messages[-1].content, 0.0), self._rng.random()))
        k = min(self.settings.rank_candidates, self.settings.batch_rows)
        return await self.compare(voter, prompt, k=k, shipped=True)

    async def judged(self, voter: str, since: datetime) -> tuple[int, int, int]:
        """How many comparisons a voter has judged: in all, since a time, and since then with those skipped."""
        return await asyncio.to_thread(self.store.judged, voter, stamp(since))

    async def judged_in_queue(self, voter: str, since: datetime) -> Comparison | None:
        """What a voter judged last in the queue, if it was since then and the vote stands."""
        return await asyncio.to_thread(self.store.judged_in_queue, voter, stamp(since))

    async def left_to_judge(self, voter: str) -> int:
        """How many pairs and shipped prompts a voter was not shown yet."""

        def work() -> int:
            asked = self.store.shipped_asked(voter)
            return self.store.unseen_pairs(voter) + sum(messages[-1].content not in asked for messages in shipped())

        return await asyncio.to_thread(work)

    async def next_run(self, training: Training) -> Due | None:
        """How far the next run by schedule is; None while one is on."""

        def work() -> Due | None:
            return None if self.store.active_run() is not None else training.due()

        return await asyncio.to_thread(work)

    async def me(self, voter: str) -> dict[str, Any]:
        """What a voter gave, what it trained, and how those versions do in blind votes against their parents."""

        def work() -> dict[str, Any]:
            found = self.store.me(voter)
            for version in found["versions"]:
                parent = version["parent"]
                met = HeadToHead(0, 0, 0) if parent is None else self.store.head_to_head(version["version"], parent)
                version.update(wins=met.wins, losses=met.losses)
            return found

        return await asyncio.to_thread(work)

    async def everything_of(self, voter: str) -> dict[str, Any]:
        """All that is kept of a voter."""
        return await asyncio.to_thread(self.store.everything, voter)

    async def consent(self, voter: str) -> Consent:
        """What a voter agreed to."""
        return await asyncio.to_thread(self.store.consent, voter)

    async def give_consent(self, voter: str, share: bool) -> None:
        """Note what a voter agreed to; without `share` nothing of theirs is shown to others any more."""
        await asyncio.to_thread(self.store.give_consent, voter, share)

    async def forget(self, voter: str) -> None:
        """Delete what a voter wrote, said and chose, also from the copies that ended training runs learned from.

        The copy of a run that is on goes when it ends.
        """
        for live in [live for live, whose in self._writing.items() if whose == voter]:
            live.cancel()
            await live.wait()
        await asyncio.to_thread(self._forget, voter)

    # ---- a voter's conversations

    async def conversations(self, voter: str, search: str = "") -> list[ConversationSummary]:
        """A voter's conversations, newest first; of a search, those that hold it."""
        return await asyncio.to_thread(self.store.conversations, voter, search)

    async def rename(self, voter: str, conversation_id: str, title: str) -> None:
        """Call a conversation something else. Raises InvalidInput, NotFound."""
        await asyncio.to_thread(self.store.rename_conversation, conversation_id, voter, title)

    async def delete(self, voter: str, conversation_id: str) -> None:
        """Delete a conversation with the votes on it, also from the copies of ended runs, as `forget` does.

        Raises NotFound.
        """
        await self.conversation(conversation_id, voter)
        for live in [live for live in self._writing if live.conversation_id == conversation_id]:
            live.cancel()
            await live.wait()
        begun = await asyncio.to_thread(self.store.delete_conversation, conversation_id, voter)
        await asyncio.to_thread(self._delete_copies, begun)

    async def branches(self, voter: str, conversation_id: str) -> dict[str, tuple[str, ...]]:
        """Of each message where a conversation stands: the ids of all in its place. Raises NotFound."""
        return await asyncio.to_thread(self.store.branches, conversation_id, voter)

    async def answered_before(self, voter: str, conversation_id: str) -> str | None:
        """The newest answer to the turn where a conversation stands, which is none of it now. Raises NotFound."""
        return await asyncio.to_thread(self.store.answered_before, conversation_id, voter)

    async def switch_branch(self, voter: str, message_id: str) -> None:
        """Go to another branch of a conversation, where it was last. Raises NotFound."""
        await asyncio.to_thread(self.store.switch_branch, message_id, voter)

    async def conversation(self, conversation_id: str, voter: str) -> list[ConversationTurn]:
        """The current branch of a conversation. Raises NotFound."""
        return await asyncio.to_thread(self.store.conversation, conversation_id, voter)

    async def open_comparison(self, voter: str, conversation_id: str) -> Comparison | None:
        """The comparison of a conversation that waits for a vote."""
        stored = await asyncio.to_thread(self.store.open_comparison, voter, conversation_id)
        return None if stored is None else await self.comparison(stored.id, voter)

    async def judged_last(self, voter: str, conversation_id: str) -> Comparison | None:
        """The comparison that this voter judged where a conversation stands."""
        return await asyncio.to_thread(self.store.judged_last, voter, conversation_id)

    # ---- what operators keep an eye on

    async def find_votes(self, search: Search, *, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
        """A page of standing votes, newest first, and where the next one begins."""
        return await asyncio.to_thread(self.store.find_votes, search, before=before)

    async def find_demonstrations(
        self, search: Search, *, before: int | None = None
    ) -> tuple[list[dict[str, Any]], int | None]:
        """A page of demonstrations, likewise."""
        return await asyncio.to_thread(self.store.find_demonstrations, search, before=before)

    async def leave_out(
        self, *, voter: int | None = None, vote: str | None = None, kind: Kind, reason: str, who: str
    ) -> Exclusion:
        """Flag or exclude a vote or a voter. Raises InvalidInput, NotFound, Conflict."""
        return await asyncio.to_thread(self.store.leave_out, voter=voter, vote=vote, kind=kind, reason=reason, who=who)

    async def lift(self, exclusion_id: str, *, who: str) -> None:
        """Let what was flagged or excluded count again. Raises NotFound."""
        await asyncio.to_thread(self.store.lift, exclusion_id, who=who)

    async def note_version(self, number: int, note: str, *, who: str) -> None:
        """Write something beside a version. Raises NotFound, InvalidInput."""
        await asyncio.to_thread(self.store.note_version, number, note, who=who)

    async def adapter(self, number: int) -> bytes:
        """A published version as a zip file: PEFT's files, the manifest and a card. Raises NotFound, AdapterError."""

        def work() -> bytes:
            version, folder = self.store.version(number), self._verify(number)
            if folder is None:
                raise NotFound("the base has no adapter; every version is one on top of it")
            return archive(folder, version, self.store.votes_of(number))

        return await asyncio.to_thread(work)

    async def run_log(self, run_id: int, tail: int) -> str:
        """The last lines of what a run's trainer said. Raises NotFound."""

        def work() -> str:
            self.store.run(run_id)
            try:
                with self.settings.folder.run_log(run_id).open(encoding="utf-8", errors="replace") as lines:
                    return "".join(deque(lines, tail)).removesuffix("\n")
            except FileNotFoundError:
                return ""

        return await asyncio.to_thread(work)

    async def log_deed(self, who: str, what: str) -> None:
        """Append to the log of who did what."""
        await asyncio.to_thread(self.store.log_deed, who, what)

    # ---- versions

    async def board(self) -> Board:
        """What votes say of versions; computed anew where there is a vote or a version since."""
        return await asyncio.to_thread(self._judge_versions)

    @property
    def serving(self) -> int:
        """The version that serves by the record, which is the truth; the engine follows it."""
        return self.store.serving()

    async def versions(self) -> list[Version]:
        """All versions."""
        return await asyncio.to_thread(self.store.versions)

    async def promote(self, version: int, *, who: str, why: str) -> int:
        """Make a version serve, without a restart. Raises NotFound, AdapterError, Conflict, Unavailable."""
        return await asyncio.to_thread(self.promote_now, version, who, why)

    async def rollback(self, *, who: str, why: str, to: int | None = None) -> int:
        """Return to the version that served before. Raises as `promote`; Conflict where `to` is another by now."""
        return await asyncio.to_thread(self.rollback_now, who, why, to)

    def promote_now(self, version: int, who: str, why: str) -> int:
        """`promote` from any thread, blocking: the scheduler calls it.

        A promotion may have to wait until an answer gives up its version's place. Of those that are asked for meanwhile
        only the last one happens; the others raise Conflict.
        """
        folder = self._verify(version)  # what cannot be promoted supersedes nothing
        this = self._latest = object()
        with self._switching:
            if this is not self._latest:
                raise Conflict(
                    f"another promotion came while that of version {version} waited; ask again if it is meant"
                )
            self.engine.load(version, folder)
            self._registry_or_refuse().promote(version, who, why)
            self.engine.serve(version)
            return version

    def rollback_now(self, who: str, why: str, to: int | None = None) -> int:
        """`rollback` from any thread, blocking. It supersedes the promotions that wait."""
        self._check_rollback(to)  # what is refused supersedes nothing
        self._latest = object()
        with self._switching:
            previous = self._check_rollback(to)
            if previous is not None:  # otherwise the registry says what is wrong
                self._load(previous)
            version = self._registry_or_refuse().rollback(who, why).number
            self.engine.serve(version)
            return version

    def _check_rollback(self, to: int | None) -> int | None:
        """What a rollback would return to. Raises Conflict where that is not the version that is meant."""
        previous = self.store.previous_serving()
        if to not in (None, previous):
            raise Conflict("something else serves by now; look again at what a rollback would return to")
        return previous

    # ---- runs and datasets

    async def runs(self, limit: int | None = None) -> list[Run]:
        """All runs, or so many, newest first."""
        return await asyncio.to_thread(self.store.runs, limit)

    async def run(self, run_id: int) -> Run:
        """A run. Raises NotFound."""
        return await asyncio.to_thread(self.store.run, run_id)

    async def run_metrics(self, run_id: int) -> list[MetricPoint]:
        """The curves of a run."""
        return await asyncio.to_thread(self.store.run_metrics, run_id)

    def export(self, format: str, style: str = "conversational") -> Iterator[str]:
        """The record as JSON lines. Raises InvalidInput for a format that there is not."""
        return exchange.export(self.store, format, style)

    async def import_lines(self, lines: bytes, format: str, reading: str, *, who: str) -> ImportCounts:
        """Take JSON lines in, all or none; returns counts. Raises InvalidInput with the line, Conflict on a repeat."""
        return await asyncio.to_thread(exchange.import_lines, self.store, lines, format, reading, who=who)

    # ---- inside

    @property
    def _timeout(self) -> float:
        return self.settings.answer_timeout.total_seconds()

    async def _read(self, messages: Sequence[Message], sampling: Sampling, truncation: Truncation) -> Reading:
        check_messages(messages)
        return await asyncio.to_thread(read, self.engine, messages, sampling.max_tokens, truncation)

    async def _draw(self, k: int) -> tuple[list[int], float]:
        """Which versions answer, and the probability of that choice: now and then a rival writes one of the answers."""
        serving = self.engine.serving
        rivals, share = await asyncio.to_thread(self._rivals, serving)
        if not rivals or self._rng.random() >= share:
            return [serving] * k, 1.0 - share
        rival = self._rng.choice(rivals)
        try:
            await asyncio.to_thread(self._load, rival)
        except HustingsError as error:  # a broken old adapter must not keep anybody from chatting
            log.warning("version %s cannot be compared with: %s", rival, error)
            return [serving] * k, 1.0 - share
        return [rival] + [serving] * (k - 1), share / len(rivals)

    def _rivals(self, serving: int) -> tuple[list[int], float]:
        """Whom the serving version is measured against, and how often: a canary, or else its predecessor and base."""
        shares = schedule.current(self.store, self.settings)
        canaries = [v.number for v in self.store.versions() if v.status == "canary"]
        if canaries:
            return canaries, shares.canary_share
        previous = self.store.previous_serving()
        rivals = sorted({BASE_VERSION, BASE_VERSION if previous is None else previous} - {serving})
        return rivals, shares.compare_share if rivals else 0.0

    def _verify(self, version: int) -> Path | None:
        return self._registry_or_refuse().verify(version) if version != BASE_VERSION else None

    def _registry_or_refuse(self) -> Registry:
        if self._registry is None:
            raise Unavailable("this server keeps no versions; start it with a data folder")
        return self._registry

    def _load(self, version: int) -> None:
        """Make a version resident."""
        self.engine.load(version, self._verify(version))

    async def _leave_open(self, voter: str, conversation_id: str | None) -> None:
        """The talk goes on: what is still being written for the last turn stops, and is recorded as far as it came."""
        if conversation_id is None:
            return
        left = await asyncio.to_thread(self.store.open_comparison, voter, conversation_id)
        live = left and self.live(left.id, voter)
        if live:
            live.cancel()
            await live.wait()

    def _store_comparison(
        self,
        voter: str,
        messages: Sequence[Message],
        requests: Sequence[CandidateRequest],
        sampling: Sampling,
        *,
        conversation_id: str | None,
        share: bool,
        test: bool,
        shipped: bool,
        evidence: bool,
        probability: float | None,
        dropped: int,
    ) -> Comparison:
        prompt = self.store.record_prompt(
            voter,
            messages,
            conversation_id=conversation_id,
            share=share,
            test=test or shipped,
            source="shipped" if shipped else "voter",
        )
        candidates = [NewCandidate(request.version, request.seed) for request in requests]
        return self.store.create_comparison(
            voter, prompt, candidates, sampling, evidence=evidence, probability=probability, dropped=dropped
        )

    def _store_answers(
        self,
        voter: str,
        messages: Sequence[Message],
        requests: Sequence[CandidateRequest],
        sampling: Sampling,
        *,
        conversation_id: str | None,
        share: bool,
        test: bool,
        dropped: int,
    ) -> tuple[PromptRef, list[str]]:
        prompt = self.store.record_prompt(voter, messages, conversation_id=conversation_id, share=share, test=test)
        answers = [
            self.store.create_answer(voter, prompt, r.version, r.seed, sampling, dropped=dropped) for r in requests
        ]
        return prompt, [answer.id for answer in answers]

    def _judge_versions(self) -> Board:
        with self._board_lock:
            state = self.store.votes_state()
            if self._board is None or self._board[0] != state:
                self._board = (state, board(self.store.ballots(), self.store.versions(), self.store.serving()))
            return self._board[1]

    def _forget(self, voter: str) -> None:
        begun = self.store.forget(voter)
        if begun is not None:
            self._delete_copies(begun)

    def _delete_copies(self, begun: datetime) -> None:
        def active() -> int | None:
            run = self.store.active_run()
            return None if run is None else run.id

        delete_copies(self.settings.folder, begun, active())
        settle(self.settings.folder, active())  # the run may have ended in between

    async def _record(self, draft: Draft) -> None:
        self.counts["tokens"] += len(draft.deltas)
        self.counts[f"answers_{draft.finish_reason}"] += 1
        if draft.answer_id is not None:
            await asyncio.to_thread(
                self.store.finish_answer,
                draft.answer_id,
                text=draft.text,
                token_ids=draft.token_ids,
                logprobs=draft.logprobs,
                finish_reason=draft.finish_reason or "error",
                seed=draft.request.seed,
            )

    async def _unrecorded(
        self, messages: Sequence[Message], sampling: Sampling, requests: Mapping[str, CandidateRequest]
    ) -> LiveAnswers:
        """An operator's question, answered as asked for; the drafts' ids are the keys of `requests`."""
        prompt = await self._read(messages, sampling, "disabled")
        drafts = [Draft(name, None, request) for name, request in requests.items()]
        generation = self.engine.submit(prompt.token_ids, list(requests.values()), sampling)
        live = LiveAnswers(drafts, generation, self._record, prompt_tokens=len(prompt.token_ids), timeout=self._timeout)
        self._follow(live, "")
        return live

    def _follow(self, live: LiveAnswers, voter: str) -> None:
        """Keep hold of it until it is recorded."""
        self._writing[live] = voter
        live.when_done(lambda: self._writing.pop(live))


@functools.cache
def shipped() -> tuple[tuple[Message, ...], ...]:
    """The prompts that the project ships."""
    return tuple(shipped_prompts())


@functools.cache
def fixed_prompts() -> tuple[tuple[Message, ...], ...]:
    """Some of the shipped prompts, always the same: those whose hashes come first."""

    def order(messages: tuple[Message, ...]) -> str:
        return hashlib.sha256(messages[-1].content.encode()).hexdigest()

    return tuple(sorted(shipped(), key=order)[:FIXED])
