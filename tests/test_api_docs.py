"""docs/api.md is what the code says, and what it says of answers and bounds is so."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from docs.api import HEALTH, PAGE, page
from serve.feedback.store import Store
from serve.limits import MAX_BYTES
from serve.records import Run
from serve.web.api import comparison_json, routers, run_json, version_json
from serve.web.named import verbs
from serve.web.openai_api import create_router
from tests.fakes import Web

OPERATOR = {"Authorization": "Bearer letmein"}
ASK = {"messages": [{"role": "user", "content": "Why is the sea blue?"}]}


@pytest.fixture(scope="module")
def made() -> str:
    return page(routers(None, None, None), create_router(None), verbs(None))  # type: ignore[arg-type]


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    web = Web(tmp_path)
    with TestClient(web.app) as client:
        yield client
    web.close()


def test_the_page_is_made_from_the_code(made: str) -> None:
    assert PAGE.read_text(encoding="utf-8") == made, "stale: run python -m docs.api"


@pytest.mark.parametrize(
    "line",
    [
        "A body has at most 2 MiB, an imported dataset 64 MiB; what is larger gets 413",
        "- `Idempotency-Key` (header): string (≤ 200 characters).",
        "- `format` (query): `trl` / `hh` / `kto` / `sft` / `arena`, required.",
        "- `style` (query): `conversational` / `plain`, default `conversational`.",
        "- `as` (query): `whole` / `demonstrations` / `turns`, default `whole`.",
        "- `verdict` (query): `ranking` / `tie` / `both_bad` / `skip`.",
        "- `voter` (query): integer (≥ 0). A number, or `voter-3`.",
        "- `tail` (query): integer (≥ 1, ≤ 10,000), default `200`.",
        "- `reasons`: list of string (≤ 2,000 characters), at most 20.",
        "| `POST /v1/chat/completions` | voter | Answers without a vote, whole or as they grow, in OpenAI's shapes. |",
        "- `n`: integer. Answers, 1 to 6; 1 where nothing else is said.",
        "- `top_logprobs`: `0`. Those of other tokens are not told.",
        "- `revealed`: object of integer. Candidate id → version.",
        "- `rated`: list of Rated.",
        "- `messages`: list of MessageBody, at most 1,000, required. The last one is the user's.",
        "- `conversation_id`: string (≤ 100 characters).",
        "- `ranking`: list of list of string (≤ 100 characters), at most 6.",
        "`comparison_id`: string, `judgement`: string or list of list of string.",
        "| 409 | `already_voted` | A comparison takes one standing vote. |",
        "- `hustings_tokens_total`: Tokens generated.",
    ],
)
def test_it_tells_bounds_choices_and_fields(made: str, line: str) -> None:
    assert line in made


def test_answers_that_have_no_class_hold_what_is_said_of_them(client: TestClient) -> None:
    key = client.post("/api/comparisons", json=ASK).json()["id"]
    client.post(f"/api/comparisons/{key}/vote", json={"verdict": "tie"})
    versions = client.get("/api/versions", headers=OPERATOR).json()["versions"]
    for held, words in (
        (client.get(f"/api/comparisons/{key}").json(), inspect.getdoc(comparison_json)),
        (
            {name: told for name, told in versions[0].items() if name != "excluded_votes"},
            inspect.getdoc(version_json),
        ),
        (client.get("/health").json(), HEALTH),
    ):
        assert words is not None and [name for name in held if f"`{name}`" not in words] == []


@pytest.mark.parametrize(
    "body",
    [
        {**ASK, "answer": "x" * (MAX_BYTES + 1)},
        {"messages": [{"role": "user", "content": "x" * (MAX_BYTES + 1)}], "answer": "x"},
    ],
)
def test_a_demonstration_has_bounds_that_are_named(client: TestClient, body: dict[str, object]) -> None:
    refused = client.post("/api/demonstrations", json=body)
    assert refused.status_code == 422 and "200,001 bytes long, but 200,000 are allowed" in refused.text


@pytest.mark.parametrize("voter", ["voter-1", "1", 1])
def test_a_voter_is_named_by_number_or_pseudonym(client: TestClient, voter: str | int) -> None:
    key = client.post("/api/comparisons", json=ASK).json()["id"]
    client.post(f"/api/comparisons/{key}/vote", json={"verdict": "tie"})
    assert len(client.get("/api/votes", params={"voter": voter}, headers=OPERATOR).json()["votes"]) == 1
    made = client.post("/api/exclusions", json={"voter": voter, "reason": "a bot"}, headers=OPERATOR)
    assert made.json()["voter"] == "voter-1"


def test_a_run_is_told_whole(store: Store) -> None:
    told = run_json(store.create_run("votes", ("reward",), {}))
    assert set(told) == {each.name for each in fields(Run)}
