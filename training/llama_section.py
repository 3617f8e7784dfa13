"""Some layers of a Llama model for training, in the pieces of pieces.py: half the time of the modules' own forward.

    h = x + O·attend(rope(Q·n₁(x)), rope(K·n₁(x)), V·n₁(x))        y = h + D·(silu(G·n₂(h)) ⊙ U·n₂(h))

Weights and LoRA stay where they are, in the modules of transformers and PEFT: here they are only read.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.llama import LlamaShape
from training.pieces import attend, cast, linears, rms_norm


@dataclass(frozen=True)
class _Linears:
    """Linears of one input: frozen weights, and the LoRA on them or none."""

    weights: list[Tensor]
    lora: list[nn.Parameter]
    """A₁ (r, K), B₁ (M₁, r), A₂, …"""
    scaling: float

    @classmethod
    def read(cls, *modules: Any) -> _Linears:
        """From the modules of transformers, as PEFT left them."""
        if not hasattr(modules[0], "base_layer"):
            return cls([m.weight for m in modules], [], 1.0)
        (name,) = modules[0].active_adapters
        lora = [p for m in modules for p in (m.lora_A[name].weight, m.lora_B[name].weight)]
        return cls([m.base_layer.weight for m in modules], lora, modules[0].scaling[name])


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    mlp_norm: Tensor
    qkv: _Linears
    out: _Linears
    gate_up: _Linears
    down: _Linears

    @classmethod
    def read(cls, layer: Any) -> _Layer:
        at, mlp = layer.self_attn, layer.mlp
        return cls(
            layer.input_layernorm.weight,
            layer.post_attention_layernorm.weight,
            _Linears.read(at.q_proj, at.k_proj, at.v_proj),
            _Linears.read(at.o_proj),
            _Linears.read(mlp.gate_proj, mlp.up_proj),
            _Linears.read(mlp.down_proj),
        )

    @property
    def linears(self) -> tuple[_Linears, ...]:
        return self.qkv, self.out, self.gate_up, self.down


class LlamaSection:
    """Layers `start` to `stop`: what `Section` computes, up to rounding."""

    def __init__(self, shape: LlamaShape, model: Any, start: int, stop: int) -> None:
        decoder = model.base_model
        self._shape = shape
        self._embed = decoder.embed_tokens
        self._layers = [_Layer.read(layer) for layer in decoder.layers[start:stop]]
        self._norm = decoder.norm.weight if stop == len(decoder.layers) else None
        self._frequencies = shape.frequencies

    def __call__(self, inputs: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """As `Section`; places without a token, which all come last, get states without a meaning."""
        x = inputs if inputs.is_floating_point() else self._embed(inputs)
        batch, length, size = x.shape
        if attention_mask.dim() == 2:  # padding comes last: whoever looks back only never sees it
            allowed = torch.ones(1, 1, 1, length, length, dtype=torch.bool).tril()
        else:
            allowed = attention_mask[:, :, None]
        bias = torch.zeros(allowed.shape).masked_fill_(~allowed, float("-inf"))
        if positions is None:
            positions = torch.arange(length)[None]
        angles = positions[..., None, None] * self._frequencies  # (B or 1, L, 1, head_dim / 2)
        cos, sin = angles.cos(), angles.sin()
        trained = iter(cast([p for layer in self._layers for part in layer.linears for p in part.lora], x.dtype))

        def apply(part: _Linears, inputs: Tensor) -> tuple[Tensor, ...]:
            lora = list(itertools.islice(trained, len(part.lora)))
            return linears(inputs, part.weights, lora, part.scaling)

        eps, per_head = self._shape.norm_eps, (batch, length, -1, self._shape.head_dim)
        # Sums over layers stay float32: in bfloat16 their rounding is a third of the error against float32 weights.
        kind, x = x.dtype, x.reshape(batch * length, size).float()
        for layer in self._layers:
            q, k, v = apply(layer.qkv, rms_norm(x, layer.attention_norm, eps))
            looked = attend(q.view(per_head), k.view(per_head), v.view(per_head), cos, sin, bias)
            x = x + apply(layer.out, looked.reshape(batch * length, -1))[0]
            gate, up = apply(layer.gate_up, rms_norm(x, layer.mlp_norm, eps))
            x = x + apply(layer.down, F.silu(gate) * up)[0]
        if self._norm is not None:
            x = rms_norm(x, self._norm, eps)
        return x.to(kind).view(batch, length, size)
