"""What the engine asks of a model: tokens in, the next token's logits out, every row by its own version."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

if TYPE_CHECKING:
    from serve.engine.lora_bank import LoraBank
    from serve.engine.slots import KeyValues
    from serve.policy.base import Backbone


class Decoder(Protocol):
    """A model's forward pass with a LoRA bank in its linears. One thread calls it."""

    bank: LoraBank
    context_length: int
    """Tokens of prompt and answer together."""

    def forward(self, token_ids: Tensor, cache: KeyValues) -> Tensor:
        """Token ids (rows, T) that follow what the cache holds → logits of the last one (rows, V)."""

    def settle(self) -> bool:
        """Do one more piece of preparation that only makes it faster; False when there is none left."""


def open_decoder(backbone: Backbone, *, places: int, max_rank: int, general: bool = False) -> Decoder:
    """The lean decoder for the Llama family, else (or if `general`) transformers' own forward.

    Raises ModelError for a model that neither can decode.
    """
    from serve.engine.llama import LlamaDecoder, LlamaShape

    shape = None if general else LlamaShape.read(backbone.config)
    if shape is not None:
        return LlamaDecoder(shape, backbone, places=places, max_rank=max_rank)
    from serve.engine.general import GeneralDecoder

    return GeneralDecoder(backbone, places=places, max_rank=max_rank)
