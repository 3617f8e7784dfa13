"""Reward model and value model: a scalar for every state of an answer, from frozen features and a LoRA at the top.

A few hundred votes do not teach a head on the last state alone (docs/log.md has the figures), so a scorer reads what
was said, at three depths, as well as where the text stands:

    state s_t ── last: the boundary's and the top's own state                         2·D
              ── mean: of the tokens so far, as embeddings, at the boundary, at the top   3·D
              ── the first and the latest few tokens, as embeddings                    2·D
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serve.policy.adapters import WEIGHTS
from serve.policy.base import Backbone
from training.parallel import in_parallel
from training.roles import FrozenLayers, FrozenStates, LoraShape, load_lora_tensors, lora_tensors, save_lora, with_lora
from training.sequences import Sequences, micro_batches
from training.shared_prompts import SharedPrompts, rows_by_prompt
from training.split import open_section
from training.summaries import IMAGINED_TOKENS, WINDOW, Summaries

HEAD_FILE = "head.safetensors"
HEAD = ("weight", "bias", "mean", "std", "centre", "known", "caution")

GROUPS = {"words": 1.4, "boundary": 1.0, "top": 1.0, "first": 0.5, "latest": 0.5, "boundary now": 0.5, "top now": 0.5}
"""Groups of D features each, in order, and how much each weighs before a vote is seen."""
CONSTANT = 1e-5
"""A deviation that small, against the largest value, is rounding."""


class Scorer(nn.Module):
    """A scalar for every state of an answer: LoRA on the top layers and a linear head on standardised features (F,).

    Read at s_T it is the reward model's score; read at each s_t, the value model.
    """

    mean: Tensor
    std: Tensor
    centre: Tensor
    """(3, D): an average token of an answer, as embedding, at the boundary and at the top."""
    known: Tensor
    """(R, F): directions in which votes tell something; see `doubt`."""
    caution: Tensor
    """(): how many standard deviations are taken from a score."""

    def __init__(self, backbone: Backbone, shape: LoraShape, *, seed: int) -> None:
        super().__init__()
        self.shape = shape
        self.lora = with_lora(backbone, shape, seed)
        self._top = open_section(self.lora.get_base_model(), shape.first_layer, backbone.layer_count)
        self._embed = backbone.model.get_input_embeddings()
        size = backbone.model.config.hidden_size
        width = len(GROUPS) * size
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.register_buffer("centre", torch.zeros(3, size))
        self.register_buffer("known", torch.zeros(0, width))
        self.register_buffer("caution", torch.zeros(()))
        self.weight = nn.Parameter(torch.zeros(width))
        self.bias = nn.Parameter(torch.zeros(()))

    def trained(self) -> list[nn.Parameter]:
        """LoRA and head."""
        return [p for p in self.parameters() if p.requires_grad]

    def features(self, boundary: Tensor, near: Tensor, batch: Sequences) -> Tensor:
        """States (B, L, D) at the boundary and near the top → features of s₀ … s_T (B, T + 1, F), not standardised."""
        depths = self.depths(boundary, near, batch)
        steps = torch.arange(batch.answer_ids.shape[1] + 1)  # tokens written by s_t
        sums = []
        for states, centre in zip(depths, self.centre, strict=True):
            tokens = states - centre
            sums.append(torch.cat([torch.zeros_like(tokens[:, :1]), tokens[:, 1:].cumsum(1)], 1))
        means = [total / (steps + IMAGINED_TOKENS)[:, None] for total in sums]
        words = sums[0]
        first = words[:, steps.clamp(max=WINDOW)] / WINDOW
        latest = (words - words[:, (steps - WINDOW).clamp(min=0)]) / WINDOW
        return torch.cat([*means, first, latest, depths[1], depths[2]], -1)

    def depths(self, boundary: Tensor, near: Tensor, batch: Sequences | SharedPrompts) -> tuple[Tensor, Tensor, Tensor]:
        """An answer's states s₀ … s_T (B, T + 1, D) as embeddings, at the boundary and at the top."""
        words, top = self._embed(batch.input_ids), self._top(near, batch.attention_mask, batch.positions)
        found = [batch.answer_states(states).float() for states in (words, boundary, top)]
        return found[0], found[1], found[2]

    @torch.no_grad()
    def summarise(self, frozen: FrozenLayers, sequences: Sequences, micro_batch_tokens: int) -> Summaries:
        """Read B whole answers, each once, and prompts once for all their answers, keeping no states."""
        rows, lengths = rows_by_prompt(sequences)
        parts = [[rows[i] for i in part] for part in micro_batches(lengths, micro_batch_tokens)]

        def run(part: list[list[int]]) -> Summaries:
            batch = SharedPrompts.of(sequences, part)
            return Summaries.of(self.depths(*frozen.states(batch), batch), batch.answer_mask)

        order = torch.tensor([answer for part in parts for row in part for answer in row])
        return Summaries.cat(in_parallel(run, parts)).take(order.argsort())

    @torch.no_grad()
    def standardise(self, summaries: Summaries) -> Tensor:
        """Learn what average answers look like from B of them; returns their standardised features (B, F).

        Afterwards features have mean 0 and a norm of about 1, shared between the groups as `GROUPS` says. One that is
        the same in all of them (the last token's embedding, say, where every answer ends in EOS) stays at 0.
        """
        self.centre.copy_(summaries.centre())
        raw = summaries.features(self.centre)
        weights = torch.tensor(list(GROUPS.values())).repeat_interleave(self.centre.shape[1])
        self.mean.copy_(raw.mean(0))
        std = raw.std(0)
        std[std <= CONSTANT * raw.abs().amax(0)] = torch.inf
        self.std.copy_(std * weights.norm() / weights)
        return (raw - self.mean) / self.std

    def standardised(self, summaries: Summaries) -> Tensor:
        """Standardised features of whole answers, with the LoRA still at zero: (B, F)."""
        return (summaries.features(self.centre) - self.mean) / self.std

    def forward(self, boundary: Tensor, near: Tensor, batch: Sequences) -> Tensor:
        """Scalars of s₀ … s_T, less `caution` standard deviations of them: (B, T + 1).

        A policy finds whatever a reward model never saw and happens to score high: so it does not pay (lower confidence
        bounds; Coste et al. 2023, arXiv 2310.02743, for ensembles). Places past an answer's end hold no meaning.
        """
        features = (self.features(boundary, near, batch) - self.mean) / self.std
        scalars = features @ self.weight + self.bias
        return scalars - self.caution * doubt(features, self.known) if self.caution > 0 else scalars

    def score(self, boundary: Tensor, near: Tensor, batch: Sequences) -> Tensor:
        """The score of each whole answer: (B,)."""
        ends = batch.answer_mask.sum(-1, keepdim=True)
        return self.forward(boundary, near, batch).gather(1, ends).squeeze(1)

    @torch.no_grad()
    def all_values(self, states: FrozenStates, sequences: Sequences, micro_batch_tokens: int) -> tuple[Tensor, Tensor]:
        """Every row without gradients: values at s₀ … s_{T−1} (B, T), zero past the end, and scores at s_T (B,)."""
        values = torch.zeros(sequences.answer_mask.shape)
        scores = torch.zeros(len(sequences))

        def run(rows: Tensor) -> None:
            batch = sequences.take(rows)
            found = self.forward(states.boundary_of(rows), states.near_of(rows), batch)
            values[rows, : found.shape[1] - 1] = found[:, :-1] * batch.answer_mask
            scores[rows] = found.gather(1, batch.answer_mask.sum(-1, keepdim=True)).squeeze(1)

        in_parallel(run, sequences.micro_batches(micro_batch_tokens))
        return values, scores

    @torch.no_grad()
    def all_features(self, states: FrozenStates, sequences: Sequences, micro_batch_tokens: int) -> Tensor:
        """Features of every whole answer, at s_T: (B, F)."""
        result = torch.zeros(len(sequences), len(self.weight))

        def run(rows: Tensor) -> None:
            batch = sequences.take(rows)
            found = self.features(states.boundary_of(rows), states.near_of(rows), batch)
            result[rows] = found[torch.arange(len(rows)), batch.answer_mask.sum(-1)]

        in_parallel(run, sequences.micro_batches(micro_batch_tokens))
        return result

    def rescale(self, shift: float, scale: float) -> None:
        """Make every scalar (x − shift) / scale, by an affine map of the head."""
        with torch.no_grad():
            self.bias.sub_(shift).div_(scale)
            self.weight.div_(scale)
            self.caution.div_(scale)

    def twin(self, backbone: Backbone) -> Scorer:
        """Another scorer with the same weights, to be trained apart (the value model starts from the reward model)."""
        other = Scorer(backbone, self.shape, seed=0)
        other.load(self.tensors())
        return other

    def tensors(self) -> dict[str, Tensor]:
        """LoRA and head, detached copies."""
        head = {name: getattr(self, name) for name in HEAD}
        return {
            **{f"lora.{name}": t for name, t in lora_tensors(self.lora).items()},
            **{name: t.detach().clone() for name, t in head.items()},
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        lora = {name.removeprefix("lora."): t for name, t in tensors.items() if name.startswith("lora.")}
        load_lora_tensors(self.lora, lora)
        self.known = tensors["known"].clone()  # as many rows as the votes have told directions
        with torch.no_grad():
            for name in HEAD:
                getattr(self, name).copy_(tensors[name])

    def save(self, folder: Path) -> None:
        """Write the LoRA in PEFT's format, and the head beside it."""
        save_lora(self.lora, folder)
        head = {name: t for name, t in self.tensors().items() if not name.startswith("lora.")}
        save_file(head, str(folder / HEAD_FILE))

    def load_folder(self, folder: Path) -> bool:
        """Read what `save` wrote; False, and nothing is taken over, where another release did."""
        head = load_file(str(folder / HEAD_FILE))
        if head.keys() != set(HEAD) or head["weight"].shape != self.weight.shape:
            return False
        self.load({**{f"lora.{name}": t for name, t in load_file(str(folder / WEIGHTS)).items()}, **head})
        return True


def doubt(features: Tensor, known: Tensor) -> Tensor:
    """What votes leave open of a score: its posterior standard deviation, features (…, F), known (R, F) → (…).

    σ² = ‖x‖² − ‖known · x‖², Laplace's approximation at ridge 1: large for an answer unlike any that was judged.
    """
    left = features.square().sum(-1) - (features @ known.T).square().sum(-1)
    return left.clamp(min=1e-8).sqrt()  # above 0, where a root has a gradient
