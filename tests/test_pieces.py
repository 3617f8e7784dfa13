"""Each hand-written piece and its gradient against what autograd makes of the formula."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from training import pieces
from training.pieces import attend, cast, chosen_logprobs, linears, rms_norm


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agree(ours: Callable[..., Tensor], formula: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
    """The same values, and the same gradients by every input, for a random weighting of the outputs."""
    found = []
    for function in (ours, formula):
        leaves = [x.clone().requires_grad_() for x in inputs]
        result = function(*leaves)
        found.append((result, *torch.autograd.grad((result * some(*result.shape, seed=9)).sum(), leaves)))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3])
def test_linears_with_lora_are_their_formula(count: int) -> None:
    weights = [some(5 + i, 6, seed=i) for i in range(count)]
    lora = [t for i in range(count) for t in (some(2, 6, seed=20 + i), some(5 + i, 2, seed=40 + i))]

    def formula(x: Tensor, *lora: Tensor) -> Tensor:
        return torch.cat([x @ w.T + 0.5 * x @ a.T @ b.T for w, a, b in zip(weights, lora[::2], lora[1::2])], -1)  # noqa: B905

    agree(lambda x, *lora: torch.cat(linears(x, weights, lora, 0.5), -1), formula, [some(7, 6), *lora])


def test_linears_without_lora_are_the_frozen_weights() -> None:
    weights = [some(5, 6), some(4, 6)]
    agree(
        lambda x: torch.cat(linears(x, weights), -1), lambda x: torch.cat([x @ w.T for w in weights], -1), [some(7, 6)]
    )


def test_states_that_need_no_gradient_get_none_and_lora_still_does() -> None:
    a, b = some(2, 6).requires_grad_(), some(5, 2).requires_grad_()
    (found,) = linears(some(7, 6), [some(5, 6)], [a, b], 1.0)
    found.sum().backward()
    assert a.grad is not None and b.grad is not None


def test_the_norm_is_its_formula() -> None:
    weight = some(6, seed=3)
    agree(
        lambda x: rms_norm(x, weight, 1e-5),
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight,
        [some(7, 6)],
    )


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


@pytest.mark.parametrize("shared", [1, 3])
def test_attention_is_torchs_own_on_turned_queries_and_keys(shared: int) -> None:
    batch, length, heads, size = 2, 5, 2, 4
    angles = some(batch, length, 1, size // 2)
    allowed = torch.ones(length, length, dtype=torch.bool).tril()
    allowed[3, 1] = False
    bias = torch.zeros(1, 1, 1, length, length).masked_fill(~allowed, float("-inf"))

    def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k = turned(q, angles.cos(), angles.sin()), turned(k, angles.cos(), angles.sin())
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True).transpose(1, 2)

    q, k, v = (
        some(batch, length, heads * shared, size),
        some(batch, length, heads, size, seed=1),
        some(batch, length, heads, size, seed=2),
    )
    agree(lambda q, k, v: attend(q, k, v, angles.cos(), angles.sin(), bias), formula, [q, k, v])


@pytest.mark.parametrize("bias", [None, some(11, seed=5)])
@pytest.mark.parametrize("rows_at_once", [2, 64])
def test_chosen_logprobs_are_a_log_softmax_at_the_temperature(
    rows_at_once: int, bias: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "HEAD_ROWS", rows_at_once)
    head, ids = some(11, 6), torch.tensor([1, 2, 3, 10, 0])

    def formula(x: Tensor) -> Tensor:
        return torch.log_softmax(F.linear(x, head, bias) / 0.7, -1).gather(-1, ids[:, None]).squeeze(-1)

    agree(lambda x: chosen_logprobs(x, head, bias, ids, 0.7), formula, [some(5, 6)])


def test_no_tokens_have_no_logprobs() -> None:
    x = some(0, 6).requires_grad_()
    found = chosen_logprobs(x, some(11, 6), None, torch.zeros(0, dtype=torch.long), 1.0)
    found.sum().backward()
    assert found.shape == (0,)


def test_trained_weights_are_cast_and_their_gradients_cast_back() -> None:
    weight = some(3, 2).requires_grad_()
    (narrow,) = cast([weight], torch.bfloat16)
    assert narrow.dtype == torch.bfloat16
    (narrow * 2).sum().backward()
    assert weight.grad is not None
    assert weight.grad.dtype == torch.float32
    assert weight.grad.tolist() == [[2.0, 2.0]] * 3
