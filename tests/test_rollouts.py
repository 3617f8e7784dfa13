"""Sampling for training: an answer counts only if the engine finished it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine import CandidateRequest, Finished, Output
from serve.errors import Unavailable
from serve.records import FinishReason, Sampling
from training.rollouts import QUEUED, sample


class Scripted:
    """A generation that ended as told."""

    def __init__(self, reason: FinishReason, error: str | None) -> None:
        self.reason, self.error = reason, error

    def result(self) -> tuple[Output, ...]:
        return (Output(0, (5, 2), (-0.5, -0.5), "a", self.reason),)

    def __iter__(self) -> Any:
        return iter([Finished(0, self.reason, self.error)])


def rollouts(reason: FinishReason, error: str | None = None) -> list[Any]:
    engine: Any = SimpleNamespace(submit=lambda *_: Scripted(reason, error))
    return sample(engine, 0, [[1], [2]], answers_per_prompt=1, sampling=Sampling(), seed=0)


def test_every_answer_has_a_seed_of_its_own_and_more_prompts_than_the_engine_takes_stay_in_order() -> None:
    asked: list[tuple[int, list[int]]] = []

    def submit(prompt: list[int], requests: list[CandidateRequest], sampling: Sampling) -> Any:
        asked.append((prompt[0], [request.seed for request in requests]))
        return SimpleNamespace(
            result=lambda: [Output(i, (r.seed,), (0.0,), "a", "stop") for i, r in enumerate(requests)]
        )

    engine: Any = SimpleNamespace(submit=submit)
    prompts = [[i] for i in range(QUEUED + 3)]
    found = sample(engine, 0, prompts, answers_per_prompt=2, sampling=Sampling(), seed=100)
    assert asked == [(i, [100 + 2 * i, 101 + 2 * i]) for i in range(QUEUED + 3)]
    assert [r.token_ids for r in found] == [(100 + i,) for i in range(2 * (QUEUED + 3))]
    assert [r.prompt_ids for r in found[::2]] == [(i,) for i in range(QUEUED + 3)]


def test_whole_answers_come_in_the_order_of_their_prompts() -> None:
    assert [r.prompt_ids for r in rollouts("stop")] == [(1,), (2,)]


@pytest.mark.parametrize(("reason", "error"), [("error", "out of memory"), ("cancelled", None)])
def test_an_answer_that_was_broken_off_is_not_learned_from(reason: FinishReason, error: str | None) -> None:
    with pytest.raises(Unavailable, match=error or reason):
        rollouts(reason, error)
