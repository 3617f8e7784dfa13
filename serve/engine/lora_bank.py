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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from serve.engine.lora_weights import LoraWeights
from serve.records import BASE_VERSION

Piece = tuple[int, Tensor, Tensor]
"""One part's first row of the output, its A (rank, in) and its B (out, rank)."""


@dataclass
class Routing:
    """Which place each row of the coming forward pass takes; one object, shared by all linears of a bank."""

    places: Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.long))
    """(rows,)"""
    present: frozenset[int] | None = frozenset({0})
    """The places that occur; None where the tensor's content may change, so that nothing may be specialised for it."""
    moves: int = 0
    """Times that a linear's A and B came to lie elsewhere."""

    def set(self, places: Sequence[int], device: torch.device) -> None:
        """Route the next forward pass."""
        self.places = torch.tensor(places, dtype=torch.long).to(device)
        self.present = frozenset(places)


class Stack:
    """The A and B of one linear, for all places; rank and number of places grow to what resident adapters need."""

    def __init__(self, in_features: int, out_features: int, like: Tensor) -> None:
        """Of `like`'s type, on its device."""
        self.a = like.new_zeros(0, 0, in_features)  # (places, rank, in)
        self.b = like.new_zeros(0, out_features, 0)  # (places, out, rank)
        self.ranks: dict[int, int] = {}
        """Rank at each place that has weights here."""

    def reserve(self, places: int, rank: int) -> bool:
        """Make room, keeping what is there. True when A and B lie elsewhere now."""
        old_places, old_rank, in_features = self.a.shape
        if places <= old_places and rank <= old_rank:
            return False
        places, rank = max(places, old_places), max(rank, old_rank)
        a = self.a.new_zeros(places, rank, in_features)
        b = self.b.new_zeros(places, self.b.shape[1], rank)
        a[:old_places, :old_rank] = self.a
        b[:old_places, :, :old_rank] = self.b
        self.a, self.b = a, b
        return True

    def write(self, place: int, pieces: Sequence[Piece]) -> None:
        """Put one adapter's weights at a place; none leave zeros.

        Pieces stand one below the other in A and as blocks of a diagonal in B, so that each part of a fused linear
        gets what it would get alone.
        """
        self.ranks.pop(place, None)
        self.a[place] = 0
        self.b[place] = 0
        rank = 0
        for first, a, b in pieces:
            self.a[place, rank : rank + len(a)] = a
            self.b[place, first : first + len(b), rank : rank + len(a)] = b
            rank += len(a)
        if pieces:
            self.ranks[place] = rank

    def delta(self, x: Tensor, routing: Routing) -> Tensor:
        """Takes x (rows, T, in) → what the rows' adapters add (rows, T, out)."""
        if routing.present is not None and len(routing.present) == 1:  # one version in the whole batch: no gather
            (place,) = routing.present
            rank = self.ranks[place]
            return F.linear(F.linear(x, self.a[place, :rank]), self.b[place, :, :rank])
        a, b = self.a[routing.places], self.b[routing.places]
        return torch.bmm(torch.bmm(x, a.transpose(1, 2)), b.transpose(1, 2))


class Linear(Protocol):
    """What the bank asks of a linear: room for adapters, and their weights at a place."""

    shapes: dict[str, tuple[int, int]]
    """(out, in) of each part by its name in the base."""

    def prepare(self, weights: LoraWeights) -> Any:
        """What an adapter has for this linear, laid out as `write` takes it. Any thread may call it."""

    def reserve(self, places: int, prepared: Any) -> None:
        """Make room for so many places and for this."""

    def write(self, place: int, prepared: Any) -> None:
        """Put it at a place."""


@dataclass(frozen=True)
class Prepared:
    """An adapter as the linears of one bank take it, in their order."""

    by_linear: Sequence[Any]


class BankLinear(nn.Module):
    """One frozen linear, or several of the same input fused, that adds each row's own LoRA."""

    def __init__(self, parts: Mapping[str, Tensor], bias: Tensor | None, routing: Routing) -> None:
        """`parts`: the weights (out, in) by their names in the base, in the order of the output."""
        super().__init__()
        self.shapes = {name: (int(weight.shape[0]), int(weight.shape[1])) for name, weight in parts.items()}
        """(out, in) of each part."""
        self.weights = list(parts.values())
        """None are left once they were packed and released."""
        self.bias = bias
        self.routing = routing
        self._device = self.weights[0].device
        self.stack: Stack | None = None
        """None until an adapter touches this linear."""
        self._packed: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The weight of a linear of one part: transformers' code looks at its type."""
        (weight,) = self.weights
        return weight

    def forward(self, x: Tensor) -> Tensor:
        """Takes x (rows, T, in) → (rows, T, out)."""
        out = self._frozen(x)
        present = self.routing.present
        if self.stack is None or (present is not None and present.isdisjoint(self.stack.ranks)):
            return out
        rows = x.reshape(len(self.routing.places), -1, x.shape[-1])
        return out + self.stack.delta(rows, self.routing).view_as(out)

    def prepare(self, weights: LoraWeights) -> list[Piece]:
        """The parts that the adapter changes."""
        pieces, first = [], 0
        for name, (out_features, _) in self.shapes.items():
            if name in weights.layers:
                pieces.append((first, *weights.layers[name]))
            first += out_features
        return pieces

    def reserve(self, places: int, prepared: Sequence[Piece]) -> None:
        """Make room for so many places and for this."""
        if self.stack is None and prepared:
            in_features = next(iter(self.shapes.values()))[1]
            like = prepared[0][1].to(self._device)
            self.stack = Stack(in_features, sum(out for out, _ in self.shapes.values()), like=like)
        if self.stack is not None and self.stack.reserve(places, sum(len(a) for _, a, _ in prepared)):
            self.routing.moves += 1

    def write(self, place: int, prepared: Sequence[Piece]) -> None:
        """Put an adapter's weights for this linear at a place, or zeros."""
        if self.stack is not None:
            self.stack.write(place, prepared)

    def pack(self, *, release: bool) -> None:
        """Lay the weight out as oneDNN likes it for small batches: 1.3 to 2.4 times the decode speed in float32.

        The packed one is a copy; `release` lets go of the original, for owners that read it nowhere else. Their parts
        become one matrix also where oneDNN's layout does not apply.
        """
        weight = self.weights[0]
        if self._packed is None and weight.dtype == torch.float32 and weight.device.type == "cpu" and _packing_works():
            self._packed = _pack(torch.cat(self.weights))
            if release:
                self.weights.clear()
        elif release and len(self.weights) > 1:
            self.weights = [torch.cat(self.weights)]

    def _frozen(self, x: Tensor) -> Tensor:
        if self._packed is not None:
            return _packed_linear(x, self._packed, self.bias)
        out = [F.linear(x, weight) for weight in self.weights]
        whole = out[0] if len(out) == 1 else torch.cat(out, dim=-1)
        return whole if self.bias is None else whole + self.bias


class LoraBank:
    """Which version lives at which place, and the weights there.

    Not locked: the engine calls the bookkeeping under its own lock, and only its decode thread installs and routes.
    """

    def __init__(self, *, places: int, max_rank: int, dtype: torch.dtype, device: torch.device) -> None:
        """Empty: `add` gives it the model's linears."""
        self.places = places
        self.max_rank = max_rank
        self.dtype = dtype
        self.linears: list[Linear] = []
        self.shapes: dict[str, tuple[int, int]] = {}
        """(out, in) of each of the base's linears by name."""
        self._device = device
        self._unpacked: list[BankLinear] = []
        self._routing = Routing()
        self._place: OrderedDict[int, int] = OrderedDict()
        """Place of each resident version but the base, least recently used first."""
        self._in_flight: Counter[int] = Counter()

    def add(self, parts: Mapping[str, Tensor], bias: Tensor | None = None) -> BankLinear:
        """A linear of this bank; see `BankLinear`."""
        linear = BankLinear(parts, bias, self._routing)
        self.register(linear)
        self._unpacked.append(linear)
        return linear

    def settle(self, *, release: bool) -> bool:
        """Pack one more linear's weight, as in `BankLinear.pack`; False when none is left."""
        if self._unpacked:
            self._unpacked.pop().pack(release=release)
        return bool(self._unpacked)

    def register(self, linear: Linear) -> None:
        """A linear that keeps its adapters in its own way."""
        self.linears.append(linear)
        self.shapes |= linear.shapes

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

    def prepare(self, weights: LoraWeights) -> Prepared:
        """An adapter laid out for `install`: all that takes long, so that it can be done beside the decode thread."""
        with torch.inference_mode():
            return Prepared([linear.prepare(weights) for linear in self.linears])

    def install(self, version: int, adapter: Prepared, *, keep: int) -> bool:
        """Write a version's weights at its own place, a free one, or that of the least recently used one.

        False, with nothing changed, while every such place has requests in flight. `keep` (what serves) is not evicted.
        """
        place, evicted = self._find_place(version, keep)
        if place is None:
            return False
        top = max(place, *self._place.values()) if self._place else place
        parts = list(zip(self.linears, adapter.by_linear, strict=True))
        for linear, prepared in parts:  # all the room first: if memory ends here, nothing is lost
            linear.reserve(top + 1, prepared)
        if evicted is not None:
            del self._place[evicted]
        for linear, prepared in parts:
            linear.write(place, prepared)
        self._place[version] = place
        self._place.move_to_end(version)
        return True

    def route(self, versions: Sequence[int]) -> None:
        """Name the version of each row of the next forward pass."""
        self._routing.set([self._place.get(v, 0) for v in versions], self._device)

    @contextmanager
    def routed_by(self, places: Tensor) -> Iterator[None]:
        """Here, a tensor (rows,) on the bank's device names the rows' places: a recorded pass reads it again."""
        routing, before = self._routing, (self._routing.places, self._routing.present)
        routing.places, routing.present = places, None
        try:
            yield
        finally:
            routing.places, routing.present = before

    @property
    def moves(self) -> int:
        """Changes when weights of adapters came to lie elsewhere: what was recorded reads the old ones."""
        return self._routing.moves

    @property
    def routed(self) -> Tensor:
        """Places (rows,) of the next forward pass."""
        return self._routing.places

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
