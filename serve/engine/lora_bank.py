"""The LoRA bank: many versions resident over one frozen model, each row of a batch answered by its own.

    y = x·Wᵀ + (x·A[place]ᵀ)·B[place]ᵀ        x (rows, T, in), A (places, rank, in), B (places, out, rank)

A version lives at a place; place 0 is the base. A place is freed by need: the least recently used version that has no
request in flight and does not serve. Ranks and layers that a version lacks are zeros.

The batched gather is what Punica (https://arxiv.org/abs/2310.18547) and S-LoRA (https://arxiv.org/abs/2311.03285) do
with kernels of their own; here it is two plain matmuls.
"""

from __future__ import annotations

import functools
from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.lora_weights import LoraWeights
from serve.records import BASE_VERSION

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass
class Routing:
    """Which place each row of the coming forward pass takes; one object, shared by all linears of a bank."""

    places: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    """(rows,)"""
    present: frozenset[int] = frozenset({0})

    def set(self, places: Sequence[int], device: torch.device) -> None:
        """Route the next forward pass."""
        self.places = torch.tensor(places, dtype=torch.long, device=device)
        self.present = frozenset(places)


class Stack:
    """The A and B of one linear, for all places; rank and number of places grow to what resident adapters need."""

    def __init__(self, weight: Tensor) -> None:
        out_features, in_features = weight.shape
        self.a = weight.new_zeros(0, 0, in_features)  # (places, rank, in)
        self.b = weight.new_zeros(0, out_features, 0)  # (places, out, rank)
        self.ranks: dict[int, int] = {}
        """Rank at each place that has weights here."""

    def reserve(self, places: int, rank: int) -> None:
        """Make room, keeping what is there."""
        old_places, old_rank, in_features = self.a.shape
        if places <= old_places and rank <= old_rank:
            return
        places, rank = max(places, old_places), max(rank, old_rank)
        a = self.a.new_zeros(places, rank, in_features)
        b = self.b.new_zeros(places, self.b.shape[1], rank)
        a[:old_places, :old_rank] = self.a
        b[:old_places, :, :old_rank] = self.b
        self.a, self.b = a, b

    def write(self, place: int, weights: tuple[Tensor, Tensor] | None) -> None:
        """Put one adapter's A and B at a place, or zeros."""
        self.ranks.pop(place, None)
        self.a[place] = 0
        self.b[place] = 0
        if weights is not None:
            a, b = weights
            self.a[place, : len(a)] = a
            self.b[place, :, : len(a)] = b
            self.ranks[place] = len(a)

    def delta(self, x: Tensor, routing: Routing) -> Tensor:
        """Takes x (rows, T, in) → what the rows' adapters add (rows, T, out)."""
        if len(routing.present) == 1:  # one version in the whole batch: no gather
            (place,) = routing.present
            rank = self.ranks[place]
            return F.linear(F.linear(x, self.a[place, :rank]), self.b[place, :, :rank])
        a, b = self.a[routing.places], self.b[routing.places]
        return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))


class BankLinear(nn.Module):
    """A frozen linear that adds each row's own LoRA. It shares its weight with the linear it stands in for."""

    def __init__(self, linear: nn.Linear, routing: Routing) -> None:
        super().__init__()
        self.weight = linear.weight
        self.bias = linear.bias
        self.routing = routing
        self.stack: Stack | None = None
        """None until an adapter touches this linear."""
        self._packed: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (rows, T, in) → (rows, T, out)."""
        out = self._frozen(x)
        if self.stack is None or self.routing.present.isdisjoint(self.stack.ranks):
            return out
        rows = x.reshape(len(self.routing.places), -1, x.shape[-1])
        return out + self.stack.delta(rows, self.routing).view_as(out)

    def pack(self) -> None:
        """Lay the weight out as oneDNN likes it for small batches: 1.3 to 2.4 times the decode speed in float32.

        The packed copy is a second one (about 540 MB for the default model, LM head included), since training and the
        one-token path read the shared tensor.
        """
        if self._packed is None and self.weight.dtype == torch.float32 and self.weight.device.type == "cpu":
            self._packed = _pack(self.weight) if _packing_works() else None

    def _frozen(self, x: Tensor) -> Tensor:
        # For a single token the plain matrix-vector product is the faster one.
        if self._packed is None or x.numel() == x.shape[-1]:
            return F.linear(x, self.weight, self.bias)
        return _packed_linear(x, self._packed, self.bias)


class LoraBank:
    """Which version lives at which place, and the weights there.

    Not locked: the engine calls the bookkeeping under its own lock, and only its decode thread installs and routes.
    """

    def __init__(self, model: PreTrainedModel, *, places: int, max_rank: int) -> None:
        """Replace every linear of `model`, a view that nobody else uses."""
        self.places = places
        self.max_rank = max_rank
        self.dtype = model.dtype
        self._device = model.device
        self._routing = Routing()
        self.linears = _wrap_linears(model, self._routing)
        self.shapes = {name: (len(linear.weight), linear.weight.shape[1]) for name, linear in self.linears.items()}
        """Of each linear: (out, in)."""
        self._place: OrderedDict[int, int] = OrderedDict()
        """Place of each resident version but the base, least recently used first."""
        self._in_flight: Counter[int] = Counter()

    def is_resident(self, version: int) -> bool:
        """Whether requests may name it."""
        return version == BASE_VERSION or version in self._place

    def acquire(self, version: int) -> None:
        """One more candidate needs this resident version."""
        self._in_flight[version] += 1
        if version in self._place:
            self._place.move_to_end(version)

    def release(self, version: int) -> None:
        """That candidate has ended."""
        self._in_flight[version] -= 1

    def install(self, version: int, weights: LoraWeights, *, keep: int) -> bool:
        """Write a version's weights at its own place, a free one, or that of the least recently used one.

        False, with nothing changed, while every such place has requests in flight. `keep` (what serves) is not evicted.
        """
        place, evicted = self._find_place(version, keep)
        if place is None:
            return False
        top = max(place, *self._place.values()) if self._place else place
        for name, linear in self.linears.items():  # all the room first: if memory ends here, nothing is lost
            if name in weights.layers and linear.stack is None:
                linear.stack = Stack(linear.weight)
            if linear.stack is not None:
                linear.stack.reserve(top + 1, len(weights.layers[name][0]) if name in weights.layers else 0)
        if evicted is not None:
            del self._place[evicted]
        for name, linear in self.linears.items():
            if linear.stack is not None:
                linear.stack.write(place, weights.layers.get(name))
        self._place[version] = place
        self._place.move_to_end(version)
        return True

    def route(self, versions: Sequence[int]) -> None:
        """Name the version of each row of the next forward pass."""
        self._routing.set([self._place.get(v, 0) for v in versions], self._device)

    def _find_place(self, version: int, keep: int) -> tuple[int | None, int | None]:
        """(place, version to evict from it)."""
        if version in self._place:
            return (None if self._in_flight[version] else self._place[version]), None
        free = set(range(1, self.places)) - set(self._place.values())
        if free:
            return min(free), None
        idle = (v for v in self._place if v != keep and not self._in_flight[v])
        victim = next(idle, None)
        return (None, None) if victim is None else (self._place[victim], victim)


def _wrap_linears(model: nn.Module, routing: Routing) -> dict[str, BankLinear]:
    wrapped = {name: BankLinear(m, routing) for name, m in model.named_modules() if type(m) is nn.Linear}
    for name, linear in wrapped.items():
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, linear)
    return wrapped


@functools.cache
def _packing_works() -> bool:
    """Whether this build of torch has oneDNN's packed linear, and it computes what F.linear does."""
    generator = torch.Generator().manual_seed(0)
    weight, x = torch.randn(24, 40, generator=generator), torch.randn(3, 40, generator=generator)
    try:
        packed = _packed_linear(x, _pack(weight), None)
    except (AttributeError, RuntimeError):  # no such operator here
        return False
    return torch.allclose(packed, F.linear(x, weight), rtol=1e-5, atol=1e-5)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), 16)
    return packed


def _packed_linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")
    return out
