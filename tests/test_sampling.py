"""Drawing a token: in torch and in C the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from serve.engine import sampling as in_torch
from serve.engine.decoders import open_decoder
from serve.engine.native.decoder import NativeDecoder
from serve.policy.base import load_backbone, resolve_model
from serve.records import Sampling

LOGITS = torch.log(torch.tensor([0.5, 0.2, 0.2, 0.1]))
Draw = Callable[[Tensor, Sequence[Sampling], Sequence[float]], tuple[list[int], list[float]]]


@pytest.fixture(scope="module")
def in_c(tiny_model: Path) -> Draw:
    """The native decoder's."""
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"))
    decoder = open_decoder(backbone, places=3, max_rank=4, kind="native")
    assert isinstance(decoder, NativeDecoder)
    return decoder.draw


@pytest.fixture(params=["torch", "C"])
def draw(request: pytest.FixtureRequest, in_c: Draw) -> Draw:
    """Both, one after the other."""
    return in_torch.draw if request.param == "torch" else in_c


def _draw(draw: Draw, u: float, sampling: Sampling) -> int:
    (token,), _ = draw(LOGITS[None], [sampling], [u])
    return token


def test_a_uniform_number_finds_its_token_on_the_cumulative_distribution(draw: Draw) -> None:
    whole = Sampling(temperature=1.0)
    assert [_draw(draw, u, whole) for u in (0.0, 0.49, 0.51, 0.69, 0.71, 0.89, 0.91, 1 - 2**-53)] == [
        0,
        0,
        1,
        1,
        2,
        2,
        3,
        3,
    ]


def test_frequencies_follow_the_temperature(draw: Draw) -> None:
    n = 4000
    sampling = Sampling(temperature=0.5)
    tokens, _ = draw(LOGITS.repeat(n, 1), [sampling] * n, [(i + 0.5) / n for i in range(n)])
    weights = [p**2 for p in (0.5, 0.2, 0.2, 0.1)]
    counts = Counter(tokens)
    assert [counts[i] / n for i in range(4)] == [_close(w / sum(weights)) for w in weights]


class _close(float):  # noqa: N801  # reads as a value
    def __eq__(self, other: object) -> bool:
        return math.isclose(self, float(other), abs_tol=2e-3)  # type: ignore[arg-type]

    __hash__ = float.__hash__


def test_top_k_and_top_p_keep_the_likeliest_tokens_only(draw: Draw) -> None:
    grid = [i / 100 for i in range(100)]
    assert {_draw(draw, u, Sampling(temperature=1.0, top_k=1)) for u in grid} == {0}
    assert {_draw(draw, u, Sampling(temperature=1.0, top_p=0.4)) for u in grid} == {0}
    assert {_draw(draw, u, Sampling(temperature=1.0, top_p=0.51)) for u in grid} <= {0, 1, 2}
    assert len({_draw(draw, u, Sampling(temperature=1.0, top_p=0.51)) for u in grid}) == 2
    assert {_draw(draw, u, Sampling(temperature=1.0, top_p=0.9)) for u in grid} == {0, 1, 2}
    # Top-k first: of 0.5, 0.2, 0.2 the first is 0.56, so that p = 0.55 leaves it alone.
    assert {_draw(draw, u, Sampling(temperature=1.0, top_k=3, top_p=0.55)) for u in grid} == {0}


def test_each_row_is_drawn_its_own_way_and_its_logprob_is_before_filters(draw: Draw) -> None:
    sampling = [Sampling(temperature=0.0), Sampling(temperature=0.5, top_k=1), Sampling(temperature=1.0)]
    tokens, logprobs = draw(LOGITS.repeat(3, 1), sampling, [0.99, 0.99, 0.99])
    assert tokens == [0, 0, 3]
    expected = torch.tensor([0.5, 0.25 / (0.25 + 0.04 + 0.04 + 0.01), 0.1]).log()
    torch.testing.assert_close(torch.tensor(logprobs), expected)


def test_tokens_of_probability_zero_are_never_drawn(draw: Draw) -> None:
    logits = torch.tensor([[-math.inf, 0.0, -math.inf]])
    for u in (0.0, 0.5, 1 - 2**-53):
        assert draw(logits, [Sampling(temperature=1.0)], [u])[0] == [1]
        assert draw(logits, [Sampling(temperature=1.0, top_p=0.9)], [u])[0] == [1]


def test_nan_shows_in_the_logprob_of_its_row_only(draw: Draw) -> None:
    logits = torch.stack([LOGITS, torch.full((4,), math.nan)])
    _, logprobs = draw(logits, [Sampling(temperature=1.0)] * 2, [0.5, 0.5])
    assert [p != p for p in logprobs] == [False, True]


@pytest.mark.parametrize("vocabulary", [5, 16, 1000, 3001])
def test_torch_and_c_draw_the_same(in_c: Draw, vocabulary: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary)
    ways = [
        Sampling(temperature=t, top_k=k, top_p=p)
        for t in (0.0, 0.3, 1.0, 1.7)
        for k in (0, 1, 7, 5000)
        for p in (1.0, 0.95, 0.5, 0.01)
    ]
    for _ in range(5):
        logits = 3 * torch.randn(len(ways), vocabulary, generator=generator)
        uniforms = torch.rand(len(ways), generator=generator, dtype=torch.float64).tolist()
        theirs, ours = in_torch.draw(logits, ways, uniforms), in_c(logits, ways, uniforms)
        assert sum(a != b for a, b in zip(theirs[0], ours[0], strict=True)) <= 1  # a number on the very edge of two
        same = [i for i in range(len(ways)) if theirs[0][i] == ours[0][i]]
        torch.testing.assert_close(
            torch.tensor([ours[1][i] for i in same]), torch.tensor([theirs[1][i] for i in same]), rtol=1e-5, atol=1e-5
        )
