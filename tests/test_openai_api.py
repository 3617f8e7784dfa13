"""`/v1` with the stock OpenAI client, over a real connection."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from serve.records import Message
from tests.fakes import FakeEngine, Web, listening, publish

ASK: list[Any] = [{"role": "user", "content": "Why is the sea blue?"}]


class Server:
    """An application that listens, and a client of it."""

    def __init__(self, web: Web, address: str) -> None:
        self.web = web
        self.address = address
        self.client = self.login("sk-anything")

    def login(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.address}/v1", api_key=key, max_retries=0, timeout=10)


def script(version: int, seed: int, prompt: str) -> list[str]:
    """Some tokens are in the middle of a character."""
    return [f"v{version} ", "", "é", f" {seed}"]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("openai")
    web = Web(folder, FakeEngine(script))
    publish(web.registry, folder / "adapter")
    with listening(web.app) as address:
        yield Server(web, address)
    web.close()


@pytest.fixture
def client(server: Server) -> openai.OpenAI:
    return server.client


@pytest.fixture
def operator(server: Server) -> openai.OpenAI:
    return server.login("letmein")


def test_the_stock_client_chats(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="hustings", messages=ASK, seed=3)
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.finish_reason) == ("assistant", "v0 é 3", "stop")
    assert choice.logprobs is None
    assert answer.object == "chat.completion"
    assert answer.model == "hustings"
    assert answer.usage is not None
    prompt_tokens = len(server.web.engine.encode([Message("user", "Why is the sea blue?")]))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, 5)
    assert answer.usage.total_tokens == prompt_tokens + 5


def test_it_streams_too(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(model="hustings", messages=ASK, seed=3, stream=True)
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "v0 é 3"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in chunks}) == 1
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_when_asked(client: openai.OpenAI) -> None:
    options: Any = {"include_usage": True}
    *chunks, last = client.chat.completions.create(model="hustings", messages=ASK, stream=True, stream_options=options)
    assert all(chunk.usage is None for chunk in chunks)
    assert last.choices == []
    assert last.usage is not None
    assert last.usage.completion_tokens == 5


def test_a_stream_is_sent_while_it_is_decoded(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address:
        client = Server(web, address).client
        with client.chat.completions.create(model="hustings", messages=ASK, stream=True) as stream:
            text = ""
            for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if text == "v0 ":
                    assert not web.engine.generations[0].done.is_set()
                    web.engine.release()
        assert text.startswith("v0 says ")
    web.close()


def test_a_client_that_leaves_its_stream_ends_the_generation(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address:
        client = Server(web, address).client
        with client.chat.completions.create(model="hustings", messages=ASK, stream=True) as stream:
            next(iter(stream))
        assert web.engine.generations[0].done.wait(5)
    web.close()


def test_logprobs_come_in_openais_shape(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="hustings", messages=ASK, seed=3, logprobs=True).choices[0].logprobs
    assert whole is not None
    assert whole.content is not None
    assert [entry.token for entry in whole.content] == ["v0 ", "", "é", " 3"]
    assert [entry.bytes for entry in whole.content][2] == [0xC3, 0xA9]
    assert all(entry.logprob == -0.5 and entry.top_logprobs == [] for entry in whole.content)
    streamed: list[str] = []
    for chunk in client.chat.completions.create(model="hustings", messages=ASK, seed=3, logprobs=True, stream=True):
        if chunk.choices[0].logprobs and chunk.choices[0].logprobs.content:
            streamed += [entry.token for entry in chunk.choices[0].logprobs.content]
    assert streamed == ["v0 ", "", "é", " 3"]


def test_n_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="hustings", messages=ASK, seed=3, n=3)
    assert [choice.message.content for choice in answer.choices] == ["v0 é 3", "v0 é 4", "v0 é 5"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(model="hustings", messages=ASK, seed=3, n=3, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["v0 é 3", "v0 é 4", "v0 é 5"]


def test_limits_reach_the_engine(server: Server, client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="hustings", messages=ASK, max_tokens=1, stop="\n", top_p=0.9, extra_body={"top_k": 5}
    )
    assert answer.choices[0].finish_reason == "length"
    client.chat.completions.create(
        model="hustings", messages=ASK, max_completion_tokens=7, max_tokens=1, stop=["a", "b"], temperature=0
    )
    first, second = (generation.sampling for generation in server.web.engine.generations[-2:])
    assert (first.max_tokens, first.stop, first.top_p, first.temperature, first.top_k) == (1, ("\n",), 0.9, 0.8, 5)
    assert (second.max_tokens, second.stop, second.temperature, second.top_k) == (7, ("a", "b"), 0.0, 0)


def test_a_talk_that_is_too_long_is_answered_without_its_oldest_turns_if_asked(
    server: Server, client: openai.OpenAI
) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 2000}, {"role": "assistant", "content": "y"}, *ASK]
    with pytest.raises(openai.UnprocessableEntityError, match="truncation"):
        client.chat.completions.create(model="hustings", messages=long)
    answer = client.chat.completions.create(model="hustings", messages=long, extra_body={"truncation": "auto"})
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.web.engine.encode([Message("user", ASK[0]["content"])]))


def test_messages_may_come_in_parts_and_from_developers(server: Server, client: openai.OpenAI) -> None:
    parts: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "One "}, {"type": "text", "text": "two"}]},
    ]
    answer = client.chat.completions.create(model="hustings", messages=parts)
    expected = [Message("system", "Be brief."), Message("user", "One two")]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(server.web.engine.encode(expected))


def test_a_chat_is_recorded_with_its_version(server: Server, client: openai.OpenAI) -> None:
    def versions() -> list[int]:
        with server.web.store.reading() as db:
            return [row[0] for row in db.execute("SELECT version FROM answers JOIN messages ON answer_id = answers.id")]

    before = len(versions())
    client.chat.completions.create(model="hustings", messages=ASK)
    assert versions()[before:] == [0]


def test_operators_name_versions_and_others_do_not(client: openai.OpenAI, operator: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["hustings"]
    assert [model.id for model in operator.models.list()] == ["hustings", "hustings-v0", "hustings-v1"]
    assert client.models.retrieve("hustings").id == "hustings"
    assert operator.models.retrieve("hustings-v1").id == "hustings-v1"
    answer = operator.chat.completions.create(model="hustings-v1", messages=ASK, seed=3)
    assert answer.choices[0].message.content == "v1 é 3"
    assert answer.system_fingerprint == "hustings-v1"
    with pytest.raises(openai.PermissionDeniedError):
        client.chat.completions.create(model="hustings-v1", messages=ASK)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("hustings-v1")
    for unknown in ("hustings-v9", "gpt-4", "hustings-v", "hustings-v1x"):
        with pytest.raises(openai.NotFoundError):
            operator.chat.completions.create(model=unknown, messages=ASK)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": []},
        {"messages": [{"role": "user", "content": ""}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"temperature": 9},
        {"n": 0},
        {"n": 100},
        {"max_tokens": 0},
        {"max_tokens": 10**9},
        {"presence_penalty": 1.5},
        {"top_logprobs": 3, "logprobs": True},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"stop": ["a", "b", "c", "d", "e"]},
        {"stop": "x" * 201},
        {"messages": ASK * 1001, "extra_body": {"truncation": "auto"}},
    ],
)
def test_what_cannot_be_done_is_refused_and_not_ignored(client: openai.OpenAI, body: dict[str, Any]) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as refused:
        client.chat.completions.create(**{"model": "hustings", "messages": ASK, **body})
    error: Any = refused.value.body
    assert error["code"] in ("invalid_input", "prompt_too_long")
    assert error["message"]


def test_what_clients_send_out_of_habit_is_fine(client: openai.OpenAI) -> None:
    client.chat.completions.create(
        model="hustings",
        messages=ASK,
        presence_penalty=0,
        frequency_penalty=0,
        n=1,
        user="me",
        logprobs=False,
        tools=[],
        response_format={"type": "text"},
    )


def test_one_client_is_one_voter(server: Server) -> None:
    def voters() -> int:
        with server.web.store.reading() as db:
            return int(db.execute("SELECT count(*) FROM voters").fetchone()[0])

    before, client = voters(), server.login("sk-somebody")
    for _ in range(3):
        client.chat.completions.create(model="hustings", messages=ASK)
    assert voters() == before + 1


def test_a_failing_engine_is_an_error_in_both_ways(tmp_path: Path) -> None:
    web = Web(tmp_path)
    web.engine.fail_at = 2
    with listening(web.app) as address:
        client = Server(web, address).client
        with pytest.raises(openai.InternalServerError, match="scripted failure"):
            client.chat.completions.create(model="hustings", messages=ASK)
        with pytest.raises(openai.APIError, match="scripted failure"):
            list(client.chat.completions.create(model="hustings", messages=ASK, stream=True))
        web.engine.full = True
        with pytest.raises(openai.InternalServerError) as full:
            client.chat.completions.create(model="hustings", messages=ASK)
        assert full.value.status_code == 503
    web.close()


def test_an_answer_that_the_server_cancels_is_an_error_and_not_a_short_answer(tmp_path: Path) -> None:
    web = Web(tmp_path, FakeEngine(hold=1))
    with listening(web.app) as address:
        client = Server(web, address).client
        with client.chat.completions.create(model="hustings", messages=ASK, stream=True) as stream:
            chunks = iter(stream)
            next(chunks)
            web.engine.generations[0].cancel()
            with pytest.raises(openai.APIError, match="stopping"):
                list(chunks)
    web.close()
