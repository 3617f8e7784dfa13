"""Stock clients of other projects, untouched, against the running server."""

from __future__ import annotations

import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError
from openai import OpenAI

from tests.browser.conftest import Site, last_comparison

pytestmark = pytest.mark.browser


def test_gradio_client_is_one_voter_who_compares_and_votes_by_name(site: Site) -> None:
    client = Client(site.url, verbose=False, analytics_enabled=False)
    assert "v0 says" in client.predict("Why is the sky blue?", api_name="/chat")
    asked = client.predict("And the sea?", api_name="/compare")
    best = asked["candidates"][1]["id"]
    told = client.predict(asked["id"], best, api_name="/vote")
    assert told["revealed"] == {candidate["id"]: 0 for candidate in asked["candidates"]}
    comparison = last_comparison(site.store)
    assert comparison.vote is not None and comparison.vote.judgement.ranking == (
        (best,),
        (asked["candidates"][0]["id"],),
    )
    with pytest.raises(AppError, match="you have voted on this"):
        client.predict(asked["id"], "tie", api_name="/vote")
    assert site.store.me(comparison.voter_id)["counts"]["conversations"] == 2, "one voter asked both"
    other = Client(site.url, verbose=False, analytics_enabled=False)
    with pytest.raises(AppError, match="no such comparison of yours"):
        other.predict(asked["id"], "tie", api_name="/vote")


def test_gradio_client_is_told_in_words_what_is_no_text(site: Site) -> None:
    client = Client(site.url, verbose=False, analytics_enabled=False)
    for verb in ("/chat", "/compare"):
        for said in (5, ["Hi"], {"text": "Hi"}):
            with pytest.raises(AppError, match="the message must be text"):
                client.predict(said, api_name=verb)
    with pytest.raises(AppError, match="the message is empty"):
        client.predict(" ", api_name="/compare")
    with pytest.raises(AppError, match="the comparison's id must be text"):
        client.predict({"id": "x"}, "tie", api_name="/vote")


def test_gradio_client_ranks_several_answers_and_naming_the_best_alone_is_refused(site: Site) -> None:
    client = Client(site.url, verbose=False, analytics_enabled=False)
    asked = client.predict(api_name="/next_to_judge")
    a, b, c, d = (candidate["id"] for candidate in asked["candidates"])
    for some in (a, "A>B", [[a], [b, c]], [a, b, c, d], f"{a}>{b}>{c}>{c}"):
        with pytest.raises(AppError, match="rank all of them, best first"):
            client.predict(asked["id"], some, api_name="/vote")
    client.predict(asked["id"], "B>A=C>D", api_name="/vote")
    comparison = last_comparison(site.store)
    assert comparison.id == asked["id"]
    assert comparison.vote is not None and comparison.vote.judgement.ranking == ((b,), (a, c), (d,))
    asked = client.predict(api_name="/next_to_judge")
    a, b, c, d = (candidate["id"] for candidate in asked["candidates"])
    client.predict(asked["id"], [[d, a], [b], [c]], api_name="/vote")
    comparison = last_comparison(site.store)
    assert comparison.vote is not None and comparison.vote.judgement.ranking == ((d, a), (b,), (c,))


def test_a_caller_who_gives_up_waiting_ends_the_answers(site: Site) -> None:
    site.engine.hold = 1
    with httpx.Client(base_url=site.url) as client:
        client.get("/config")  # where the cookie comes from
        with pytest.raises(httpx.ReadTimeout):
            client.post("/gradio_api/run/compare", json={"data": ["And the moon?"]}, timeout=0.5)
    assert site.engine.generations[-1].done.wait(10)


def test_the_stock_openai_client_streams(site: Site) -> None:
    client = OpenAI(base_url=site.url + "/v1", api_key="anything")
    stream = client.chat.completions.create(
        model="hustings", messages=[{"role": "user", "content": "Hello?"}], stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert len(pieces) > 2 and "Hello?" in "".join(pieces)
