"""The split backbone: layers below the boundary are frozen and shared by every role, those above carry LoRA.

    input_ids (B, L) → section(0, k) → states (B, L, D) → section(k, n), per role → final states → LM or scalar head

What the lower section computes is the same function of the tokens for policy, reference, reward model, value model and
every version, so training computes it once per token and keeps it (D floats a token at the boundary).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from serve.engine.llama import LlamaShape
from serve.errors import ModelError
from training.llama_section import LlamaSection

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def boundary(layer_count: int, adapted_layers: int | None) -> int:
    """Index of the first adapted layer; `None` adapts the top third."""
    adapted = max(1, round(layer_count / 3)) if adapted_layers is None else min(adapted_layers, layer_count)
    return layer_count - adapted


class Section(Protocol):
    """Layers of a decoder, as a function."""

    def __call__(self, inputs: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """Token ids (B, L) or states (B, L, D) → states (B, L, D).

        attention_mask is (B, L), 1 on real tokens, which come first; or (B, 1, L, L), True where a place (third axis)
        may look at another (fourth), and then positions (B, L) say where each token stands in its own text.
        """


def open_section(model: PreTrainedModel, start: int, stop: int) -> Section:
    """Layers `start` to `stop`. From layer 0 it takes token ids, else states; after the last it ends with the norm.

    Modules are shared with the model: gradients reach whatever LoRA they carry.
    """
    shape = LlamaShape.read(model.config.to_dict())
    if shape is not None and not shape.biased:
        return LlamaSection(shape, model, start, stop)
    return GeneralSection(model, start, stop)


class GeneralSection:
    """Layers `start` to `stop` of any decoder, run by the model's own forward."""

    def __init__(self, model: PreTrainedModel, start: int, stop: int) -> None:
        decoder: Any = model.base_model
        self._part = copy.copy(decoder)
        self._part._modules = dict(decoder._modules)
        self._part._modules["layers"] = nn.ModuleList(decoder.layers[start:stop])
        if stop < len(decoder.layers):
            self._part._modules["norm"] = nn.Identity()

    def __call__(self, inputs: Tensor, attention_mask: Tensor, positions: Tensor | None = None) -> Tensor:
        """As `Section` says."""
        entry: dict[str, Any] = {"inputs_embeds" if inputs.is_floating_point() else "input_ids": inputs}
        if positions is None:
            positions = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)
        output = self._part(attention_mask=attention_mask, position_ids=positions, use_cache=False, **entry)
        states: Tensor = output.last_hidden_state
        return states


@torch.no_grad()
def check_split(model: PreTrainedModel, cuts: Sequence[int]) -> None:
    """Run one short prompt whole and in sections from cut to cut, from 0 to the number of layers.

    Raises ModelError when the logits differ: some architectures scale what enters a section, or the logits, or choose
    a layer's kind by its place in the whole.
    """
    tokens = torch.arange(16)[None] % int(model.config.get_text_config().vocab_size)
    mask = torch.ones_like(tokens)
    states = tokens
    for start, stop in itertools.pairwise(cuts):
        states = GeneralSection(model, start, stop)(states, mask)
    split = model.get_output_embeddings()(states).float()
    whole = model(input_ids=tokens, attention_mask=mask, use_cache=False).logits.float()
    tolerance = torch.finfo(model.dtype).eps ** 0.5
    if not torch.allclose(split, whole, rtol=tolerance, atol=tolerance):
        raise ModelError(
            f"{model.config.model_type} models cannot be trained here: run in sections, the model gives other logits "
            f"than as a whole (by {(split - whole).abs().max():.2g}); give --model one of the Llama family"
        )
