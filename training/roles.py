"""Four roles on one frozen backbone: policy and reference give logprobs, reward and value model give scalars.

    tokens ─ trunk ─► boundary states ─┬─ upper layers + policy LoRA ──────► LM head ► logprobs
      (once a token, kept)             └─ middle (frozen, kept) ► near states ─ top layers + scorer LoRA ► scalar head

Only the LoRAs and the scalar heads are trained. Each role is a view of the backbone (its own modules over shared
tensors), so no adapter is ever switched on or off.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serve.policy.adapters import WEIGHTS
from serve.policy.base import Backbone
from training.config import TrainingConfig
from training.parallel import in_parallel
from training.pieces import chosen_logprobs
from training.sequences import Sequences
from training.shared_prompts import SharedPrompts
from training.split import boundary, open_section


@dataclass(frozen=True)
class LoraShape:
    """Where a LoRA sits and how large it is."""

    first_layer: int
    rank: int
    alpha: int


def lora_shapes(backbone: Backbone, config: TrainingConfig) -> tuple[LoraShape, LoraShape]:
    """The policy's LoRA and the scorers', which begins no lower: where frozen layers end for each."""
    layers = backbone.layer_count
    first = boundary(layers, config.adapted_layers)
    near = max(first, layers - config.reward.layers)
    return LoraShape(first, config.rank, config.alpha), LoraShape(near, config.rank, config.alpha)


@dataclass
class FrozenStates:
    """What the frozen layers made of each row's tokens, kept without padding."""

    boundary: list[Tensor]
    """Each (Lᵢ, D): what enters the policy's adapted layers."""
    near: list[Tensor]
    """Each (Lᵢ, D): what enters the scorers' adapted layers."""

    def boundary_of(self, rows: Tensor) -> Tensor:
        """Boundary states of some rows, padded: (B, L, D)."""
        return padded(self.boundary, rows)

    def near_of(self, rows: Tensor) -> Tensor:
        """Near states of some rows, padded: (B, L, D)."""
        return padded(self.near, rows)


def padded(states: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Some of many states, each (Lᵢ, D), as one tensor padded on the right: (B, L, D)."""
    return nn.utils.rnn.pad_sequence([states[i] for i in rows], batch_first=True)


class FrozenLayers:
    """The part of the backbone that no role adapts: trunk (below the policy's LoRA) and middle (up to the scorers')."""

    def __init__(self, backbone: Backbone, policy_first: int, scorer_first: int) -> None:
        self.trunk = open_section(backbone.model, 0, policy_first)
        self._middle = open_section(backbone.model, policy_first, scorer_first) if policy_first < scorer_first else None

    @torch.no_grad()
    def states(self, batch: Sequences | SharedPrompts) -> tuple[Tensor, Tensor]:
        """At the boundary and near the top, of a micro-batch: each (B, L, D)."""
        mask, positions = batch.attention_mask, batch.positions
        boundary = self.trunk(batch.input_ids, mask, positions)
        return boundary, self._middle(boundary, mask, positions) if self._middle else boundary

    def __call__(self, sequences: Sequences, micro_batch_tokens: int) -> FrozenStates:
        """Run every row once, and keep all states."""
        empty = torch.empty(0)
        states = FrozenStates([empty] * len(sequences), [empty] * len(sequences))

        def run(rows: Tensor) -> None:
            batch = sequences.take(rows)
            boundary, near = self.states(batch)
            for place, (row, length) in enumerate(zip(rows.tolist(), batch.lengths.tolist(), strict=True)):
                states.boundary[row] = boundary[place, :length].clone()
                states.near[row] = near[place, :length].clone()

        in_parallel(run, sequences.micro_batches(micro_batch_tokens))
        return states


def are_finite(weights: Iterable[Tensor]) -> bool:
    """Whether all numbers are: training has not blown up."""
    return all(bool(torch.isfinite(weight).all()) for weight in weights)


class Policy:
    """A causal LM with LoRA on its upper layers: fresh, it is the base; loaded from an adapter, it is that version."""

    def __init__(self, backbone: Backbone, shape: LoraShape, *, seed: int, start: Path | None = None) -> None:
        self.backbone = backbone
        self.model = with_lora(backbone, shape, seed)
        if start is not None:
            load_lora_tensors(self.model, load_file(str(start / WEIGHTS)))
        inner = self.model.get_base_model()
        self._upper = open_section(inner, shape.first_layer, backbone.layer_count)
        self._head = inner.get_output_embeddings()
        self.scaling = shape.alpha / shape.rank

    def parameters(self) -> list[nn.Parameter]:
        """What is trained."""
        return [p for p in self.model.parameters() if p.requires_grad]

    def logprobs(self, boundary: Tensor, batch: Sequences, temperature: float) -> Tensor:
        """Log-probability of each answer token: states (B, L, D) → (B, T), zero past an answer's end.

        Only answer places reach the LM head.
        """
        states = batch.answer_states(self._upper(boundary, batch.attention_mask))[:, :-1]  # (B, T, D)
        chosen, tokens = states[batch.answer_mask], batch.answer_ids[batch.answer_mask]  # (N, D), (N,)
        flat = chosen_logprobs(chosen, self._head.weight, self._head.bias, tokens, temperature)
        return torch.zeros(batch.answer_mask.shape).masked_scatter(batch.answer_mask, flat)

    def next_token_loss(self, states: Tensor, attention_mask: Tensor, positions: Tensor, targets: Tensor) -> Tensor:
        """Mean negative log-likelihood, in nats, of targets (B, L) where they are ≥ 0; the rest as in Section."""
        final = self._upper(states, attention_mask, positions)
        wanted = targets >= 0
        return -chosen_logprobs(final[wanted], self._head.weight, self._head.bias, targets[wanted], 1.0).mean()

    @torch.no_grad()
    def all_logprobs(
        self, states: Sequence[Tensor], sequences: Sequences, temperature: float, micro_batch_tokens: int
    ) -> Tensor:
        """`logprobs` of every row (B, T), without gradients, in micro-batches."""
        result = torch.zeros(sequences.answer_mask.shape)

        def run(rows: Tensor) -> None:
            batch = sequences.take(rows)
            found = self.logprobs(padded(states, rows), batch, temperature)
            result[rows, : found.shape[1]] = found

        in_parallel(run, sequences.micro_batches(micro_batch_tokens))
        return result

    def tensors(self) -> dict[str, Tensor]:
        """The LoRA under PEFT's names, detached copies."""
        return lora_tensors(self.model)

    def load_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        load_lora_tensors(self.model, tensors)

    def save(self, folder: Path) -> None:
        """Write the adapter in PEFT's format."""
        save_lora(self.model, folder)


def with_lora(backbone: Backbone, shape: LoraShape, seed: int) -> Any:
    """A view of the backbone under PEFT, with fresh LoRA (B = 0: no change yet) on the linears from a layer upwards."""
    view: Any = backbone.view()
    layers = view.base_model.layers
    linears = sorted({name.split(".")[-1] for name, m in layers[0].named_modules() if isinstance(m, nn.Linear)})
    config = LoraConfig(
        r=shape.rank,
        lora_alpha=shape.alpha,
        lora_dropout=0.0,
        target_modules=linears,
        layers_to_transform=list(range(shape.first_layer, len(layers))),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(view, config)
    model.peft_config["default"].base_model_name_or_path = backbone.folder.name  # a name, not a path of this machine
    return model.eval()


def lora_tensors(model: Any) -> dict[str, Tensor]:
    """A PEFT model's LoRA under PEFT's names, detached copies."""
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: t.detach().clone().contiguous() for name, t in tensors.items()}


def load_lora_tensors(model: Any, tensors: dict[str, Tensor]) -> None:
    """Set a PEFT model's LoRA to what `lora_tensors` gave."""
    set_peft_model_state_dict(model, tensors)


def save_lora(model: Any, folder: Path) -> None:
    """Write a PEFT model's LoRA to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.peft_config["default"])
    config.inference_mode = True
    config.save_pretrained(str(folder))
    save_file(lora_tensors(model), str(folder / WEIGHTS))
