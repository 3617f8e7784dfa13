"""The HTTP contract, call by call."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from serve.limits import MAX_MESSAGES, MAX_STOP
from serve.web.api import plain, routers
from serve.web.limits import BODY_BYTES, IMPORT_BYTES
from tests.fakes import FakeEngine, Web, listening, publish
from training.config import TrainingConfig

ASK = {"messages": [{"role": "user", "content": "Why is the sea blue?"}]}
OPERATOR = {"Authorization": "Bearer letmein"}


@pytest.fixture
def web(tmp_path: Path) -> Iterator[Web]:
    made = Web(tmp_path)
    yield made
    made.close()


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    """An application that many tests share, each with voters of its own."""
    made = Web(tmp_path_factory.mktemp("busy"))
    yield made
    made.close()


@pytest.fixture
def anyone(busy: Web) -> TestClient:
    return TestClient(busy.app)


@pytest.fixture
def voter(web: Web) -> Iterator[TestClient]:
    """A program with a cookie jar."""
    with TestClient(web.app, raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def other(web: Web) -> TestClient:
    """Somebody else."""
    return TestClient(web.app)


@pytest.fixture
def operator(web: Web) -> TestClient:
    return TestClient(web.app, headers=OPERATOR)


def code(response: Any, status: int) -> str:
    """The error's code, once its form has been checked."""
    assert response.status_code == status, response.text
    assert set(response.json()["error"]) >= {"code", "message"}
    assert response.json()["error"]["message"]
    return str(response.json()["error"]["code"])


def compared(client: TestClient, **more: Any) -> Any:
    response = client.post("/api/comparisons", json={**ASK, **more})
    assert response.status_code == 201, response.text
    return response.json()


def ranking(comparison: Any) -> dict[str, Any]:
    return {"ranking": [[candidate["id"]] for candidate in comparison["candidates"]]}


def rows(web: Web, table: str) -> int:
    with web.store.reading() as db:
        return int(db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# Health


def test_health_tells_version_and_model(anyone: TestClient) -> None:
    assert anyone.get("/health").json() == {"status": "ok", "version": 0, "model": "fake", "waiting": 0}


def test_health_is_503_until_the_model_is_there(web: Web, voter: TestClient) -> None:
    web.service._engine = None
    assert code(voter.get("/health"), 503) == "unavailable"
    assert code(voter.post("/api/comparisons", json=ASK), 503) == "unavailable"
    assert voter.get("/api/versions", headers=OPERATOR).json()["serving"] == 0


# Comparisons


def test_a_comparison_hides_versions_until_the_vote(anyone: TestClient) -> None:
    comparison = compared(anyone)
    assert [candidate["position"] for candidate in comparison["candidates"]] == [0, 1]
    for candidate in comparison["candidates"]:
        assert set(candidate) == {"id", "position", "text", "finish_reason"}
        assert candidate["text"]
        assert candidate["finish_reason"] == "stop"
    assert "revealed" not in comparison
    assert "version" not in json.dumps(comparison)

    vote = anyone.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
    assert vote.status_code == 201
    revealed = {candidate["id"]: 0 for candidate in comparison["candidates"]}
    assert vote.json()["revealed"] == revealed
    assert anyone.get(f"/api/comparisons/{comparison['id']}").json()["revealed"] == revealed


def test_the_talk_goes_on_in_its_conversation(anyone: TestClient) -> None:
    first = compared(anyone)
    anyone.post(f"/api/comparisons/{first['id']}/vote", json=ranking(first))
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": first["candidates"][0]["text"]},
        {"role": "user", "content": "And the sky?"},
    ]
    second = compared(anyone, messages=messages, conversation_id=first["conversation_id"])
    assert second["conversation_id"] == first["conversation_id"]


def test_k_answers_are_given_even_when_they_are_identical(anyone: TestClient) -> None:
    comparison = compared(anyone, k=4, temperature=0.0, max_tokens=1)
    assert [candidate["text"] for candidate in comparison["candidates"]] == ["v0 "] * 4
    assert {candidate["finish_reason"] for candidate in comparison["candidates"]} == {"length"}


def test_a_comparison_is_found_by_its_voter_alone(voter: TestClient, other: TestClient) -> None:
    comparison = compared(voter)
    mine = voter.get(f"/api/comparisons/{comparison['id']}").json()
    assert mine["conversation_id"] == comparison["conversation_id"]
    assert mine["candidates"] == comparison["candidates"]
    assert code(other.get(f"/api/comparisons/{comparison['id']}"), 404) == "not_found"
    assert code(voter.get("/api/comparisons/unknown"), 404) == "not_found"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "hi"},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "robot", "content": "hi"}]},
        {"messages": [{"role": "assistant", "content": "hi"}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {**ASK, "k": 1},
        {**ASK, "k": 99},
        {**ASK, "temperature": 3},
        {**ASK, "top_p": 0},
        {**ASK, "top_k": -1},
        {**ASK, "top_k": 2**40},
        {**ASK, "stop": [""]},
        {**ASK, "stop": "x" * (MAX_STOP + 1)},
        {**ASK, "conversation_id": "x" * 101},
        {"messages": ASK["messages"] * (MAX_MESSAGES + 1), "truncation": "auto"},
        {**ASK, "max_tokens": 0},
        {**ASK, "seed": -1},
        {**ASK, "seed": 2**70},
        {**ASK, "temprature": 1},
        {**ASK, "max_tokens": 10**9},
    ],
)
def test_a_prompt_that_cannot_be_used_is_refused(busy: Web, anyone: TestClient, body: Any) -> None:
    before = rows(busy, "voters")
    response = anyone.post("/api/comparisons", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert code(response, 422) in ("invalid_input", "prompt_too_long")
    assert rows(busy, "voters") == before


def test_sampling_as_asked_reaches_the_engine_and_is_no_evidence(web: Web, voter: TestClient) -> None:
    for body in ({"top_k": 5}, {"stop": "."}, {"stop": [".", "!"]}, {}):
        comparison = compared(voter, **body)
        voter.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
    asked = [(g.sampling.top_k, g.sampling.stop) for g in web.engine.generations]
    assert asked == [(5, ()), (0, (".",)), (0, (".", "!")), (0, ())]
    votes = voter.get("/api/me").json()["votes"]
    assert [vote["evidence"] for vote in votes] == [False, False, False, True]


def test_a_talk_that_is_too_long_is_answered_without_its_oldest_turns_if_asked(anyone: TestClient) -> None:
    messages = [
        {"role": "user", "content": "x" * 1000},
        {"role": "assistant", "content": "y" * 1000},
        *ASK["messages"],
    ]
    for body in ({}, {"truncation": "disabled"}):
        refused = anyone.post("/api/comparisons", json={"messages": messages, **body})
        assert code(refused, 422) == "prompt_too_long"
        assert '"truncation": "auto"' in refused.json()["error"]["message"]
    assert compared(anyone, messages=messages, truncation="auto")["messages"] == messages
    assert code(anyone.post("/api/comparisons", json={**ASK, "truncation": "some"}), 422) == "invalid_input"


def test_half_a_character_is_refused(anyone: TestClient) -> None:
    headers = {"Content-Type": "application/json"}
    body = json.dumps({**ASK, "conversation_id": "\ud800"})
    assert code(anyone.post("/api/comparisons", content=body, headers=headers), 422) == "invalid_input"
    body = json.dumps({"stages": ["\ud800"], "why": "\ud800"})
    assert code(anyone.post("/api/runs", content=body, headers=headers | OPERATOR), 422) == "invalid_input"


def test_an_unknown_conversation_is_not_found(anyone: TestClient) -> None:
    assert code(anyone.post("/api/comparisons", json={**ASK, "conversation_id": "x"}), 404) == "not_found"


def test_versions_are_for_operators(voter: TestClient, operator: TestClient) -> None:
    assert code(voter.post("/api/comparisons", json={**ASK, "versions": [0, 0]}), 403) == "forbidden"
    assert len(compared(operator, versions=[0, 0, 0])["candidates"]) == 3
    assert code(operator.post("/api/comparisons", json={**ASK, "versions": [0, 5]}), 404) == "not_found"


def test_an_engine_that_fails_is_an_error_and_not_an_empty_answer(web: Web, voter: TestClient) -> None:
    web.engine.fail_at = 2
    assert code(voter.post("/api/comparisons", json=ASK), 503) == "unavailable"
    web.engine.full = True
    response = voter.post("/api/comparisons", json=ASK)
    assert code(response, 503) == "unavailable"
    assert response.headers["retry-after"]


# Votes


@pytest.mark.parametrize(
    "judge",
    [
        lambda ids: {"ranking": [[ids[0]]]},
        lambda ids: {"ranking": [[ids[0]], [ids[0]]]},
        lambda ids: {"ranking": [[ids[0], ids[1]], ["unknown"]]},
        lambda ids: {"ranking": [[ids[0]], [ids[1]], []]},
        lambda ids: {"verdict": "great"},
        lambda ids: {"verdict": "tie", "ranking": [[ids[0]], [ids[1]]]},
        lambda ids: {},
        lambda ids: {"verdict": "tie", "strength": 6},
        lambda ids: {"verdict": "tie", "reasons": "because"},
        lambda ids: {"verdict": "tie", "reasons": ["\ud800"]},
    ],
)
def test_a_judgement_that_makes_no_sense_is_refused(anyone: TestClient, judge: Callable[[list[str]], Any]) -> None:
    comparison = compared(anyone)
    body = judge([candidate["id"] for candidate in comparison["candidates"]])
    response = anyone.post(
        f"/api/comparisons/{comparison['id']}/vote",
        content=json.dumps(body),
        headers={"Content-Type": "application/json"},
    )
    assert code(response, 422) == "invalid_input"
    assert anyone.get(f"/api/comparisons/{comparison['id']}").json()["status"] == "open"


def test_a_vote_on_anothers_comparison_is_not_found_even_with_a_bad_body(voter: TestClient, other: TestClient) -> None:
    comparison = compared(voter)
    address = f"/api/comparisons/{comparison['id']}/vote"
    assert code(other.post(address, json=ranking(comparison)), 404) == "not_found"
    assert code(other.post(address, content="{"), 404) == "not_found"
    assert code(voter.post(address, content="{"), 422) == "invalid_input"


def test_a_second_vote_is_refused_unless_it_is_the_same_request_again(anyone: TestClient) -> None:
    comparison = compared(anyone)
    address = f"/api/comparisons/{comparison['id']}/vote"
    key = {"Idempotency-Key": "k1"}
    once = anyone.post(address, json=ranking(comparison), headers=key)
    again = anyone.post(address, json=ranking(comparison), headers=key)
    assert (again.status_code, again.json()) == (201, once.json())
    assert code(anyone.post(address, json=ranking(comparison)), 409) == "already_voted"


def test_a_vote_after_24_hours_is_gone(web: Web, voter: TestClient) -> None:
    comparison = compared(voter)
    web.store.writing(lambda db: db.execute("UPDATE comparisons SET expires = '2020-01-01T00:00:00.000000Z'"))
    assert voter.get(f"/api/comparisons/{comparison['id']}").json()["status"] == "expired"
    assert code(voter.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison)), 410) == "expired"


def test_a_withdrawn_vote_may_be_given_again(voter: TestClient, other: TestClient) -> None:
    comparison = compared(voter)
    address = f"/api/comparisons/{comparison['id']}/vote"
    vote = voter.post(address, json={"verdict": "tie"}).json()["id"]
    assert code(other.delete(f"/api/votes/{vote}"), 404) == "not_found"
    assert voter.delete(f"/api/votes/{vote}").status_code == 204
    assert voter.post(address, json={**ranking(comparison), "strength": 5, "reasons": ["clear"]}).status_code == 201
    (standing,) = voter.get("/api/me").json()["votes"]
    assert (standing["evidence"], standing["strength"]) == (False, 5)


def test_strength_and_reasons_may_follow_a_vote(voter: TestClient, other: TestClient) -> None:
    comparison = compared(voter)
    vote = voter.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison)).json()["id"]
    noted = voter.patch(f"/api/votes/{vote}", json={"strength": 3})
    assert (noted.status_code, noted.json()) == (200, {"id": vote, "strength": 3, "reasons": []})
    assert voter.patch(f"/api/votes/{vote}", json={"reasons": ["clearer"]}).json()["strength"] == 3
    assert code(other.patch(f"/api/votes/{vote}", json={"strength": 3}), 404) == "not_found"
    assert code(voter.patch(f"/api/votes/{vote}", json={"strength": 9}), 422) == "invalid_input"
    assert code(voter.patch(f"/api/votes/{vote}", json={"strenght": 2}), 422) == "invalid_input"


def test_the_queue_shows_shared_prompts_of_others_and_not_which_talk_they_are_from(
    voter: TestClient, other: TestClient
) -> None:
    compared(voter)
    assert other.get("/api/queue/next").status_code == 204
    shared = compared(voter, share=True)
    assert voter.get("/api/queue/next").status_code == 204
    found = other.get("/api/queue/next")
    assert found.status_code == 200
    assert sorted(c["text"] for c in found.json()["candidates"]) == sorted(c["text"] for c in shared["candidates"])
    assert found.json()["messages"] == ASK["messages"]
    assert shared["conversation_id"] not in found.text
    assert shared["conversation_id"] not in other.get(f"/api/comparisons/{found.json()['id']}").text
    vote = other.post(f"/api/comparisons/{found.json()['id']}/vote", json=ranking(found.json()))
    assert vote.status_code == 201


def test_a_demonstration_is_kept(web: Web, voter: TestClient) -> None:
    response = voter.post("/api/demonstrations", json={**ASK, "answer": "Water scatters light."})
    assert response.status_code == 201
    assert response.json()["id"]
    assert web.store.demonstrations_count() == 1
    assert code(voter.post("/api/demonstrations", json={**ASK, "answer": " "}), 422) == "invalid_input"
    many = {"messages": ASK["messages"] * (MAX_MESSAGES + 1), "answer": "x"}
    assert code(voter.post("/api/demonstrations", json=many), 422) == "invalid_input"


def test_a_demonstration_is_taken_back_by_whoever_wrote_it(web: Web, voter: TestClient, other: TestClient) -> None:
    key = voter.post("/api/demonstrations", json={**ASK, "answer": "Water scatters light."}).json()["id"]
    assert code(other.delete(f"/api/demonstrations/{key}"), 404) == "not_found"
    assert web.store.demonstrations_count() == 1
    assert voter.delete(f"/api/demonstrations/{key}").status_code == 204
    assert voter.get("/api/me").json()["demonstrations"] == []
    assert code(voter.delete(f"/api/demonstrations/{key}"), 404) == "not_found"


def test_a_voter_is_forgotten_on_request(voter: TestClient) -> None:
    comparison = compared(voter)
    voter.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
    assert voter.get("/api/me").json()["counts"]["votes"] == 1
    before = voter.cookies["hustings_voter"]
    assert voter.delete("/api/me").status_code == 204
    assert voter.get("/api/me").json()["counts"]["votes"] == 0
    assert voter.cookies["hustings_voter"] != before


# Streams


def events_of(lines: Iterator[str]) -> Iterator[tuple[str, Any]]:
    """Parse server-sent events."""
    name = ""
    for line in lines:
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


STREAM = {"Accept": "text/event-stream"}


def test_a_streamed_comparison_says_start_then_deltas_then_ends(anyone: TestClient) -> None:
    with anyone.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        events = list(events_of(response.iter_lines()))
    (first, start), rest = events[0], events[1:]
    assert first == "start"
    assert [candidate["text"] for candidate in start["candidates"]] == ["", ""]
    stored = anyone.get(f"/api/comparisons/{start['id']}").json()
    for candidate in stored["candidates"]:
        text = "".join(e["text"] for name, e in rest if name == "delta" and e["candidate_id"] == candidate["id"])
        assert text == candidate["text"]
    ends = [e for name, e in rest if name == "end"]
    assert {e["candidate_id"]: e["finish_reason"] for e in ends} == {c["id"]: "stop" for c in stored["candidates"]}


def test_both_candidates_reach_the_client_before_either_is_complete(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address, httpx.Client(base_url=address, timeout=10) as client:
        with client.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response:
            begun: set[str] = set()
            for name, event in events_of(response.iter_lines()):
                if name == "delta":
                    begun.add(event["candidate_id"])
                if len(begun) == 2 and not web.engine._released.is_set():
                    assert not web.engine.generations[0].done.is_set()
                    web.engine.release()
        assert len(begun) == 2
    web.close()


def test_a_stream_shows_no_more_than_an_early_vote_stores(tmp_path: Path) -> None:
    """One answer has long tokens, and ends while the other goes on: neither is to be seen."""

    def pace(version: int, seed: int, prompt: str) -> list[str]:
        return ["wonderful "] * 2 if seed % 2 else ["ab "] * 9

    web = Web(tmp_path, FakeEngine(pace, hold=5))
    with (
        listening(web.app) as address,
        httpx.Client(base_url=address, timeout=10) as client,
        client.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response,
    ):
        events = events_of(response.iter_lines())
        start = next(events)[1]
        seen = {candidate["id"]: "" for candidate in start["candidates"]}
        while sorted(seen.values()) != ["ab " * 5, "wonderful "]:
            name, event = next(events)
            assert name == "delta"
            seen[event["candidate_id"]] += event["text"]
        assert client.post(f"/api/comparisons/{start['id']}/vote", json=ranking(start)).status_code == 201
        web.engine.release()
        ends = [event["candidate_id"] for name, event in events if name == "end"]
        assert sorted(ends) == sorted(seen)
    with web.store.reading() as db:
        assert dict(db.execute("SELECT id, shown_text FROM candidates").fetchall()) == seen
    web.close()


def test_a_client_that_leaves_its_stream_ends_the_generation(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address, httpx.Client(base_url=address, timeout=10) as client:
        with client.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response:
            events = events_of(response.iter_lines())
            start = next(events)[1]
            next(events)
        assert web.engine.generations[0].done.wait(5)
        while (now := client.get(f"/api/comparisons/{start['id']}").json())["candidates"][1]["finish_reason"] is None:
            time.sleep(0.01)
        assert [candidate["finish_reason"] for candidate in now["candidates"]] == ["cancelled", "cancelled"]
        assert client.get("/health").json()["waiting"] == 0
    web.close()


def test_a_client_that_gives_up_waiting_ends_the_generation(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/api/comparisons", json=ASK, timeout=0.3)
        assert web.engine.generations[0].done.wait(5)
    web.close()


@contextmanager
def voted_early(client: httpx.Client) -> Iterator[tuple[dict[str, Any], Iterator[tuple[str, Any]]]]:
    """A comparison that is still streaming and has its vote: its start, and the events that follow."""
    with client.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response:
        events = events_of(response.iter_lines())
        start = next(events)[1]
        next(events), next(events)
        assert client.post(f"/api/comparisons/{start['id']}/vote", json=ranking(start)).status_code == 201
        yield start, events


def test_an_early_vote_while_streaming_lets_the_winner_finish(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address, httpx.Client(base_url=address, timeout=10) as client:
        with voted_early(client) as (start, events):
            web.engine.release()
            ends = {e["candidate_id"]: e["finish_reason"] for name, e in events if name == "end"}
        winner, loser = (candidate["id"] for candidate in start["candidates"])
        assert ends == {winner: "stop", loser: "cancelled"}
    web.close()


def test_the_winner_of_an_early_vote_finishes_though_the_client_leaves(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address, httpx.Client(base_url=address, timeout=10) as client:
        with voted_early(client) as (start, events):
            deadline = time.monotonic() + 5
            while not any(name == "end" for name, _ in events) and time.monotonic() < deadline:
                pass  # the loser has stopped
        time.sleep(0.3)  # the server notices that the client left
        web.engine.release()
        assert web.engine.generations[0].done.wait(5)
        while None in (reasons := finish_reasons(client, start["id"])):
            time.sleep(0.01)
        assert reasons == ["stop", "cancelled"]
    web.close()


def finish_reasons(client: httpx.Client, comparison_id: str) -> list[str | None]:
    comparison = client.get(f"/api/comparisons/{comparison_id}").json()
    return [candidate["finish_reason"] for candidate in comparison["candidates"]]


def test_a_failure_in_a_stream_is_an_event(web: Web, voter: TestClient) -> None:
    web.engine.fail_at = 2
    with voter.stream("POST", "/api/comparisons", json=ASK, headers=STREAM) as response:
        events = list(events_of(response.iter_lines()))
    (error,) = {e["error"]["message"] for name, e in events if name == "error"}
    assert "scripted failure" in error
    assert {e["finish_reason"] for name, e in events if name == "end"} == {"error"}


# Operators


def operators_calls() -> list[tuple[str, str]]:
    """Method and path of each, as the application has them."""
    _, _, operators, _ = routers(None, None, None)  # type: ignore[arg-type]
    routes = [route for route in operators.routes if isinstance(route, APIRoute)]
    return [(method, f"/api{re.sub('{.*?}', '1', route.path)}") for route in routes for method in route.methods or ()]


OPERATOR_CALLS = [*operators_calls(), ("GET", "/metrics")]


@pytest.mark.parametrize(("method", "path"), OPERATOR_CALLS)
def test_operators_calls_are_refused_to_others_whatever_their_body(anyone: TestClient, method: str, path: str) -> None:
    assert code(anyone.request(method, path, content="{"), 401) == "unauthorized"
    assert code(anyone.request(method, path, headers={"Authorization": "Bearer wrong"}), 401) == "unauthorized"


def test_a_run_is_triggered_with_or_without_a_body(web: Web, operator: TestClient) -> None:
    body = {"stages": ["reward", "ppo"], "settings": {"ppo": {"updates": 2}}, "force": True}
    response = operator.post("/api/runs", json=body)
    assert response.status_code == 202
    assert response.json() == {"id": 1, "status": "queued"}
    assert web.training.asked[0] == {**body, "who": "operator"}
    busy = operator.post("/api/runs", json=body)
    assert code(busy, 409) == "run_active"
    assert busy.json()["error"]["run"] == 1
    assert operator.post("/api/runs/1/cancel").json()["status"] == "cancelled"
    nothing = operator.post("/api/runs")
    assert code(nothing, 409) == "nothing_to_learn"
    assert web.training.asked[-1] == {"stages": None, "settings": None, "force": False, "who": "operator"}


@pytest.mark.parametrize("body", [{"stages": ["dpo"]}, {"stages": "ppo"}, {"forced": True}, [1]])
def test_a_run_that_makes_no_sense_is_refused(anyone: TestClient, body: Any) -> None:
    assert code(anyone.post("/api/runs", json=body, headers=OPERATOR), 422) == "invalid_input"


def test_numbers_beyond_those_of_the_record_are_refused(operator: TestClient) -> None:
    huge = "9" * 30
    assert code(operator.get(f"/api/runs/{huge}"), 422) == "invalid_input"
    assert code(operator.post(f"/api/runs/{huge}/cancel"), 422) == "invalid_input"
    assert code(operator.post(f"/api/versions/{huge}/promote"), 422) == "invalid_input"
    assert code(operator.post("/api/comparisons", json={**ASK, "versions": [0, 2**70]}), 422) == "invalid_input"


def test_a_setting_too_large_for_a_number_is_refused(
    web: Web, operator: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web.training, "trigger", lambda **asked: TrainingConfig.parse(asked["settings"]))
    refused = operator.post("/api/runs", json={"settings": {"ppo": {"updates": 10**400}}})
    assert code(refused, 422) == "invalid_input"


def test_all_runs_are_listed_and_counted(web: Web, operator: TestClient) -> None:
    for number in range(1, 103):
        web.store.create_run("operator", ["ppo"], {})
        web.store.update_run(number, status="cancelled")
    assert len(operator.get("/api/runs").json()) == 102
    assert [run["id"] for run in operator.get("/api/runs", params={"limit": 2}).json()] == [102, 101]
    assert code(operator.get("/api/runs", params={"limit": 0}), 422) == "invalid_input"
    assert 'hustings_runs{status="cancelled"} 102.0' in operator.get("/metrics").text


def test_runs_are_listed_newest_first_with_all_that_is_promised(web: Web, operator: TestClient) -> None:
    operator.post("/api/runs", json={"force": True})
    web.store.update_run(1, status="rejected", report={"win_rate": float("nan")}, error=None)
    operator.post("/api/runs", json={"force": True})
    runs = operator.get("/api/runs").json()
    assert [run["id"] for run in runs] == [2, 1]
    promised = [
        "id",
        "status",
        "trigger",
        "stage",
        "progress",
        "started",
        "finished",
        "version",
        "metrics",
        "report",
        "error",
    ]
    assert set(promised) <= set(runs[0])
    assert operator.get("/api/runs/1").json() == runs[1]
    assert runs[1]["report"] == {"win_rate": None}
    assert runs[0]["created"].endswith("Z")
    assert code(operator.get("/api/runs/9"), 404) == "not_found"
    assert code(operator.get("/api/runs/nine"), 422) == "invalid_input"


def test_versions_are_promoted_and_rolled_back(web: Web, operator: TestClient, tmp_path: Path) -> None:
    publish(web.registry, tmp_path / "adapter")
    assert operator.post("/api/versions/1/promote").json() == {"serving": 1}
    assert operator.get("/health").json()["version"] == 1
    listed = operator.get("/api/versions").json()
    assert listed["serving"] == 1
    assert {version["version"]: version["status"] for version in listed["versions"]} == {0: "retired", 1: "serving"}
    kept = {"version", "status", "run", "parent", "created", "note", "report"}
    assert kept | {"excluded_votes"} == set(listed["versions"][0])
    assert operator.post("/api/rollback", json={"why": "too terse"}).json() == {"serving": 0}
    assert web.store.promotions()[0].why == "too terse"
    assert code(operator.post("/api/versions/7/promote"), 404) == "not_found"


def test_what_is_exported_can_be_imported(voter: TestClient, operator: TestClient) -> None:
    comparison = compared(voter)
    voter.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
    out = operator.get("/api/export", params={"format": "trl"})
    assert out.headers["content-type"].startswith("application/x-ndjson")
    (row,) = [json.loads(line) for line in out.text.splitlines()]
    assert row["chosen"][0]["content"] == comparison["candidates"][0]["text"]
    back = operator.post("/api/import", params={"format": "trl"}, content=out.content)
    assert back.status_code == 201
    assert back.json()["votes"] == 1
    shown = operator.post("/api/import", params={"format": "trl", "as": "demonstrations"}, content=out.content)
    assert {name: count for name, count in shown.json().items() if count} == {"demonstrations": 1}


def test_a_bad_line_is_named_and_nothing_is_imported(web: Web, operator: TestClient) -> None:
    good = json.dumps({"messages": [*ASK["messages"], {"role": "assistant", "content": "So."}]})
    response = operator.post("/api/import?format=sft", content=f"{good}\nnot json\n")
    assert code(response, 422) == "invalid_input"
    assert "line 2" in response.json()["error"]["message"]
    assert "line 2" in operator.post("/api/import?format=sft", content=good.encode() + b"\n\xff").text
    assert web.store.demonstrations_count() == 0


def test_an_upload_that_is_cut_off_imports_nothing_and_is_no_fault_of_the_server(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    web = Web(tmp_path)
    row = json.dumps({"messages": [*ASK["messages"], {"role": "assistant", "content": "So."}]}).encode() + b"\n"
    head = f"POST /api/import?format=sft HTTP/1.1\r\nHost: x\r\nContent-Length: {2 * len(row)}\r\n"
    with listening(web.app) as address:
        logging.getLogger("uvicorn.error").addHandler(caplog.handler)
        try:
            with socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2]))) as line:
                line.sendall(f"{head}Authorization: Bearer letmein\r\n\r\n".encode() + row)
            deadline = time.monotonic() + 10
            while 'hustings_http_responses_total{status="400"} 1.0' not in httpx.get(f"{address}/metrics").text:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            logging.getLogger("uvicorn.error").removeHandler(caplog.handler)
        assert web.store.demonstrations_count() == 0
    web.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_unknown_formats_are_refused(operator: TestClient) -> None:
    assert code(operator.get("/api/export?format=csv"), 422) == "invalid_input"
    assert code(operator.get("/api/export"), 422) == "invalid_input"
    assert code(operator.post("/api/import?format=csv", content="{}"), 422) == "invalid_input"
    assert code(operator.post("/api/import?format=sft&as=answers", content="{}"), 422) == "invalid_input"


def test_metrics_are_prometheus_text(voter: TestClient, operator: TestClient) -> None:
    compared(voter)
    text = operator.get("/metrics").text
    assert "hustings_ready 1.0" in text
    assert 'hustings_answers_total{finish_reason="stop"} 2.0' in text
    assert 'hustings_http_responses_total{status="201"} 1.0' in text
    voter.get("/health", headers={"Authorization": "Bearer wrong"})
    assert 'hustings_http_responses_total{status="401"} 1.0' in operator.get("/metrics").text
    assert "hustings_serving_version 0.0" in text


def test_prometheus_own_parser_reads_the_metrics(voter: TestClient, operator: TestClient) -> None:
    compared(voter)
    families = {family.name: family for family in text_string_to_metric_families(operator.get("/metrics").text)}
    assert all(family.documentation for family in families.values())
    answers = families["hustings_answers"]
    assert (answers.type, [(s.labels, s.value) for s in answers.samples][:1]) == (
        "counter",
        [({"finish_reason": "stop"}, 2.0)],
    )


def test_metrics_are_open_to_this_machine_unless_a_proxy_lends_its_address(web: Web) -> None:
    local = TestClient(web.app, client=("127.0.0.1", 5000))
    assert local.get("/metrics").status_code == 200
    assert local.get("/metrics", headers={"X-Forwarded-For": "8.8.8.8"}).status_code == 401
    assert TestClient(web.app, client=("10.0.0.7", 5000)).get("/metrics").status_code == 401


# Errors of the framework


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/nothing", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/nothing", 404),
        ("PUT", "/api/comparisons", 405),
        ("DELETE", "/api/runs", 405),
        ("POST", "/health", 405),
        ("GET", "/api/openapi.json", 404),
        ("GET", "/openapi.json", 404),
        ("GET", "/docs", 404),
    ],
)
def test_unknown_addresses_and_methods_answer_in_our_form(
    anyone: TestClient, method: str, path: str, status: int
) -> None:
    code(anyone.request(method, path), status)


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", ""])
def test_bodies_that_are_not_json_objects_are_refused(anyone: TestClient, content_type: str) -> None:
    for content in ("{", "[]", "null", "7", '"x"', "", "\xff"):
        response = anyone.post("/api/comparisons", content=content, headers={"Content-Type": content_type})
        assert code(response, 422) == "invalid_input"


def test_a_body_that_is_too_large_is_refused_but_imports_may_be_larger(voter: TestClient, operator: TestClient) -> None:
    large = "x" * (BODY_BYTES + 1)
    body = {"messages": [{"role": "user", "content": large}]}
    assert code(voter.post("/api/comparisons", json=body), 413) == "too_large"

    def piecewise() -> Iterator[bytes]:
        for _ in range(3):
            yield b" " * (BODY_BYTES // 2)

    chunked = voter.post("/api/comparisons", content=piecewise(), headers={"Content-Type": "application/json"})
    assert code(chunked, 413) == "too_large"
    assert "line 1" in operator.post("/api/import?format=sft", content=large).text
    assert BODY_BYTES < IMPORT_BYTES


def test_a_bug_is_a_500_that_tells_nothing_of_the_inside(
    web: Web, voter: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("secret inside")

    monkeypatch.setattr(web.store, "me", broken)
    response = voter.get("/api/me")
    assert code(response, 500) == "error"
    assert "secret" not in response.text


def test_many_requests_at_once_are_all_answered(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(delay=0.002))
    statuses: list[int] = []

    def ask(address: str) -> None:
        with httpx.Client(base_url=address, timeout=20) as client:
            comparison = client.post("/api/comparisons", json=ASK).json()
            vote = client.post(f"/api/comparisons/{comparison['id']}/vote", json=ranking(comparison))
            statuses.append(vote.status_code)

    with listening(web.app) as address:
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert statuses == [201] * 16
    assert web.store.standing_votes() == 16
    web.close()


def test_a_server_of_a_test_is_stopped_when_the_test_fails(web: Web) -> None:
    with pytest.raises(ZeroDivisionError), listening(web.app) as address:
        assert httpx.get(f"{address}/health").status_code == 200
        _ = 1 / 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{address}/health")


def test_what_json_cannot_hold_becomes_null() -> None:
    assert plain({"a": [float("inf"), 1.5], 3: (None, "x")}) == {"a": [None, 1.5], "3": [None, "x"]}
