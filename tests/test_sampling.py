from __future__ import annotations

import math
from collections import Counter

import torch

from serve.engine.sampling import draw
from serve.records import Sampling

LOGITS = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1]))


def _draw(u: float, sampling: Sampling) -> int:
    return int(draw(LOGITS[None], [sampling], [u])[0])


def test_a_uniform_number_finds_its_token_on_the_cumulative_distribution() -> None:
    whole = Sampling(temperature=1.0)
    assert [_draw(u, whole) for u in (0.0, 0.49, 0.51, 0.69, 0.71, 0.89, 0.91, 1 - 2**-53)] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_frequencies_follow_the_temperature() -> None:
    n = 4000
    sampling = Sampling(temperature=0.5)
    tokens, _ = draw(LOGITS.expand(n, 4), [sampling] * n, [(i + 0.5) / n for i in range(n)])
    weights = [p**2 for p in (0.5, 0.2, 0.2, 0.1)]
    counts = Counter(tokens.tolist())
    assert [counts[i] / n for i in range(4)] == [_close(w / sum(weights)) for w in weights]


class _close(float):  # noqa: N801  # reads as a value
    def __eq__(self, other: object) -> bool:
        return math.isclose(self, float(other), abs_tol=2e-3)  # type: ignore[arg-type]

    __hash__ = float.__hash__


def test_top_k_and_top_p_keep_the_likeliest_tokens_only() -> None:
    grid = [i / 100 for i in range(100)]
    assert {_draw(u, Sampling(temperature=1.0, top_k=1)) for u in grid} == {0}
    assert {_draw(u, Sampling(temperature=1.0, top_p=0.4)) for u in grid} == {0}
    assert {_draw(u, Sampling(temperature=1.0, top_p=0.51)) for u in grid} <= {0, 1, 2}
    assert len({_draw(u, Sampling(temperature=1.0, top_p=0.51)) for u in grid}) == 2
    assert {_draw(u, Sampling(temperature=1.0, top_p=0.9)) for u in grid} == {0, 1, 2}
    # Top-k first: of 0.5, 0.2, 0.2 the first is 0.56, so that p = 0.55 leaves it alone.
    assert {_draw(u, Sampling(temperature=1.0, top_k=3, top_p=0.55)) for u in grid} == {0}


def test_each_row_is_drawn_its_own_way_and_its_logprob_is_before_filters() -> None:
    sampling = [Sampling(temperature=0.0), Sampling(temperature=0.5, top_k=1), Sampling(temperature=1.0)]
    tokens, logprobs = draw(LOGITS.expand(3, 4), sampling, [0.99, 0.99, 0.99])
    assert tokens.tolist() == [0, 0, 3]
    expected = torch.tensor([0.5, 0.25 / (0.25 + 0.04 + 0.04 + 0.01), 0.1]).log()
    torch.testing.assert_close(logprobs, expected)


def test_tokens_of_probability_zero_are_never_drawn() -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert int(draw(logits, [Sampling(temperature=1.0)], [u])[0]) == 1
        assert int(draw(logits, [Sampling(temperature=1.0, top_p=0.9)], [u])[0]) == 1


def test_nan_shows_in_the_logprob_of_its_row_only() -> None:
    logits = torch.stack([LOGITS, torch.full((4,), math.nan)])
    _, logprobs = draw(logits, [Sampling(temperature=1.0)] * 2, [0.5, 0.5])
    assert logprobs.isnan().tolist() == [False, True]
