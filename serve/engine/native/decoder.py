"""The decoder over llama.c: packed weights, LoRA tables by place, keys and values in shared blocks."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import weakref
from collections.abc import Mapping, Sequence
from ctypes import addressof, byref
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from serve.engine.decoder import check_ids
from serve.engine.llama import LlamaShape, Weights
from serve.engine.lora_bank import LoraBank
from serve.engine.lora_weights import LoraWeights
from serve.engine.native import library, narrow
from serve.engine.native.blocks import BLOCK, BlockPrompt, BlockSequence, BlockSlots
from serve.engine.native.narrow import GROUP, PANEL, Packed
from serve.engine.native.prefixes import Prefixes
from serve.engine.sampling import is_greedy
from serve.policy.memory import require_memory

if TYPE_CHECKING:
    from serve.policy.base import Backbone
    from serve.records import Sampling

CPU = torch.device("cpu")
LINEARS: tuple[tuple[str, ...], ...] = (
    ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    ("self_attn.o_proj",),
    ("mlp.gate_proj", "mlp.up_proj"),
    ("mlp.down_proj",),
)
"""A layer's linears as llama.c numbers them, with the base's names of their parts."""
ALTERNATING = 2
"""Of gate and up, the panels alternate."""


TRUNK, TOP = 2, 3
"""Of the layers, these thirds are taken for the trunk until an adapter changes a lower one: training's default."""


@dataclass(frozen=True)
class NativeLora:
    """One version's LoRA at one linear, as llama.c reads it."""

    a: Tensor
    """(panels, groups · 32, 16) of parts · rank outputs."""
    b: Tensor
    """(panels, rank, 16)"""
    rank: int


class NativeLinear:
    """The LoRA table of one linear of llama.c; the bank writes it."""

    def __init__(
        self, code: ctypes.CDLL, layer: library.Layer, number: int, parts: Mapping[str, tuple[int, int]], places: int
    ) -> None:
        """`parts`: (out, in) by name, in the order of the output."""
        self.shapes = dict(parts)
        self._code = code
        self._layer = layer
        self._number = number
        self._table = (library.Lora * places)()
        self._kept: dict[int, NativeLora] = {}

    def prepare(self, weights: LoraWeights) -> NativeLora | None:
        """The adapter's matrices as llama.c reads them; None where it changes nothing."""
        pairs = [weights.layers.get(name) for name in self.shapes]
        rank = max((len(pair[0]) for pair in pairs if pair is not None), default=0)
        if rank == 0:
            return None
        matrix = self._layer.linear[self._number]
        panels_a = _zeros(-(-len(pairs) * rank // PANEL), matrix.groups * GROUP, PANEL)
        panels_b = _zeros(matrix.panels, rank, PANEL)
        stride = len(pairs) if self._number == ALTERNATING else 1
        panel = 0  # of the part's first output
        for index, (pair, (out_features, _)) in enumerate(zip(pairs, self.shapes.values(), strict=True)):
            if pair is not None:
                a, b = (half.contiguous() for half in pair)
                self._lay_out(a, panels_a, first=index * rank)
                self._lay_out(b, panels_b[panel:], stride=stride)
            panel += 1 if stride > 1 else -(-out_features // PANEL)
        return NativeLora(panels_a, panels_b, rank)

    # Not by torch: its threads go on spinning for a while, on processors that a running step needs.
    def _lay_out(self, rows: Tensor, panels: Tensor, *, first: int = 0, stride: int = 1) -> None:
        assert rows.dtype == torch.float32 and rows.is_contiguous()
        count, width = rows.shape
        self._code.hustings_lay_out(rows.data_ptr(), count, width, first, stride, panels.shape[1], panels.data_ptr())

    def reserve(self, places: int, prepared: NativeLora | None) -> None:
        """The table has all its places from the start."""

    def write(self, place: int, prepared: NativeLora | None) -> None:
        """Put an adapter's weights for this linear at a place, or none."""
        if prepared is None:
            self._table[place] = library.Lora()
            self._kept.pop(place, None)
        else:
            self._kept[place] = prepared
            panels, inputs, _ = prepared.a.shape
            a = library.Matrix(prepared.a.data_ptr(), narrow.KINDS.index("float32"), panels, inputs // GROUP)
            self._table[place] = library.Lora(a, prepared.b.data_ptr(), prepared.rank)
            self._layer.lora[self._number] = addressof(self._table)


class NativeDecoder:
    """The forward pass in C; see `serve.engine.decoder.Decoder`."""

    def __init__(
        self,
        code: ctypes.CDLL,
        shape: LlamaShape,
        backbone: Backbone,
        *,
        places: int,
        max_rank: int,
        cache_tokens: int = 0,
    ) -> None:
        """`cache_tokens` of earlier prompts and answers are kept. Raises ModelError for broken or missing weights."""
        self.context_length = shape.context_length
        self.bank = LoraBank(places=places, max_rank=max_rank, dtype=torch.float32, device=CPU)
        self._code = code
        self._prefixes = Prefixes(cache_tokens)
        self._trunk = shape.layers * TRUNK // TOP
        self._packed = _read_packed(backbone, shape)
        self._scratch = torch.empty(0)
        self._layers = (library.Layer * shape.layers)()
        for index, layer in enumerate(self._layers):
            prefix = f"model.layers.{index}."
            layer.attention_norm = self._packed.floats[f"{prefix}input_layernorm"].data_ptr()
            layer.mlp_norm = self._packed.floats[f"{prefix}post_attention_layernorm"].data_ptr()
            for number, names in enumerate(LINEARS):
                layer.linear[number] = _matrix(self._packed.matrices[prefix + names[0]])
                parts = {prefix + name: self._packed.shapes[prefix + name] for name in names}
                self.bank.register(NativeLinear(code, layer, number, parts, places))
        head = "model.embed_tokens" if shape.tied else "lm_head"
        self._vocabulary, dim = self._packed.shapes[head]
        self._angles = shape.angles()  # (context, 2, head_dim / 2)
        self._model = library.Model(
            shape.layers,
            dim,
            shape.heads,
            shape.kv_heads,
            shape.head_dim,
            self._vocabulary,
            shape.context_length,
            max_rank,
            shape.norm_eps,
            self._layers,
            self._packed.floats["model.norm"].data_ptr(),
            self._angles.data_ptr(),
            _matrix(self._packed.matrices["model.embed_tokens"]),
            _matrix(self._packed.matrices[head]),
        )
        self._block_size = code.hustings_block(byref(self._model))
        self._threads = torch.get_num_threads()
        self._team = code.hustings_team(self._threads)
        self._weights = torch.empty(0)
        weakref.finalize(self, code.hustings_disband, self._team)

    def prompt(self, versions: Sequence[int], tokens: Sequence[int]) -> BlockPrompt:
        """A prompt that these versions read; what all of them know of its beginning is in already."""
        self._find_trunk()
        before = tokens[:-1]  # the last one's logits are wanted
        own = [self._prefixes.find(version, before) for version in versions]
        shared = self._prefixes.find_any(before) if self._trunk > 0 else []
        whole = min(len(blocks) for blocks in own)
        sequences = [
            BlockSequence(blocks[:whole] + [block.clone() for block in shared[whole:]], whole * BLOCK, self._trunk)
            for blocks in own
        ]
        return BlockPrompt(sequences, max(whole, len(shared)) * BLOCK)

    def slots(self) -> BlockSlots:
        """Keys and values of the rows that decode together."""
        return BlockSlots()

    def keep(self, cache: BlockPrompt | BlockSlots, row: int, version: int, tokens: Sequence[int]) -> None:
        """Remember what a row holds: another prompt may begin with these tokens."""
        sequence = cache.sequences[row]
        if sequence.trunk == self._trunk:  # its states lie where others look for them
            self._prefixes.keep(version, tokens[: sequence.length], sequence.blocks)

    def forget(self, version: int) -> None:
        """The version's weights are others now."""
        self._prefixes.forget(version)

    def _find_trunk(self) -> None:
        """An adapter may change a lower layer than any before; then the states that are kept are of no use."""
        changed = (index for index, layer in enumerate(self._layers) if any(layer.lora))
        trunk = min(self._trunk, next(changed, self._trunk))
        if trunk < self._trunk:
            self._trunk = trunk
            self._prefixes.clear()

    def forward(self, token_ids: Tensor, cache: BlockPrompt | BlockSlots) -> Tensor:
        """Token ids (rows, T) that follow what the cache holds → logits of the last one (rows, V).

        Of tokens whose trunk is known only the upper layers are computed; the pass ends with them, without logits.
        """
        first, trunk = 0, self._trunk
        if isinstance(cache, BlockPrompt):
            trunk = cache.sequences[0].trunk
            if cache.trunk_length > cache.length:
                first = trunk
                token_ids = token_ids[:, : cache.trunk_length - cache.length]
        rows, tokens = token_ids.shape
        check_ids(token_ids, self._vocabulary)
        for sequence in cache.sequences:
            sequence.reserve(sequence.length + tokens, self._block_size)
        lengths = torch.tensor([s.length for s in cache.sequences], dtype=torch.int32)
        last_first = torch.arange(tokens - 1, -1, -1, dtype=torch.int32)  # rows that want logits come first
        positions = (lengths + last_first[:, None]).contiguous()  # (T, rows)
        sequences = torch.arange(rows, dtype=torch.int32).repeat(tokens)
        places = self.bank.routed.to(torch.int32).repeat(tokens)
        ids = token_ids.flip(1).t().to(torch.int32).contiguous()
        width = max(len(s.blocks) for s in cache.sequences)
        table = torch.tensor([s.addresses(width) for s in cache.sequences])
        outputs = 0 if first > 0 else rows
        logits = torch.empty(outputs, self._vocabulary)
        needed = self._code.hustings_scratch(self._team, byref(self._model), rows * tokens)
        if needed > len(self._scratch) or len(self._scratch) > 16 * needed:
            self._scratch = torch.empty(needed)
        step = library.Step(
            rows * tokens,
            outputs,
            first,
            trunk,
            width,
            *(t.data_ptr() for t in (ids, positions, sequences, places, table, logits, self._scratch)),
        )
        self._code.hustings_step(self._team, byref(self._model), byref(step))
        for sequence in cache.sequences:
            sequence.length += tokens
        return logits

    def draw(
        self, logits: Tensor, sampling: Sequence[Sampling], uniforms: Sequence[float]
    ) -> tuple[list[int], list[float]]:
        """See `serve.engine.sampling.draw`."""
        logits = logits.contiguous()
        rows, vocabulary = logits.shape
        temperatures = torch.tensor([0.0 if is_greedy(s) else s.temperature for s in sampling])
        top_p = torch.tensor([s.top_p for s in sampling], dtype=torch.float32)
        top_k = torch.tensor([min(s.top_k, vocabulary) for s in sampling], dtype=torch.int32)
        u = torch.tensor(uniforms, dtype=torch.float64)
        tokens, logprobs = torch.empty(rows, dtype=torch.int32), torch.empty(rows)
        if len(self._weights) < self._threads * 4 * vocabulary:
            self._weights = torch.empty(self._threads * 4 * vocabulary)
        arrays = (logits, temperatures, top_p, top_k, u, tokens, logprobs, self._weights)
        self._code.hustings_draw(self._team, byref(library.Draw(rows, vocabulary, *(a.data_ptr() for a in arrays))))
        return tokens.tolist(), logprobs.tolist()

    def settle(self) -> bool:
        """There is nothing left to prepare."""
        return False


PACKED_FROM = b"files"
"""Part of a pack's name: packs of earlier releases may hold a loaded model's rounded weights."""


class _PackedModel:
    """Packed matrices, norms and the base's shapes, by name without `.weight`; a fused matrix by its first part."""

    def __init__(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        self.shapes = {name: (int(s[0]), int(s[1])) for name, s in facts["shapes"].items()}
        self.matrices = {
            name: Packed(kind, panels, groups, tensors[name])
            for name, (kind, panels, groups) in facts["matrices"].items()
        }
        self.floats = {name: tensor for name, tensor in tensors.items() if name not in self.matrices}


def _read_packed(backbone: Backbone, shape: LlamaShape) -> _PackedModel:
    """From the cache, or packed now and cached."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    form = hashlib.sha256(Path(narrow.__file__).read_bytes() + PACKED_FROM).hexdigest()[:8]
    file = backbone.folder.cache / "packed" / f"{backbone.folder.hash[:16]}-{form}.safetensors"
    if file.is_file():
        require_memory(backbone.folder.name, file.stat().st_size, CPU)
    else:
        backbone.require_memory()
        tensors, facts = _pack(Weights(backbone.stored_weights(), backbone.folder, torch.float32, CPU), shape)
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(f".{os.getpid()}")
        save_file(tensors, partial, metadata={"facts": json.dumps(facts)})
        partial.replace(file)
    with safe_open(file, framework="pt") as opened:
        facts = json.loads(opened.metadata()["facts"])
        return _PackedModel({name: opened.get_tensor(name) for name in opened.keys()}, facts)  # noqa: SIM118


def _pack(weights: Weights, shape: LlamaShape) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    matrices: dict[str, tuple[str, int, int]] = {}
    shapes: dict[str, tuple[int, ...]] = {}

    def add(names: Sequence[str], *, alternate: bool = False) -> None:
        parts = [weights[f"{name}.weight"] for name in names]
        packed = narrow.pack(parts, alternate=alternate)
        tensors[names[0]] = packed.data
        matrices[names[0]] = (packed.kind, packed.panels, packed.groups)
        shapes.update((name, tuple(part.shape)) for name, part in zip(names, parts, strict=True))

    add(["model.embed_tokens"])
    if not shape.tied:
        add(["lm_head"])
    tensors["model.norm"] = weights["model.norm.weight"].float().clone()
    for index in range(shape.layers):
        prefix = f"model.layers.{index}."
        for number, names in enumerate(LINEARS):
            add([prefix + name for name in names], alternate=number == ALTERNATING)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[prefix + norm] = weights[f"{prefix}{norm}.weight"].float().clone()
    return tensors, {"matrices": matrices, "shapes": shapes}


def _zeros(*shape: int) -> Tensor:
    """By this thread alone."""
    tensor = torch.empty(shape)
    ctypes.memset(tensor.data_ptr(), 0, tensor.nbytes)
    return tensor


def _matrix(packed: Packed) -> library.Matrix:
    return library.Matrix(packed.data.data_ptr(), narrow.KINDS.index(packed.kind), packed.panels, packed.groups)
