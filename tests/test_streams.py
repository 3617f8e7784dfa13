"""A client that leaves, and an answer that takes too long, give the place back: over HTTP, on the real engine."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from serve.engine import CandidateRequest, Finished, Generation, Token
from serve.records import Message, Sampling
from serve.web.streams import event_stream, sse
from tests.fakes import FakeEngine, Web, listening

if TYPE_CHECKING:
    from serve.engine.local import LocalEngine

ASK = [Message("user", "Why is the sea blue?")]
LONG = 800
"""Tokens of an answer: 16 s at 20 ms a step."""
SOON = 3.0
"""Seconds in which a place must be free: many steps, for the machine may be busy, but far fewer than an answer has."""

BODY = {"messages": [{"role": "user", "content": "Why is the sea blue?"}], "max_tokens": LONG}
CALLS: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    "compare": ("/api/comparisons", BODY, {}),
    "compare streaming": ("/api/comparisons", BODY, {"Accept": "text/event-stream"}),
    "complete": ("/v1/chat/completions", {**BODY, "model": "hustings", "n": 2}, {}),
    "complete streaming": ("/v1/chat/completions", {**BODY, "model": "hustings", "n": 2, "stream": True}, {}),
}
"""Each asks for two answers, which take all the room there is."""
every_call = pytest.mark.parametrize("call", CALLS)


@pytest.fixture
def web(tmp_path: Path, slow_engine: LocalEngine) -> Iterator[Web]:
    made = Web(tmp_path)
    made.service.attach(slow_engine)
    yield made
    made.close()


def submit(engine: LocalEngine) -> Generation:
    """Somebody else's two answers."""
    return engine.submit(engine.encode(ASK), [CandidateRequest(0, 1), CandidateRequest(0, 2)], Sampling(LONG))


def soon(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it did not happen soon"
        time.sleep(0.005)


def leave(address: str, call: str, *, once: Callable[[], bool]) -> None:
    """Ask, and close the connection when `once` holds."""
    path, body, headers = CALLS[call]
    host, port = address.removeprefix("http://").split(":")
    payload = json.dumps(body).encode()
    head = {"Host": host, "Content-Type": "application/json", "Content-Length": str(len(payload)), **headers}
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + payload)
        soon(once)


def recorded(web: Web) -> list[tuple[str | None, int]]:
    """(finish reason, tokens) of every answer."""
    with web.store.reading() as db:
        rows = db.execute("SELECT finish_reason, coalesce(token_ids, '[]') AS ids FROM answers").fetchall()
    return [(row["finish_reason"], len(json.loads(row["ids"]))) for row in rows]


def begun(web: Web) -> bool:
    """Some words of every answer are there."""
    writing = list(web.service._writing)
    return bool(writing) and all(len(draft.deltas) > 3 for draft in writing[0].drafts)


def is_decoded_soon(generation: Generation) -> bool:
    """It gets a place, and then a token."""
    soon(lambda: generation.place == 0)
    return isinstance(next(iter(generation)), Token)


@every_call
def test_a_client_that_leaves_in_the_middle_of_its_answers_gives_their_place_back(
    web: Web, slow_engine: LocalEngine, call: str
) -> None:
    with listening(web.app) as address:
        leave(address, call, once=lambda: begun(web))
        assert is_decoded_soon(submit(slow_engine))
        soon(lambda: None not in [reason for reason, _ in recorded(web)])
        assert {reason for reason, _ in recorded(web)} == {"cancelled"}
        assert all(3 < tokens < LONG // 2 for _, tokens in recorded(web))


@every_call
def test_a_client_that_leaves_in_line_leaves_the_line(web: Web, slow_engine: LocalEngine, call: str) -> None:
    other = submit(slow_engine)
    assert is_decoded_soon(other)
    with listening(web.app) as address:
        leave(address, call, once=lambda: slow_engine.waiting == 1)
        soon(lambda: slow_engine.waiting == 0)
        soon(lambda: recorded(web) == [("cancelled", 0)] * 2)
        other.cancel()
        assert not [event for event in other if isinstance(event, Finished) and event.finish_reason != "cancelled"]


@every_call
@pytest.mark.parametrize("in_line", [False, True], ids=["answered", "in line"])
def test_an_answer_that_takes_too_long_is_stopped_and_its_client_is_told(
    web: Web, slow_engine: LocalEngine, call: str, in_line: bool
) -> None:
    web.service.settings = web.settings.model_copy(update={"answer_timeout": timedelta(seconds=0.6)})
    other = submit(slow_engine) if in_line else None
    path, body, headers = CALLS[call]
    with listening(web.app) as address:
        began = time.monotonic()
        response = httpx.post(address + path, json=body, headers=headers, timeout=10)
        assert time.monotonic() - began < SOON
        streamed = "streaming" in call
        assert response.status_code == (503 if not streamed else 201 if path.startswith("/api") else 200)
        assert '"code": "unavailable"' in response.text or '"code":"unavailable"' in response.text
        assert "had not ended after 0.6 s" in response.text
        assert "answer_timeout" in response.text
        if other is None:
            assert is_decoded_soon(submit(slow_engine))
        else:
            soon(lambda: slow_engine.waiting == 0)
            other.cancel()
        soon(lambda: None not in [reason for reason, _ in recorded(web)])
        assert {reason for reason, _ in recorded(web)} == {"cancelled"}
        assert all(tokens < LONG // 2 and (tokens > 0) == (not in_line) for _, tokens in recorded(web))


def test_a_client_that_left_before_its_stream_began_ends_the_generation(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=0))

    async def chunks() -> Any:
        yield "never asked for"

    async def gone() -> Any:
        return {"type": "http.disconnect"}

    async def send(_: Any) -> None:
        await asyncio.sleep(0)

    async def ask() -> str | None:
        live = await web.service.answer("anna", ASK)
        await event_stream(live, chunks())({"type": "http"}, gone, send)
        return (await asyncio.wait_for(live.wait(), 5))[0].finish_reason

    assert asyncio.run(ask()) == "cancelled"
    web.close()


def test_an_event_is_one_line_for_every_client_whatever_a_model_writes() -> None:
    event = sse({"text": "a\u2028b\x85c\x0bd\ne é"}, "delta")
    assert len(event.rstrip("\n").splitlines()) == 2  # its name and its data


def test_an_upload_that_breaks_off_imports_nothing(web: Web) -> None:
    lines = "".join(
        json.dumps({"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": "Hello."}]})
        + "\n"
        for asked in ("Hi", "Hey", "Morning")
    ).encode()
    with listening(web.app) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(
                f"POST /api/import?format=sft HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer letmein\r\n"
                f"Content-Length: {2 * len(lines)}\r\n\r\n".encode()
                + lines
            )
            time.sleep(0.3)  # it has arrived, and is whole lines
        answer = httpx.post(
            f"{address}/api/import?format=sft", content=lines, headers={"Authorization": "Bearer letmein"}
        )
        assert answer.json()["demonstrations"] == 3
    assert web.store.demonstrations_count() == 3
