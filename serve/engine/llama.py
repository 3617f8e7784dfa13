"""A lean forward pass for models of the Llama family: RMSNorm, rotary positions, grouped-query attention, SwiGLU.

    h = x + O·attend(rope(Q·n₁(x)), rope(K·n₁(x)), V·n₁(x))        y = h + D·(silu(G·n₂(h)) ⊙ U·n₂(h))

It computes what transformers' LlamaForCausalLM does, with fewer and larger pieces: q/k/v are one linear, gate and up
another, nothing is built twice in a step, and the server need not import transformers' modelling code.
Llama: https://arxiv.org/abs/2302.13971; rotary positions: https://arxiv.org/abs/2104.09864.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from serve.engine.lora_bank import BankLinear, LoraBank
from serve.engine.sampling import draw
from serve.engine.slots import PlainCaches
from serve.errors import ModelError

if TYPE_CHECKING:
    from serve.engine.slots import KeyValues
    from serve.policy.base import Backbone, ModelFolder


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a model of the Llama family."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_length: int
    norm_eps: float
    rope_theta: float
    tied: bool
    """The LM head is the embedding."""
    biased: bool
    """Some linears have a bias."""

    @classmethod
    def read(cls, config: Mapping[str, Any]) -> LlamaShape | None:
        """From config.json, as transformers 4 and 5 write it. None for what is not computed here."""
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        if (
            config.get("model_type") != "llama"
            or config.get("hidden_act", "silu") != "silu"
            or rope.get("rope_type", rope.get("type", "default")) != "default"
            or config.get("quantization_config")
        ):
            return None
        heads = int(config["num_attention_heads"])
        return cls(
            layers=int(config["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_dim=int(config.get("head_dim") or config["hidden_size"] // heads),
            context_length=int(config["max_position_embeddings"]),
            norm_eps=float(config["rms_norm_eps"]),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10_000.0))),
            tied=bool(config.get("tie_word_embeddings", False)),
            biased=bool(config.get("attention_bias") or config.get("mlp_bias")),
        )

    @property
    def frequencies(self) -> Tensor:
        """Radians a position turns each pair of a head's numbers (head_dim / 2,)."""
        steps = torch.arange(0, self.head_dim, 2, dtype=torch.float32) / self.head_dim
        return 1.0 / self.rope_theta**steps

    def angles(self) -> Tensor:
        """Cosines and sines of every position (context, 2, head_dim / 2)."""
        angles = torch.arange(self.context_length, dtype=torch.float32)[:, None] * self.frequencies
        return torch.stack((angles.cos(), angles.sin()), dim=1).contiguous()


@dataclass(frozen=True)
class _Layer:
    attention_norm: Tensor
    qkv: BankLinear
    out: BankLinear
    mlp_norm: Tensor
    gate_up: BankLinear
    down: BankLinear


class LlamaDecoder(PlainCaches):
    """The lean forward pass over a backbone's weights, with the bank's linears."""

    draw = staticmethod(draw)

    def __init__(self, shape: LlamaShape, backbone: Backbone, *, places: int, max_rank: int) -> None:
        """Raises ModelError for weights that are broken or missing, or do not fit into memory."""
        backbone.require_memory(backbone.dtype)
        weights = Weights(backbone.weights(), backbone.folder, backbone.dtype, backbone.device)
        self.context_length = shape.context_length
        self.bank = LoraBank(places=places, max_rank=max_rank, dtype=backbone.dtype, device=backbone.device)
        self._shape = shape
        # A copy: the last tensor that still belongs to the mapped file would keep all of it in memory.
        self._embedding = weights["model.embed_tokens.weight"].clone()
        self._layers = [self._read_layer(weights, f"model.layers.{i}.") for i in range(shape.layers)]
        self._norm = weights["model.norm.weight"].clone()
        self._head = self.bank.add({"lm_head": self._embedding if shape.tied else weights["lm_head.weight"]})
        self._frequencies = shape.frequencies.to(backbone.device)

    def forward(self, token_ids: Tensor, cache: KeyValues) -> Tensor:
        """Token ids (rows, T) that follow what the cache holds → logits of the last one (rows, V)."""
        groups = self._shape.heads // self._shape.kv_heads
        positions, mask = cache.begin(token_ids.shape[1], self._embedding.dtype, self._embedding.device)
        angles = positions[..., None].float() * self._frequencies
        cos, sin = (f(angles).to(mask.dtype)[:, :, None] for f in (torch.cos, torch.sin))  # (rows, T, 1, head_dim / 2)
        mask = mask.repeat(1, 1, groups, 1)  # query heads of a group attend as if they were more tokens
        x = F.embedding(token_ids.to(self._embedding.device), self._embedding)
        for index, layer in enumerate(self._layers):
            x = x + self._attend(index, layer, self._normed(x, layer.attention_norm), cos, sin, mask, cache)
            gate, up = layer.gate_up.forward(self._normed(x, layer.mlp_norm)).chunk(2, dim=-1)
            x = x + layer.down.forward(F.silu(gate).mul_(up))
        cache.end()
        return self._head.forward(self._normed(x[:, -1:], self._norm))[:, 0]

    def settle(self) -> bool:
        """Pack one more weight, and let go of the original."""
        return self.bank.settle(release=True)

    def _attend(
        self, index: int, layer: _Layer, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, cache: KeyValues
    ) -> Tensor:
        """x (rows, T, D) → (rows, T, D)."""
        shape = self._shape
        rows, tokens, _ = x.shape
        groups = shape.heads // shape.kv_heads
        qkv = layer.qkv.forward(x).view(rows, tokens, -1, shape.head_dim)
        turned = _rotate(qkv[:, :, : shape.heads + shape.kv_heads], cos, sin)
        queries = turned[:, :, : shape.heads].view(rows, tokens, shape.kv_heads, groups, shape.head_dim)
        queries = queries.permute(0, 2, 3, 1, 4).reshape(rows, shape.kv_heads, groups * tokens, shape.head_dim)
        keys, values = cache.write(
            index, turned[:, :, shape.heads :].transpose(1, 2), qkv[:, :, -shape.kv_heads :].transpose(1, 2)
        )
        seen = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
        seen = seen.view(rows, shape.kv_heads, groups, tokens, shape.head_dim).permute(0, 3, 1, 2, 4)
        return layer.out.forward(seen.reshape(rows, tokens, -1))

    def _normed(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), weight, self._shape.norm_eps)

    def _read_layer(self, weights: Weights, prefix: str) -> _Layer:
        def linear(*names: str) -> BankLinear:
            parts = [prefix + name for name in names]
            biases = [weights.get(f"{part}.bias") for part in parts]
            bias = None
            if any(b is not None for b in biases):
                bias = torch.cat([weights[f"{part}.bias"] for part in parts])
            return self.bank.add({part: weights[f"{part}.weight"] for part in parts}, bias)

        return _Layer(
            weights[f"{prefix}input_layernorm.weight"].clone(),
            linear("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            linear("self_attn.o_proj"),
            weights[f"{prefix}post_attention_layernorm.weight"].clone(),
            linear("mlp.gate_proj", "mlp.up_proj"),
            linear("mlp.down_proj"),
        )


class Weights:
    """The backbone's tensors by name, in one type on one device; a missing one is named."""

    def __init__(
        self, tensors: Mapping[str, Tensor], folder: ModelFolder, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._tensors = tensors
        self._folder = folder
        self._dtype = dtype
        self._device = device

    def get(self, name: str) -> Tensor | None:
        tensor = self._tensors.get(name)
        return None if tensor is None else tensor.detach().to(self._device, self._dtype)

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.get(name)
        if tensor is None:
            raise ModelError(f"the model in {self._folder.path} has no tensor {name}; is the folder complete?")
        return tensor


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions: x (rows, T, heads, head_dim), its halves turned by each position's angles."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
