"""Sampling for training: an answer counts only if the engine finished it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from serve.engine import Finished, Output
from serve.errors import Unavailable
from serve.records import FinishReason, Sampling
from training.rollouts import sample


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


def test_whole_answers_come_in_the_order_of_their_prompts() -> None:
    assert [r.prompt_ids for r in rollouts("stop")] == [(1,), (2,)]


@pytest.mark.parametrize(("reason", "error"), [("error", "out of memory"), ("cancelled", None)])
def test_an_answer_that_was_broken_off_is_not_learned_from(reason: FinishReason, error: str | None) -> None:
    with pytest.raises(Unavailable, match=error or reason):
        rollouts(reason, error)
