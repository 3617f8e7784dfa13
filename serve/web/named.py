"""What programs call by name through `gradio_client`: what people do on the pages, without the pictures.

    client = gradio_client.Client("http://localhost:7860")
    asked = client.predict("Why is the sky blue?", api_name="/compare")
    client.predict(asked["id"], asked["candidates"][0]["id"], api_name="/vote")
    asked = client.predict(api_name="/next_to_judge")
    client.predict(asked["id"], "B>A=C>D", api_name="/vote")

The client keeps the cookie of its first call, so it is one voter. `/api` has all of it, with streams. docs/api.md tells
each verb by its docstring.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import gradio as gr
from gradio.events import api as named_endpoint

from serve.errors import HustingsError, InvalidInput
from serve.limits import check_text
from serve.live import LiveAnswers, LiveComparison
from serve.records import Comparison, Judgement, Message
from serve.service import Service
from serve.web.api import comparison_json
from serve.web.streams import wait_or_cancel
from serve.web.theme import letter
from serve.web.visitor import voter_of


def register(service: Service) -> None:
    """Add the named endpoints to the Blocks that are open."""
    for verb in verbs(service):
        # By default one call of a verb waits for the one before, whoever makes it; the engine has a line of its own.
        named_endpoint(verb, api_name=verb.__name__, queue=False, concurrency_limit=None)


def verbs(service: Service) -> Sequence[Callable[..., Awaitable[Any]]]:
    """What can be called, by its name. Gradio hands on whatever JSON it was sent, so each looks at what came."""

    async def chat(message: str, request: gr.Request) -> str:
        """One answer of what serves, that nobody is asked about, as text."""
        with _words():
            live = await service.answer(voter_of(request), [_prompt(message)])
            await _written(live, request)
            return live.drafts[0].text

    async def compare(message: str, request: gr.Request) -> dict[str, Any]:
        """Two answers to a message, blind: a Comparison, with the `id` to vote on."""
        with _words():
            live = await service.compare(voter_of(request), [_prompt(message)])
            await _written(live, request)
            return comparison_json(live.comparison)

    async def vote(comparison_id: str, judgement: str | list[list[str]], request: gr.Request) -> dict[str, Any]:
        """Judge candidates. Answers who wrote what: a VoteReceipt.

        Of two: the better one's id or letter (A is the first). Of any number: a ranking of all, best first, such as
        "B>A=C>D", where = is a tie, or as groups of ids, [["…"], ["…", "…"], ["…"]]. Or `tie`, `both_bad`, `skip`.
        """
        with _words():
            voter = voter_of(request)
            comparison = await service.comparison(_text(comparison_id, "the comparison's id"), voter)
            return asdict(await service.vote(voter, comparison_id, judgement_of(judgement, comparison)))

    async def next_to_judge(request: gr.Request) -> dict[str, Any]:
        """What is next in the queue, two candidates or more: a Comparison, or an empty object when all is judged."""
        with _words():
            found = await service.next_to_judge(voter_of(request))
            if isinstance(found, LiveComparison):
                await found.wait()  # also for a caller who left: the same waits for them when they come back
                found = found.comparison
            return {} if found is None else comparison_json(found)

    return chat, compare, vote, next_to_judge


def _prompt(message: object) -> Message:
    return Message("user", _text(message, "the message"))


def _text(said: object, what: str) -> str:
    """Raises InvalidInput for what is no text that can be stored."""
    if not isinstance(said, str):
        raise InvalidInput(f"{what} must be text")
    check_text(said, what)
    return said


async def _written(live: LiveAnswers, request: gr.Request) -> None:
    """Wait until all is written. Raises what went wrong.

    A caller without a session came straight, not by Gradio's queue: leaving ends what is written. In the queue the
    request that asked is over by now, and Gradio tells nobody when the one that waits for the answer breaks off.
    """
    if request.session_hash is None and request.request is not None:
        await wait_or_cancel(live, request.request)
    else:
        await live.wait()
    if live.error:
        raise live.error


@contextmanager
def _words() -> Iterator[None]:
    """Errors in words that reach a caller of Gradio's."""
    try:
        yield
    except HustingsError as error:
        raise gr.Error(str(error)) from error


def judgement_of(said: Any, comparison: Comparison) -> Judgement:
    """What a caller of `/vote` means. Raises InvalidInput for what ranks not all candidates."""
    if said in ("tie", "both_bad", "skip"):
        return Judgement(verdict=said)
    ids = [candidate.id for candidate in comparison.candidates]
    known = {name: c.id for c in comparison.candidates for name in (letter(c.position), c.id)}
    groups = [group.split("=") for group in said.split(">")] if isinstance(said, str) else said
    if not isinstance(groups, list) or not all(isinstance(group, list) for group in groups):
        groups = []
    ranking = tuple(tuple(known.get(str(name).strip(), "") for name in group) for group in groups)
    named = [candidate for group in ranking for candidate in group]
    if len(ids) == 2 and len(named) == 1 and named[0]:
        ranking += (tuple(candidate for candidate in ids if candidate not in named),)
    elif sorted(named) != sorted(ids):
        raise InvalidInput(
            f"there are {len(ids)} answers: rank all of them, best first, such as "
            f'"{">".join(map(letter, range(len(ids))))}", where = is a tie, or as groups of ids, [["…"], ["…", "…"]]; '
            "or say tie, both_bad or skip"
        )
    return Judgement(ranking=ranking)
