"""`/api`: comparisons and votes for voters; runs, versions and datasets for operators."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Body, Depends, FastAPI, Header, Path, Query, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from serve import schedule
from serve.errors import HustingsError, Unauthorized
from serve.feedback.browsing import Search
from serve.feedback.deeds import LONGEST_REMARK
from serve.feedback.entries import Kind
from serve.limits import MAX_CANDIDATES, MAX_MESSAGES, SamplingRequest, stop_texts
from serve.live import End, Failure, LiveComparison, Start
from serve.records import (
    Comparison,
    Format,
    Judgement,
    Message,
    Reading,
    Role,
    Run,
    Stage,
    Style,
    Verdict,
    Version,
)
from serve.secrets import Secrets
from serve.service import Service, Training
from serve.truncation import Truncation
from serve.web import faults
from serve.web.identity import door, end_session, forget_voter, guarded, require_operator, set_session
from serve.web.login import is_let_in
from serve.web.streams import event_stream, events_with_pings, sse, wait_or_cancel

_LARGEST = 2**63 - 1
"""SQLite's largest integer."""


def _whole(text: str) -> str:
    text.encode()  # half of a surrogate pair raises UnicodeEncodeError, which is a ValueError
    return text


def _number_of(voter: Any) -> Any:
    return voter.removeprefix("voter-") if isinstance(voter, str) else voter


_Text = Annotated[str, AfterValidator(_whole)]
_Id = Annotated[_Text, Field(max_length=100)]
_Reasons = Annotated[list[Annotated[str, Field(max_length=2000)]], Field(max_length=20)]
_Value = str | int | float | None
_Number = Annotated[int, Field(ge=0, le=_LARGEST)]
_VoterNumber = Annotated[_Number, BeforeValidator(_number_of)]
_PathNumber = Annotated[int, Path(ge=0, le=_LARGEST)]
_Remark = Annotated[_Text, Field(max_length=LONGEST_REMARK)]
_Who = Annotated[str, Depends(door)]
_Voter = Annotated[_VoterNumber | None, Query(description="A number, or `voter-3`.")]
_Words = Annotated[str, Query(max_length=500, description="What prompt or answers hold.")]
_Since = Annotated[str | None, Query(max_length=40, description="A date or a time; UTC without a zone.")]
_Until = Annotated[str | None, Query(max_length=40, description="Likewise; the first that is left out.")]
_LeftOut = Annotated[bool, Query(description="Only what is flagged or excluded.")]


class _Body(BaseModel):
    """A mistyped field is an error, not silence."""

    model_config = ConfigDict(extra="forbid")


class MessageBody(_Body):
    """One turn; all turns together have at most 200,000 bytes, but for those that `truncation` leaves out."""

    role: Role
    content: str

    def record(self) -> Message:
        """As the record has it."""
        return Message(self.role, self.content)


class ComparisonBody(_Body):
    """A prompt to be answered twice or more."""

    messages: list[MessageBody] = Field(max_length=MAX_MESSAGES)
    """The last one is the user's."""
    k: int | None = None
    """Answers, 2 to 6; 2 where nothing else is said."""
    conversation_id: _Id | None = None
    """The talk that this goes on with; without one a new talk begins."""
    share: bool = False
    """Whether other voters may be shown this prompt with what came before it."""
    max_tokens: int | None = None
    """1 or more, as far as prompt and answer fit the model. What is left out is the server's own."""
    temperature: float | None = None
    """0 (greedy) to 2."""
    top_p: float | None = None
    """Above 0, at most 1."""
    top_k: int | None = None
    """0 (all) to 1,000,000."""
    stop: str | list[str] | None = None
    """Texts that end an answer, at most 4 of 200 characters."""
    seed: int | None = None
    """0 to about 9.2e18; votes on answers of a chosen seed or sampling are no evidence."""
    truncation: Truncation = "disabled"
    """`auto` leaves the oldest turns out where the talk has outgrown the model."""
    versions: list[_Number] | None = None
    """Who answers, one for each answer; for operators."""


class VoteBody(_Body):
    """A ranking, best group first, or a verdict."""

    ranking: list[list[_Id]] | None = Field(default=None, max_length=MAX_CANDIDATES)
    """Every candidate's id exactly once, in groups, best first; those in one group are a tie."""
    verdict: Verdict | None = None
    strength: int | None = Field(default=None, ge=1, le=5)
    """How much better the best is: 1 barely, 5 far."""
    reasons: _Reasons = []
    """Why, in a few words each."""

    @model_validator(mode="after")
    def _one_judgement(self) -> Self:
        if (self.ranking is None) == (self.verdict is None):
            raise ValueError("send either `ranking` or `verdict`")
        return self

    def record(self) -> Judgement:
        """As the record has it."""
        ranking = None if self.ranking is None else tuple(map(tuple, self.ranking))
        return Judgement(ranking, self.verdict, self.strength, tuple(self.reasons))


class NoteBody(_Body):
    """What is said of a vote afterwards; what is left out stays."""

    strength: int | None = Field(default=None, ge=1, le=5)
    reasons: _Reasons | None = None


class DemonstrationBody(_Body):
    """An answer written by a person."""

    messages: list[MessageBody] = Field(max_length=MAX_MESSAGES)
    answer: str
    """At most 200,000 bytes."""


class ConsentBody(_Body):
    """Whether prompts may be shown to other voters."""

    share: bool


class LoginBody(_Body):
    """The operator token."""

    token: str = Field(max_length=1000)


class ScheduleBody(_Body):
    """What is to be changed of the schedule; what is left out stays. What was set at the start cannot be changed."""

    min_new_votes: _Value = None
    """1 or more rankings and ties."""
    max_interval: _Value = None
    """A span such as `90s`, `15m`, `24h` or `7d`, of ten years at most, or `none`."""
    promotion: _Value = None
    """`auto`, `canary` or `manual`."""
    compare_share: _Value = None
    """0 to 1."""
    canary_share: _Value = None
    """0 to 1."""
    canary_deadline: _Value = None
    """A span."""


class RunBody(_Body):
    """What a run should do; all of it may be left out."""

    stages: list[Stage] | None = None
    """Some of `sft`, `reward` and `ppo`; what there is something to learn from, where nothing is said."""
    settings: dict[str, Any] | None = None
    """By section, such as `{"ppo": {"updates": 12}}`; `GET /api/settings` tells all, with bounds."""
    force: bool = False
    """Start with few votes, too; the gate stays as it is."""


class ExclusionBody(_Body):
    """A vote, or all that a voter gave, that should not count (`exclude`) or be looked at again (`flag`)."""

    kind: Kind = "exclude"
    voter: _VoterNumber | None = None
    """`voter-3`, or its number."""
    vote: _Id | None = None
    reason: _Remark


class VersionNoteBody(_Body):
    """What stands beside a version; empty takes it away."""

    note: _Remark


class SwitchBody(_Body):
    """Why a version is promoted or rolled back, for the audit log."""

    why: str = Field(default="asked for", max_length=2000)


def create(service: Service, training: Training, secrets: Secrets) -> FastAPI:
    """The application to mount at `/api`."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    faults.install(app)
    for router in routers(service, training, secrets):
        app.include_router(router)
    return app


def routers(service: Service, training: Training, secrets: Secrets) -> list[APIRouter]:
    """The calls, by who may make them: voters, a comparison's voter, operators, anybody."""
    return [_voters(service), _judges(service), _operators(service, training), _sessions(service, secrets)]


def _voters(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/comparisons")
    async def compare(request: Request, body: ComparisonBody) -> Response:
        """Answers to a prompt, blind: JSON once all are written, or events (`Accept: text/event-stream`)."""
        live = await service.compare(
            request.state.voter,
            [message.record() for message in body.messages],
            k=body.k,
            conversation_id=body.conversation_id,
            share=body.share,
            sampling=SamplingRequest(body.max_tokens, body.temperature, body.top_p, stop_texts(body.stop), body.top_k),
            seed=body.seed,
            versions=body.versions,
            truncation=body.truncation,
            operator=request.state.operator,
        )
        if "text/event-stream" in request.headers.get("accept", ""):
            return event_stream(live, _comparison_events(live), 201)
        await wait_or_cancel(live, request)
        if live.error is not None:
            raise live.error
        return JSONResponse(comparison_json(live.comparison), 201)

    @router.get("/queue/next")
    async def next_in_queue(request: Request) -> Response:
        """A pair that somebody else shared, to judge; 204 where none waits."""
        comparison = await service.next_in_queue(request.state.voter)
        return Response(status_code=204) if comparison is None else JSONResponse(comparison_json(comparison))

    @router.delete("/votes/{vote_id}")
    async def withdraw(request: Request, vote_id: str) -> Response:
        """Take a vote back; another may follow, no longer as evidence."""
        await service.withdraw(request.state.voter, vote_id)
        return Response(status_code=204)

    @router.patch("/votes/{vote_id}")
    async def note_vote(request: Request, vote_id: str, body: NoteBody) -> Response:
        """Say afterwards how much better it was, or why. Answers with `id`, `strength` and `reasons`."""
        vote = await service.note_vote(request.state.voter, vote_id, strength=body.strength, reasons=body.reasons)
        return JSONResponse(
            {"id": vote.id, "strength": vote.judgement.strength, "reasons": list(vote.judgement.reasons)}
        )

    @router.post("/demonstrations")
    async def demonstrate(request: Request, body: DemonstrationBody) -> Response:
        """Keep an answer that a person wrote: an example to learn from.
        Answers with its `id`.
        """
        messages = [message.record() for message in body.messages]
        demonstration = await service.demonstrate(request.state.voter, messages, body.answer)
        return JSONResponse({"id": demonstration.id}, 201)

    @router.delete("/demonstrations/{demonstration_id}")
    async def withdraw_demonstration(request: Request, demonstration_id: str) -> Response:
        """Take an answer that I wrote back: no further run learns from it."""
        await service.withdraw_demonstration(request.state.voter, demonstration_id)
        return Response(status_code=204)

    @router.get("/me")
    async def me(request: Request) -> Response:
        """What I gave, and what it trained: `counts`; `votes`, each with its runs in `trained`; `demonstrations`; and
        `versions`, those that learned from a vote last, with the blind votes they won and lost against their parents.
        """
        return JSONResponse(plain(await service.me(request.state.voter)))

    @router.get("/me/download")
    async def download(request: Request) -> Response:
        """Everything that is kept of me, as a file."""
        headers = {"Content-Disposition": 'attachment; filename="hustings-mine.json"'}
        return JSONResponse(plain(await service.everything_of(request.state.voter)), headers=headers)

    @router.post("/me/consent")
    async def consent(request: Request, body: ConsentBody) -> Response:
        """Whether my prompts may be shown to other voters; without it the earlier ones are not either."""
        await service.give_consent(request.state.voter, body.share)
        return Response(status_code=204)

    @router.delete("/me")
    async def forget(request: Request) -> Response:
        """Delete everything of mine, also from the copies of ended runs."""
        await service.forget(request.state.voter)
        response = Response(status_code=204)
        forget_voter(response, request)
        return response

    return router


def _judges(service: Service) -> APIRouter:
    async def require_mine(request: Request) -> None:
        await asyncio.to_thread(
            service.store.require_comparison, request.path_params["comparison_id"], request.state.voter
        )

    router = APIRouter(route_class=guarded(require_mine))

    @router.get("/comparisons/{comparison_id}")
    async def comparison(request: Request, comparison_id: str) -> Response:
        """A comparison as it stands."""
        return JSONResponse(comparison_json(await service.comparison(comparison_id, request.state.voter)))

    @router.post("/comparisons/{comparison_id}/vote")
    async def vote(
        request: Request,
        comparison_id: str,
        body: VoteBody,
        idempotency_key: Annotated[str | None, Header(max_length=200)] = None,
    ) -> Response:
        """Judge it: a ranking of all candidates, best group first, or a verdict. Tells who wrote what."""
        receipt = await service.vote(request.state.voter, comparison_id, body.record(), idempotency_key=idempotency_key)
        return JSONResponse(asdict(receipt), 201)

    return router


def _operators(service: Service, training: Training) -> APIRouter:
    router = APIRouter(route_class=guarded(require_operator))

    @router.post("/runs")
    async def trigger(who: _Who, body: Annotated[RunBody | None, Body()] = None) -> Response:
        """Start a run; 409 while one is on, or where there is nothing to learn from. Answers with `id` and `status`."""
        body = body or RunBody()
        run = await asyncio.to_thread(
            training.trigger, stages=body.stages, settings=body.settings, force=body.force, who=who
        )
        return JSONResponse({"id": run.id, "status": run.status}, 202)

    @router.get("/runs")
    async def runs(
        limit: Annotated[int | None, Query(ge=1, le=100_000, description="So many; all where nothing is said.")] = None,
    ) -> Response:
        """Runs, newest first: one that is on is the first."""
        return JSONResponse([run_json(run) for run in await service.runs(limit)])

    @router.get("/runs/{run_id}")
    async def run(run_id: _PathNumber) -> Response:
        """One run."""
        return JSONResponse(run_json(await service.run(run_id)))

    @router.post("/runs/{run_id}/cancel")
    async def cancel(run_id: _PathNumber, who: _Who) -> Response:
        """End a run."""
        return JSONResponse(run_json(await asyncio.to_thread(training.cancel, run_id, who=who)))

    @router.get("/runs/{run_id}/log")
    async def run_log(run_id: _PathNumber, tail: Annotated[int, Query(ge=1, le=10_000)] = 200) -> Response:
        """The last lines of what a run said, as text."""
        return PlainTextResponse(await service.run_log(run_id, tail))

    @router.get("/settings")
    async def settings() -> Response:
        """Every setting of a run: its default, its bounds and what it does."""
        return JSONResponse([plain(asdict(setting)) for setting in await asyncio.to_thread(training.settings)])

    @router.get("/schedule")
    async def schedule_() -> Response:
        """When runs start by themselves, and what becomes of a version that passed."""
        found = await asyncio.to_thread(schedule.entries, service.store, service.settings)
        return JSONResponse([asdict(entry) for entry in found])

    @router.patch("/schedule")
    async def change_schedule(body: ScheduleBody, who: _Who) -> Response:
        """Change some of it, all or nothing; answers with all of it."""
        told = body.model_dump(exclude_unset=True)
        changes = {name: "none" if value is None else str(value) for name, value in told.items()}
        await asyncio.to_thread(lambda: schedule.change(service.store, service.settings, changes, who=who))
        return await schedule_()

    @router.get("/board")
    async def board() -> Response:
        """Is it getting better, and can it be trusted? Figures from blind votes."""
        return JSONResponse(plain(asdict(await service.board())))

    @router.get("/votes")
    async def votes(
        voter: _Voter = None,
        asked_by: Annotated[_VoterNumber | None, Query(description="Whose prompt it was, likewise.")] = None,
        version: Annotated[_Number | None, Query(description="One that wrote an answer.")] = None,
        verdict: Annotated[
            Literal["ranking", "tie", "both_bad", "skip"] | None,
            Query(description="Skips that nobody cast, because people typed on, are found by `skip` alone."),
        ] = None,
        evidence: Annotated[bool | None, Query(description="`true`: only blind ones; `false`: only others.")] = None,
        text: _Words = "",
        since: _Since = None,
        until: _Until = None,
        left_out: _LeftOut = False,
        before: _Number | None = None,
    ) -> Response:
        """Standing votes, newest first: `votes`, and `before`, which asks for the next page."""
        search = Search(voter, version, verdict, evidence, text, since, until, left_out, asked_by)
        found, following = await service.find_votes(search, before=before)
        return JSONResponse({"votes": found, "before": following})

    @router.get("/demonstrations")
    async def demonstrations(
        voter: _Voter = None,
        text: _Words = "",
        since: _Since = None,
        until: _Until = None,
        left_out: _LeftOut = False,
        before: _Number | None = None,
    ) -> Response:
        """`demonstrations`, newest first, and `before`, which asks for the next page."""
        search = Search(voter=voter, text=text, since=since, until=until, left_out=left_out)
        found, following = await service.find_demonstrations(search, before=before)
        return JSONResponse({"demonstrations": found, "before": following})

    @router.get("/exclusions")
    async def exclusions() -> Response:
        """Votes and voters that are flagged or excluded."""
        found = await asyncio.to_thread(service.store.exclusions)
        return JSONResponse([plain(asdict(exclusion)) for exclusion in found])

    @router.post("/exclusions")
    async def leave_out(body: ExclusionBody, who: _Who) -> Response:
        """Flag or exclude a vote, or all that a voter gave, with a reason."""
        made = await service.leave_out(voter=body.voter, vote=body.vote, kind=body.kind, reason=body.reason, who=who)
        return JSONResponse(plain(asdict(made)), 201)

    @router.delete("/exclusions/{exclusion_id}")
    async def lift(exclusion_id: str, who: _Who) -> Response:
        """Let it count again."""
        await service.lift(exclusion_id, who=who)
        return Response(status_code=204)

    @router.get("/log")
    async def deeds(limit: Annotated[int, Query(ge=1, le=100_000)] = 200) -> Response:
        """Who did what, newest first."""
        return JSONResponse([plain(asdict(deed)) for deed in await asyncio.to_thread(service.store.deeds, limit)])

    @router.put("/versions/{number}/note")
    async def note(number: _PathNumber, body: VersionNoteBody, who: _Who) -> Response:
        """Write something beside a version; an empty note takes it away."""
        await service.note_version(number, body.note, who=who)
        return Response(status_code=204)

    @router.get("/versions/{number}/adapter")
    async def adapter(number: _PathNumber, who: _Who) -> Response:
        """A version as a zip file: PEFT's files, the manifest and a card."""
        headers = {"Content-Disposition": f'attachment; filename="hustings-v{number}.zip"'}
        archive = await service.adapter(number)
        await service.log_deed(who, f"downloaded version {number}")
        return Response(archive, 200, headers, "application/zip")

    @router.get("/versions")
    async def versions() -> Response:
        """`serving`, and all `versions`, each with how many `excluded_votes` it learned from."""
        touched = await asyncio.to_thread(service.store.touched)
        found = await service.versions()
        return JSONResponse(
            {
                "serving": next(v.number for v in found if v.status == "serving"),
                "versions": [{**version_json(v), "excluded_votes": touched.get(v.number, 0)} for v in found],
            }
        )

    @router.post("/versions/{number}/promote")
    async def promote(number: _PathNumber, who: _Who, body: Annotated[SwitchBody | None, Body()] = None) -> Response:
        """Make a version serve from the next answer on. Answers with `serving`."""
        why = (body or SwitchBody()).why
        return JSONResponse({"serving": await service.promote(number, who=who, why=why)})

    @router.post("/rollback")
    async def rollback(who: _Who, body: Annotated[SwitchBody | None, Body()] = None) -> Response:
        """Return to the version that served before. Answers with `serving`."""
        why = (body or SwitchBody()).why
        return JSONResponse({"serving": await service.rollback(who=who, why=why)})

    @router.get("/export")
    async def export(who: _Who, format: Format, style: Style = "conversational") -> Response:
        """The record as JSON lines; in the style `plain` prompts and answers are texts, not lists of messages."""
        lines = service.export(format, style)
        await service.log_deed(who, f"exported {format}")
        headers = {"Content-Disposition": f'attachment; filename="hustings-{format}.jsonl"'}
        return StreamingResponse(lines, 200, headers, "application/x-ndjson")

    @router.post("/import")
    async def import_lines(
        request: Request, who: _Who, format: Format, reading: Annotated[Reading, Query(alias="as")] = "whole"
    ) -> Response:
        """Take in a dataset, whole or not at all; `as` says what its rows become. 409 for one that came in before."""
        counts = await service.import_lines(await request.body(), format, reading, who=who)
        return JSONResponse(asdict(counts), 201)

    return router


def _sessions(service: Service, secrets: Secrets) -> APIRouter:
    router = APIRouter()

    @router.post("/login")
    async def login(request: Request, body: LoginBody) -> Response:
        """A session for the operator pages."""
        if not await is_let_in(service, secrets, body.token, "operator"):
            raise Unauthorized("this is not the operator token; the server printed it when it first started")
        response = JSONResponse({"operator": True})
        set_session(response, secrets, request)
        return response

    @router.post("/logout")
    async def logout(request: Request) -> Response:
        """End it."""
        if request.state.operator:
            with suppress(HustingsError):  # a full disk keeps no session open
                await service.log_deed(await door(request), "logged out")
        response = JSONResponse({"operator": False})
        end_session(response, request)
        return response

    return router


async def _comparison_events(live: LiveComparison) -> AsyncIterator[str]:
    """What may be seen of the answers, as it grows: an early vote stores no less, and nobody sees who is faster."""
    sent: dict[str, int] = {}  # candidate → characters
    recorded: set[str] = set()  # those whose end may be told
    async for event in events_with_pings(live):
        match event:
            case Start(comparison):
                sent, recorded = {}, set()
                yield sse(comparison_json(comparison), "start")
            case End(candidate_id):
                recorded.add(candidate_id)
            case Failure(error):
                yield sse(faults.error_body(error), "error")
            case None:
                yield ": waiting\n\n"
        for candidate_id, text, finish_reason in [(draft.id, draft.text, draft.finish_reason) for draft in live.shown]:
            if new := text[sent.get(candidate_id, 0) :]:
                sent[candidate_id] = len(text)
                yield sse({"candidate_id": candidate_id, "text": new}, "delta")
            if finish_reason is not None and candidate_id in recorded:
                recorded.remove(candidate_id)
                yield sse({"candidate_id": candidate_id, "finish_reason": finish_reason}, "end")


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """A comparison as its voter sees it: `id`, `status` (`open`, `voted` or `expired`), `messages`, `candidates` (each
    with `id`, `position`, `text` and `finish_reason`), `created` and `expires`.

    Who wrote what stays hidden until the vote: then `vote` is its id, and `revealed` has the version of each candidate.
    Whoever asked learns the `conversation_id`, to go on with it; whoever judges a shared prompt does not.
    """
    body: dict[str, Any] = {
        "id": comparison.id,
        "status": comparison.status,
        "messages": [{"role": m.role, "content": m.content} for m in comparison.messages],
        "candidates": [
            {"id": c.id, "position": c.position, "text": c.answer.text, "finish_reason": c.answer.finish_reason}
            for c in comparison.candidates
        ],
        "created": rfc3339(comparison.created),
        "expires": rfc3339(comparison.expires),
    }
    if comparison.own:
        body["conversation_id"] = comparison.conversation_id
    if comparison.vote is not None:
        body["vote"] = comparison.vote.id
        body["revealed"] = {c.id: c.answer.version for c in comparison.candidates}
    return body


def run_json(run: Run) -> dict[str, Any]:
    """A run as operators see it."""
    return {
        "id": run.id,
        "status": run.status,
        "trigger": run.trigger,
        "stages": list(run.stages),
        "stage": run.stage,
        "progress": run.progress,
        "eta_seconds": run.eta_seconds,
        "created": rfc3339(run.created),
        "started": rfc3339(run.started),
        "finished": rfc3339(run.finished),
        "version": run.version,
        "settings": plain(run.settings),
        "who": run.who,
        "votes": run.votes,
        "metrics": plain(run.metrics),
        "report": plain(run.report),
        "error": run.error,
    }


def version_json(version: Version) -> dict[str, Any]:
    """A version: its number as `version`, `status`, the `run` that made it, its `parent`, `created`, an operator's
    `note`, and `report`.
    """
    return {
        "version": version.number,
        "status": version.status,
        "run": version.run,
        "parent": version.parent,
        "created": rfc3339(version.created),
        "note": version.note,
        "report": plain(version.report),
    }


def rfc3339(time: datetime | None) -> str | None:
    """A time in UTC, as `2026-01-31T12:00:00.000Z`."""
    return None if time is None else time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """What JSON can hold: times as text, and numbers that are not finite as null."""
    match value:
        case dict():
            return {str(key): plain(entry) for key, entry in value.items()}
        case list() | tuple():
            return [plain(entry) for entry in value]
        case datetime():
            return rfc3339(value)
        case float() if not math.isfinite(value):
            return None
    return value
