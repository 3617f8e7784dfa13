"""The pieces of a Llama layer with LoRA that training runs, each with its gradient worked out by hand.

What autograd would build from many small operations is here few large ones: nothing is cast back and forth, only what
the gradient needs is kept, and frozen weights get no gradient at all. Sums and exponentials are float32; everything
else is the model's own type. Each piece is what transformers and PEFT compute, up to rounding.
LoRA: Hu et al. 2021, arXiv 2106.09685. RMSNorm: Zhang & Sennrich 2019, arXiv 1910.07467. Rotary positions: Su et al.
2021, arXiv 2104.09864. Grouped queries: Ainslie et al. 2023, arXiv 2305.13245.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

HEAD_ROWS = 64
"""Rows whose logits stand at once: 64 of 49,152 are 12 MB."""


def cast(parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Trained weights in the type of the frozen ones; their gradients come back in their own."""
    return _Cast.apply(dtype, *parameters) if parameters else ()  # type: ignore[no-untyped-call]


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *parameters: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [p.dtype for p in parameters]
        return tuple(p.detach().to(dtype, copy=True) for p in parameters)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(g.to(dtype) for g, dtype in zip(gradients, ctx.dtypes, strict=True))


def linears(
    x: Tensor, weights: Sequence[Tensor], lora: Sequence[Tensor] = (), scaling: float = 1.0
) -> tuple[Tensor, ...]:
    """Several linears of the same input: x (N, K), frozen weights (Mᵢ, K) → xWᵢᵀ + scaling · (xAᵢᵀ)Bᵢᵀ, each (N, Mᵢ).

    `lora` holds A₁ (r, K), B₁ (M₁, r), A₂, B₂, …; none means the frozen weights alone.
    """
    return _Linears.apply(x, scaling, len(weights), *weights, *lora)  # type: ignore[no-untyped-call, no-any-return]


class _Linears(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scaling: float, count: int, *rest: Tensor) -> tuple[Tensor, ...]:
        weights, down, up = rest[:count], rest[count::2], rest[count + 1 :: 2]
        found = tuple(x @ weight.T for weight in weights)
        if not down:
            ctx.save_for_backward(*weights)
        else:
            together = torch.cat(down)  # (count · r, K)
            low = (x @ together.T).mul_(scaling)  # (N, count · r)
            for y, part, b in zip(found, low.chunk(count, -1), up, strict=True):
                y.addmm_(part, b.T)
            ctx.save_for_backward(*weights, x, together, low, *up)
        ctx.scaling, ctx.count = scaling, count
        return found

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        count = ctx.count
        weights, kept = ctx.saved_tensors[:count], ctx.saved_tensors[count:]
        wanted = ctx.needs_input_grad[0]
        into = None
        if wanted:
            into = gradients[0] @ weights[0]
            for g, weight in zip(gradients[1:], weights[1:], strict=True):
                into.addmm_(g, weight)
        if not kept:
            return into, None, None, *([None] * count)
        x, together, low, *up = kept
        steps = torch.empty_like(low)
        for g, part, b in zip(gradients, steps.chunk(count, -1), up, strict=True):
            torch.mm(g, b, out=part)
        steps.mul_(ctx.scaling)
        if into is not None:
            into.addmm_(steps, together)
        of_down = (steps.T @ x).chunk(count)
        of_up = [g.T @ part for g, part in zip(gradients, low.chunk(count, -1), strict=True)]
        pairs = [g for pair in zip(of_down, of_up, strict=True) for g in pair]
        return into, None, None, *([None] * count), *pairs


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + eps) · weight over the last axis: (N, D) and a frozen (D,) → (N, D)."""
    return _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call, no-any-return]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        wide = x.float()
        root: Tensor = (
            torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        )
        ctx.save_for_backward(x, weight, root)
        return (wide * root).mul_(weight).to(weight.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, root = ctx.saved_tensors
        normed = x.float() * root
        inner = gradient * weight.float()
        along = (inner * normed).mean(-1, keepdim=True)
        return inner.addcmul_(normed, along, value=-1).mul_(root).to(x.dtype), None, None


def attend(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
    """Attention with rotary positions: q (B, L, G·H, d), k and v (B, L, H, d) → (B, L, G·H, d).

    cos and sin (B, L, 1, d / 2) of each place's angles; bias (1 or B, 1, 1, L, L) is −∞ where a place must not look.
    G query heads share each of the H heads of keys and values. q and k in float32 are used up.
    """
    return _Attend.apply(q, k, v, cos, sin, bias)  # type: ignore[no-untyped-call, no-any-return]


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, bias: Tensor) -> Tensor:
        batch, length, heads, size = k.shape
        shared = q.shape[2] // heads
        scale = size**-0.5
        wide_q = _by_head(_rotated(q, cos, sin), heads)  # (B · H, G · L, d)
        wide_k = _by_head(_rotated(k, cos, sin), heads)  # (B · H, L, d)
        scores = torch.bmm(wide_q, wide_k.transpose(1, 2)).view(batch, heads, shared, length, length)
        looks = torch.softmax(scores.mul_(scale).add_(bias), -1).to(v.dtype).flatten(0, 1).flatten(1, 2)
        turned_q, turned_k, by_head = wide_q.to(q.dtype), wide_k.to(k.dtype), _by_head(v, heads)
        ctx.save_for_backward(turned_q, turned_k, by_head, looks, cos, sin)
        ctx.shape, ctx.scale = (batch, length, heads, size), scale
        return _by_place(torch.bmm(looks, by_head), ctx.shape)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, looks, cos, sin = ctx.saved_tensors
        given = _by_head(gradient, ctx.shape[2])
        of_v = torch.bmm(looks.transpose(1, 2), given)
        of_looks = torch.bmm(given, v.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_looks, looks, -1, looks.dtype)
        of_q, of_k = torch.bmm(of_scores, k).mul_(ctx.scale), torch.bmm(of_scores.transpose(1, 2), q).mul_(ctx.scale)
        back = [_rotated(_by_place(g, ctx.shape), cos, -sin).to(gradient.dtype) for g in (of_q, of_k)]
        return back[0], back[1], _by_place(of_v, ctx.shape), None, None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each head's first and second halves (…, d) turned by the angle of their place. A float32 `x` is used up."""
    turned = x.float()
    first, second = turned.chunk(2, -1)
    new = first * cos
    new.addcmul_(second, sin, value=-1)
    torch.mul(second, cos, out=second)
    return torch.cat((new, second.addcmul_(first, sin)), -1)


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(B, L, G · H, d) → (B · H, G · L, d)."""
    batch, length, _, size = x.shape
    return x.reshape(batch, length, heads, -1, size).permute(0, 2, 3, 1, 4).reshape(batch * heads, -1, size)


def _by_place(x: Tensor, shape: tuple[int, int, int, int]) -> Tensor:
    """(B · H, G · L, d) → (B, L, G · H, d); shape is (B, L, H, d)."""
    batch, length, heads, size = shape
    return x.view(batch, heads, -1, length, size).permute(0, 3, 1, 2, 4).reshape(batch, length, -1, size)


def chosen_logprobs(states: Tensor, head: Tensor, bias: Tensor | None, token_ids: Tensor, temperature: float) -> Tensor:
    """Log-probability of chosen tokens: states (N, D), the frozen LM head (V, D), token_ids (N,) → (N,), float32.

    Its gradient by each state is (head[token] − Σᵥ pᵥ head[v]) / temperature, which is worked out while the logits are
    there: they never stand for more than `HEAD_ROWS` rows at once, and nothing of their size is kept.
    """
    return _ChosenLogprobs.apply(states, head, bias, token_ids, temperature)  # type: ignore[no-untyped-call, no-any-return]


class _ChosenLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, states: Tensor, head: Tensor, bias: Tensor | None, token_ids: Tensor, temperature: float
    ) -> Tensor:
        found = torch.empty(len(states), dtype=torch.float32, device=states.device)
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        shape = (min(HEAD_ROWS, len(states)), len(head))
        narrow, wide = states.new_empty(shape), states.new_empty(shape, dtype=torch.float32)
        for start in range(0, len(states), HEAD_ROWS):
            rows = slice(start, start + HEAD_ROWS)
            tokens = token_ids[rows, None]
            logits = torch.mm(states[rows], head.T, out=narrow[: len(tokens)])
            if bias is not None:
                logits += bias
            weights = wide[: len(tokens)].copy_(logits).div_(temperature)
            weights.sub_(weights.amax(-1, keepdim=True))
            chosen = weights.gather(-1, tokens)
            total = weights.exp_().sum(-1, keepdim=True)
            found[rows] = (chosen - total.log()).squeeze(-1)
            if slopes is not None:
                expected = (logits.copy_(weights) @ head) / total  # Σᵥ pᵥ head[v]
                torch.sub(head[token_ids[rows]], expected, out=slopes[rows])
        if slopes is not None:
            ctx.save_for_backward(slopes.div_(temperature))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (slopes,) = ctx.saved_tensors
        return (slopes * gradient[:, None]).to(slopes.dtype), None, None, None, None
