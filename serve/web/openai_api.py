"""`/v1`: OpenAI's chat completions, so that every program that knows them can talk to Hustings.

`hustings` is what serves; operators may also name `hustings-v3`, and `hustings-v0` is the base.
"""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from serve.errors import NotFound, Unavailable
from serve.limits import MAX_MESSAGES, SamplingRequest, stop_texts
from serve.live import Delta, End, Failure, LiveAnswers
from serve.records import Message, Role
from serve.service import Service
from serve.truncation import Truncation
from serve.web import faults
from serve.web.streams import event_stream, events_with_pings, sse, wait_or_cancel

MODEL = "hustings"
_VERSION = re.compile(rf"{MODEL}-v(\d{{1,9}})")
_ROLES: dict[str, Role] = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


class TextPart(BaseModel):
    """A piece of a message; only text is understood."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    def record(self) -> Message:
        """As the record has it."""
        parts = self.content
        text = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return Message(_ROLES[self.role], text)


class StreamOptions(BaseModel):
    """Of a streamed completion."""

    include_usage: bool = False


class ChatBody(BaseModel):
    """The fields of OpenAI's request that mean something here; others are ignored, as other servers do."""

    model: str
    """`hustings` is what serves; operators may also name `hustings-v3`, and `hustings-v0` is the base."""
    messages: list[ChatMessage] = Field(max_length=MAX_MESSAGES)
    """The last one is the user's; all together have at most 200,000 bytes, but for what `truncation` leaves out."""
    n: int | None = None
    """Answers, 1 to 6; 1 where nothing else is said."""
    seed: int | None = None
    """0 to about 9.2e18."""
    stop: str | list[str] | None = None
    """Texts that end an answer, at most 4 of 200 characters."""
    stream: bool | None = None
    """Whether to send the answer as it grows, as OpenAI does."""
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    """1 or more, as far as prompt and answer fit the model. What is left out is the server's own."""
    max_completion_tokens: int | None = None
    """The same under its newer name, which wins."""
    temperature: float | None = None
    """0 (greedy) to 2."""
    top_p: float | None = None
    """Above 0, at most 1."""
    top_k: int | None = None
    """0 (all) to 1,000,000; not OpenAI's, but what other servers call it."""
    logprobs: bool | None = None
    """Whether to tell how likely each token of the answer was."""
    top_logprobs: Literal[0] | None = None
    """Those of other tokens are not told."""
    presence_penalty: Literal[0] | None = None
    frequency_penalty: Literal[0] | None = None
    tools: list[Any] | None = Field(default=None, max_length=0)
    """No model here calls any."""
    truncation: Truncation | None = None
    """Of OpenAI's Responses API: `auto` leaves out the oldest turns where the prompt is too long."""

    def sampling(self) -> SamplingRequest:
        """What is asked of the sampling."""
        limit = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        return SamplingRequest(limit, self.temperature, self.top_p, stop_texts(self.stop), self.top_k)


def create(service: Service) -> FastAPI:
    """The application to mount at `/v1`."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    faults.install(app)
    app.include_router(create_router(service))
    return app


def create_router(service: Service) -> APIRouter:
    """The calls."""
    router = APIRouter()

    @router.get("/models")
    async def models(request: Request) -> Response:
        """`hustings`, and for operators each version."""
        names = [MODEL]
        if request.state.operator:
            numbers = sorted(version.number for version in await service.versions())
            names += [f"{MODEL}-v{number}" for number in numbers]
        return JSONResponse({"object": "list", "data": [_model_json(name) for name in names]})

    @router.get("/models/{name}")
    async def model(request: Request, name: str) -> Response:
        """One of them."""
        version = _version_of(name)
        known = version is None or (request.state.operator and version in [v.number for v in await service.versions()])
        if not known:
            raise NotFound(f"there is no model {name!r}; GET /v1/models lists them")
        return JSONResponse(_model_json(name))

    @router.post("/chat/completions")
    async def complete(request: Request, body: ChatBody) -> Response:
        """Answers without a vote, whole or as they grow, in OpenAI's shapes."""
        live = await service.answer(
            request.state.voter,
            [message.record() for message in body.messages],
            version=_version_of(body.model),
            sampling=body.sampling(),
            seed=body.seed,
            n=1 if body.n is None else body.n,
            operator=request.state.operator,
            truncation=body.truncation or "disabled",
        )
        completion = _Completion(live, body)
        if body.stream:
            return event_stream(live, completion.chunks())
        await wait_or_cancel(live, request)
        if live.error is not None:
            raise live.error
        if any(draft.finish_reason == "cancelled" for draft in live.drafts):
            raise _stopping()
        return JSONResponse(completion.whole())

    return router


class _Completion:
    """One chat completion in OpenAI's shapes."""

    def __init__(self, live: LiveAnswers, body: ChatBody) -> None:
        self._live = live
        self._body = body
        self._head = {
            "id": f"chatcmpl-{live.drafts[0].id}",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": f"{MODEL}-v{live.drafts[0].request.version}",
        }

    def whole(self) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": draft.text},
                "logprobs": self._logprobs(_readable(draft.deltas)),
                "finish_reason": draft.finish_reason,
            }
            for index, draft in enumerate(self._live.drafts)
        ]
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def chunks(self) -> AsyncIterator[str]:
        """Server-sent events, as OpenAI streams them."""
        indices = {draft.id: index for index, draft in enumerate(self._live.drafts)}
        held: dict[str, list[Delta]] = {draft.id: [] for draft in self._live.drafts}
        for index in indices.values():
            yield self._chunk(index, {"role": "assistant", "content": ""})
        async for event in events_with_pings(self._live):
            match event:
                case Delta(id=answer_id, text=text):
                    # In the middle of a character nothing is readable yet; its tokens go with those that complete it.
                    held[answer_id].append(event)
                    if text:
                        logprobs = self._logprobs(held[answer_id])
                        held[answer_id] = []
                        yield self._chunk(indices[answer_id], {"content": text}, logprobs)
                case End(finish_reason="cancelled"):
                    yield sse(faults.error_body(_stopping()))
                    return
                case End(answer_id, finish_reason):
                    yield self._chunk(indices[answer_id], {}, finish_reason=finish_reason)
                case Failure(error):
                    yield sse(faults.error_body(error))
                    return
                case None:
                    yield ": waiting\n\n"
        if self._with_usage:
            yield sse({**self._head, "object": "chat.completion.chunk", "choices": [], "usage": self._usage()})
        yield sse("[DONE]")

    @property
    def _with_usage(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _chunk(self, index: int, delta: dict[str, str], logprobs: Any = None, finish_reason: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        chunk: dict[str, Any] = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._with_usage:
            chunk["usage"] = None
        return sse(chunk)

    def _logprobs(self, deltas: list[Delta]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        content = [
            {"token": d.text, "logprob": d.logprob, "bytes": list(d.text.encode()), "top_logprobs": []} for d in deltas
        ]
        return {"content": content, "refusal": None}

    def _usage(self) -> dict[str, int]:
        answer = sum(len(draft.deltas) for draft in self._live.drafts)
        prompt = self._live.prompt_tokens
        return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _readable(deltas: list[Delta]) -> list[Delta]:
    """Without the closing EOS and other tokens at the end that say nothing."""
    last = max((i for i, delta in enumerate(deltas) if delta.text), default=-1)
    return deltas[: last + 1]


def _stopping() -> Unavailable:
    """A client that left sees nothing, so whoever sees a cancelled answer did not cancel it."""
    return Unavailable("the server is stopping; try again when it is back")


def _version_of(model: str) -> int | None:
    """The version that a model's name means; None is whichever serves. Raises NotFound for other names."""
    if model == MODEL:
        return None
    match = _VERSION.fullmatch(model)
    if match is None:
        raise NotFound(f"there is no model {model!r}; ask for {MODEL!r}")
    return int(match[1])


def _model_json(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": MODEL}
