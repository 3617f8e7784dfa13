"""Which decoder computes a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serve.engine.decoder import Decoder
    from serve.policy.base import Backbone

KINDS = ("static", "native", "lean", "general")
"""From fast to universal: CUDA graphs, llama.c, the same in torch, transformers' own forward."""


def open_decoder(
    backbone: Backbone, *, places: int, max_rank: int, cache_tokens: int = 0, kind: str | None = None
) -> Decoder:
    """The fastest decoder that computes this model, or the one of `kind` if it does.

    `cache_tokens` of earlier prompts and answers are kept, where the decoder can.

    Raises ModelError for a model that none can decode.
    """
    from serve.engine.llama import LlamaDecoder, LlamaShape

    on_gpu = backbone.device.type == "cuda"
    kinds = KINDS[KINDS.index(kind or ("static" if on_gpu else "native")) :]
    shape = None if kinds[0] == "general" else LlamaShape.read(backbone.config)
    if shape is not None and "static" in kinds:
        from serve.engine.static import StaticDecoder

        return StaticDecoder(shape, backbone, places=places, max_rank=max_rank)
    if shape is not None and "native" in kinds and not shape.biased and not on_gpu:
        from serve.engine.native.library import load_library

        code = load_library(backbone.folder.cache)
        if code is not None:
            from serve.engine.native.decoder import NativeDecoder

            return NativeDecoder(code, shape, backbone, places=places, max_rank=max_rank, cache_tokens=cache_tokens)
    if shape is not None:
        return LlamaDecoder(shape, backbone, places=places, max_rank=max_rank)
    from serve.engine.general import GeneralDecoder

    return GeneralDecoder(backbone, places=places, max_rank=max_rank)
