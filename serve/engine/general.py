"""Any causal LM with full attention, by transformers' own forward: correct, and slower than a lean decoder."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import Cache

from serve.engine.decoder import check_ids
from serve.engine.lora_bank import LoraBank
from serve.engine.sampling import draw
from serve.engine.slots import KeyValues, PlainCaches
from serve.errors import ModelError
from serve.policy.base import Backbone


class GeneralDecoder(PlainCaches):
    """transformers' forward on a view of the backbone, whose linears are the bank's."""

    draw = staticmethod(draw)

    def __init__(self, backbone: Backbone, *, places: int, max_rank: int) -> None:
        self.context_length = _context_length(backbone)
        self._model = backbone.view()
        embedding: Any = self._model.get_input_embeddings()
        self._vocabulary = int(embedding.num_embeddings)
        self.bank = LoraBank(places=places, max_rank=max_rank, dtype=self._model.dtype, device=self._model.device)
        for name, module in list(self._model.named_modules()):
            if type(module) is nn.Linear:
                parent, _, leaf = name.rpartition(".")
                linear = self.bank.add({name: module.weight}, module.bias)
                setattr(self._model.get_submodule(parent), leaf, linear)

    def forward(self, token_ids: Tensor, cache: KeyValues) -> Tensor:
        """Token ids (rows, T) that follow what the cache holds → logits of the last one (rows, V)."""
        check_ids(token_ids, self._vocabulary)
        token_ids = token_ids.to(self._model.device)
        positions, mask = cache.begin(token_ids.shape[1], self._model.dtype, self._model.device)
        logits: Tensor = self._model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=mask.expand(len(token_ids), -1, -1, -1),
            past_key_values=_CacheView(cache),
            use_cache=True,
            logits_to_keep=1,
        ).logits
        cache.end()
        return logits[:, -1]

    def settle(self) -> bool:
        """Pack one more weight. The original stays: other views of the backbone read it."""
        return self.bank.settle(release=False)


class _CacheView(Cache):
    """Our cache as transformers' layers know one."""

    def __init__(self, cache: KeyValues) -> None:
        super().__init__(layers=[])
        self._cache = cache

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Called by each attention layer."""
        return self._cache.write(layer_idx, key_states, value_states)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the longest row."""
        return self._cache.length


def _context_length(backbone: Backbone) -> int:
    """Every layer must see the whole context: up to the window, sliding attention is the same as full attention."""
    config = backbone.model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise ModelError(
            f"{backbone.folder.name} has {', '.join(sorted(unknown))} layers; give --model one with full attention"
        )
    window = getattr(config, "sliding_window", None)
    slides = "sliding_attention" in kinds if kinds else window is not None
    return min(backbone.context_length, window) if slides and window else backbone.context_length
