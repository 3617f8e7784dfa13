"""Packed weights give back what went in, and a row of llama.c does not depend on the rows beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve.engine.decoders import open_decoder
from serve.engine.llama import LlamaDecoder
from serve.engine.lora_weights import read_adapter
from serve.engine.native import library, narrow
from serve.engine.native.blocks import BLOCK
from serve.engine.native.decoder import NativeDecoder
from serve.policy.base import Backbone, load_backbone, resolve_model
from tests import tiny


def q4_1(weight: Tensor) -> Tensor:
    """Onto the grid of GGUF's Q4_1: for each 32 weights a step and an offset, both half floats."""
    groups = weight.view(len(weight), -1, 32)
    offset = groups.amin(-1, keepdim=True).half().float()
    step = ((groups.amax(-1, keepdim=True) - offset) / 15).half().float()
    codes = ((groups - offset) / step).nan_to_num().round().clamp(0, 15)  # a step may be zero
    return (codes * step + offset).view_as(weight)


def q8_0(weight: Tensor) -> Tensor:
    """Onto the grid of Q8_0: for each 32 weights a step."""
    groups = weight.view(len(weight), -1, 32)
    step = (groups.abs().amax(-1, keepdim=True) / 127).half().float()
    return ((groups / step).nan_to_num().round().clamp(-127, 127) * step).view_as(weight)


GRIDS: dict[str, Callable[[Tensor], Tensor]] = {
    "int4": q4_1,
    "int8": q8_0,
    "bfloat16": lambda weight: weight.bfloat16().float(),
    "float32": lambda weight: weight,
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", GRIDS)
def test_a_matrix_takes_the_narrowest_form_that_is_exact(kind: str) -> None:
    weight = GRIDS[kind](random(40, 96))
    assert narrow.pack([weight]).kind == kind
    weight[7, 50] += 0.01 * weight.abs().max()
    assert narrow.pack([weight]).kind in ("bfloat16", "float32")


def test_zeros_fit_anywhere() -> None:
    assert narrow.pack([torch.zeros(16, 32)]).kind == "int4"


@pytest.fixture(scope="module")
def gridded(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> dict[str, Backbone]:
    """The tiny model with its linears on each grid; 160 wide inside, so that tiles and groups are not all whole."""
    backbones = {}
    for kind, grid in GRIDS.items():
        folder = tmp_path_factory.mktemp(kind)
        tiny.write_model(folder, intermediate_size=160)
        tensors = load_file(folder / "model.safetensors")
        for name, tensor in tensors.items():
            if tensor.dim() == 2:
                tensors[name] = grid(tensor)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        backbones[kind] = load_backbone(resolve_model(str(folder), tiny_model / "cache"), dtype="float32")
    return backbones


def native(backbone: Backbone) -> NativeDecoder:
    decoder = open_decoder(backbone, places=4, max_rank=8, kind="native")
    assert isinstance(decoder, NativeDecoder)
    return decoder


def logits_of(decoder: NativeDecoder, ids: Tensor, version: int = 0, chunk: int = 1000) -> Tensor:
    """Of the last token of ids (T,), read in chunks."""
    cache = decoder.prompt([version], ids.tolist())
    decoder.bank.route([version])
    logits = torch.empty(0)
    for piece in ids.split(chunk):
        logits = decoder.forward(piece[None], cache)
    return logits[0]


@pytest.mark.parametrize("kind", GRIDS)
@torch.inference_mode()
def test_every_form_computes_what_transformers_does(gridded: dict[str, Backbone], kind: str) -> None:
    backbone = gridded[kind]
    decoder = native(backbone)
    assert {packed.kind for packed in decoder._packed.matrices.values()} == {kind}
    ids = torch.randint(3, 200, (41,), generator=torch.Generator().manual_seed(1))
    theirs = backbone.model(input_ids=ids[None]).logits[0, -1]
    torch.testing.assert_close(logits_of(decoder, ids), theirs, rtol=0, atol=2e-2)


def test_what_is_packed_and_kept_are_the_files_weights_whatever_was_loaded_before(
    gridded: dict[str, Backbone], tmp_path: Path
) -> None:
    backbone = load_backbone(resolve_model(str(gridded["int4"].folder.path), tmp_path), dtype="bfloat16")
    assert backbone.model.dtype == torch.bfloat16  # loaded, and rounded, as before a training run
    assert {packed.kind for packed in native(backbone)._packed.matrices.values()} == {"int4"}


@pytest.mark.parametrize("kind", GRIDS)
@torch.inference_mode()
def test_a_row_is_the_same_bit_for_bit_in_any_batch_and_any_chunks(
    gridded: dict[str, Backbone], kind: str, tmp_path: Path
) -> None:
    decoder = native(gridded[kind])
    for version in (1, 2):
        folder = tiny.write_adapter(tmp_path / str(version), gridded[kind].folder.path, rank=4, seed=version)
        weights = read_adapter(folder, decoder.bank.shapes, max_rank=8, dtype=torch.float32)
        assert decoder.bank.install(version, decoder.bank.prepare(weights), keep=0)
    generator = torch.Generator().manual_seed(2)
    prompts = [torch.randint(3, 200, (n,), generator=generator) for n in (5, 33, 64, 2, 17, 40)]
    versions = [0, 1, 2, 1, 0, 2]
    follow = torch.randint(3, 200, (len(prompts),), generator=generator)
    alone = [logits_of(decoder, torch.cat((p, f[None])), v) for p, f, v in zip(prompts, follow, versions, strict=True)]
    slots = decoder.slots()
    for prompt, version in zip(prompts, versions, strict=True):
        cache = decoder.prompt([0], prompt.tolist())
        decoder.bank.route([version])
        for piece in prompt.split(7):
            decoder.forward(piece[None], cache)
        slots.adopt(cache, 0)
    decoder.bank.route(versions)
    together = decoder.forward(follow[:, None], slots)
    for one, row in zip(alone, together, strict=True):
        assert torch.equal(one, row)


@torch.inference_mode()
def test_a_member_for_each_processor_computes_the_same_and_leaves_the_caller_as_it_was(
    gridded: dict[str, Backbone],
) -> None:
    ids = torch.arange(3, 60)
    alone = logits_of(native(gridded["int4"]), ids)
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    torch.set_num_threads(len(before))
    try:
        team = native(gridded["int4"])
    finally:
        torch.set_num_threads(threads)
    for _ in range(20):
        assert torch.equal(logits_of(team, ids, chunk=5), alone)
    assert os.sched_getaffinity(0) == before


@torch.inference_mode()
def test_forks_share_full_blocks_and_part_ways(gridded: dict[str, Backbone]) -> None:
    decoder = native(gridded["int4"])
    prompt = torch.arange(3, 3 + 2 * BLOCK + 5)
    cache = decoder.prompt([0], prompt.tolist())
    decoder.bank.route([0])
    decoder.forward(prompt[None], cache)
    slots = decoder.slots()
    slots.adopt(cache, 0)
    slots.adopt(cache, 0)
    first, second = slots.sequences
    assert [a is b for a, b in zip(first.blocks, second.blocks, strict=True)] == [True, True, False]
    decoder.bank.route([0, 0])
    logits = decoder.forward(torch.tensor([[9], [77]]), slots)
    for row, token in enumerate((9, 77)):
        assert torch.equal(logits[row], logits_of(decoder, torch.cat((prompt, torch.tensor([token])))))


@torch.inference_mode()
def test_a_version_without_finite_weights_spoils_no_other_row(gridded: dict[str, Backbone], tmp_path: Path) -> None:
    backbone = gridded["int4"]
    decoder = native(backbone)
    folder = tiny.write_adapter(tmp_path / "1", backbone.folder.path, rank=4, seed=1)
    weights = read_adapter(folder, decoder.bank.shapes, max_rank=8, dtype=torch.float32)
    for a, _ in weights.layers.values():
        a[0, 0] = torch.nan
    assert decoder.bank.install(1, decoder.bank.prepare(weights), keep=0)
    ids = torch.arange(3, 12)
    assert logits_of(decoder, ids, 1).isnan().all()
    cache = decoder.prompt([0, 1], ids.tolist())
    decoder.bank.route([0, 1])
    both = decoder.forward(ids.expand(2, -1), cache)
    assert torch.equal(both[0], logits_of(decoder, ids))
    assert both[1].isnan().all()


def test_without_a_compiler_or_the_instructions_answers_take_the_torch_path(
    gridded: dict[str, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    def decoder(number: int) -> Any:
        return open_decoder(
            load_backbone(resolve_model(str(gridded["int4"].folder.path), tmp_path / str(number))),
            places=3,
            max_rank=8,
        )

    monkeypatch.setattr("shutil.which", lambda _: None)
    assert isinstance(decoder(1), LlamaDecoder)
    assert "apt-get install gcc" in caplog.records[-1].message
    monkeypatch.setattr("shutil.which", lambda _: "/bin/false")
    assert isinstance(decoder(2), LlamaDecoder)
    assert "could not be compiled" in caplog.records[-1].message
    monkeypatch.setattr(library, "NARROW", {"avx2", "avx3"})
    assert isinstance(decoder(3), LlamaDecoder)
    assert "no avx3" in caplog.records[-1].message
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert isinstance(decoder(4), LlamaDecoder)
    assert "no kernel for Linux on riscv64" in caplog.records[-1].message


@torch.inference_mode()
def test_vectors_of_eight_floats_compute_what_those_of_sixteen_do(
    gridded: dict[str, Backbone], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "WIDE", {"nothing has this"})
    ids = torch.randint(3, 200, (71,), generator=torch.Generator().manual_seed(4))
    for kind, backbone in gridded.items():
        elsewhere = load_backbone(resolve_model(str(backbone.folder.path), tmp_path), dtype="float32")
        torch.testing.assert_close(
            logits_of(native(elsewhere), ids), logits_of(native(backbone), ids), rtol=0, atol=2e-2, msg=kind
        )


@torch.inference_mode()
def test_another_version_goes_on_from_the_trunk_bit_for_bit(gridded: dict[str, Backbone], tmp_path: Path) -> None:
    backbone = gridded["int4"]
    remembering = open_decoder(backbone, places=4, max_rank=8, cache_tokens=1000, kind="native")
    assert isinstance(remembering, NativeDecoder)
    plain = native(backbone)
    for version, layers in ((1, (2, 3)), (2, (3,)), (3, (1, 2))):
        folder = tiny.write_adapter(tmp_path / str(version), backbone.folder.path, rank=4, layers=layers, seed=version)
        weights = read_adapter(folder, plain.bank.shapes, max_rank=8, dtype=torch.float32)
        for decoder in (remembering, plain) if version < 3 else ():
            assert decoder.bank.install(version, decoder.bank.prepare(weights), keep=0)
    ids = torch.randint(3, 200, (3 * BLOCK + 9,), generator=torch.Generator().manual_seed(6))

    def read(versions: list[int], tokens: Tensor) -> tuple[Tensor, list[int]]:
        """Logits (versions, V), and how long the prompt was after each pass."""
        cache = remembering.prompt(versions, tokens.tolist())
        lengths, logits = [cache.length], torch.empty(0)
        while cache.length < len(tokens):
            remembering.bank.route(versions)
            piece = tokens[cache.length : cache.length + 40]
            logits = remembering.forward(piece.expand(len(versions), -1), cache)
            lengths.append(cache.length)
        for row, version in enumerate(versions):
            remembering.keep(cache, row, version, tokens.tolist())
        return logits, lengths

    def expected(versions: list[int], tokens: Tensor) -> Tensor:
        return torch.stack([logits_of(plain, tokens, version) for version in versions])

    read([0], ids[:-20])  # two blocks
    logits, lengths = read([1], ids)
    assert lengths == [0, 40, 64, 104, 105]  # up to 64 the upper layers alone
    assert torch.equal(logits, expected([1], ids))
    logits, lengths = read([0, 2, 1], ids)  # 0 knows two blocks, 2 none, 1 three
    assert lengths == [0, 40, 80, 96, 105]
    assert torch.equal(logits, expected([0, 2, 1], ids))
    logits, lengths = read([2], ids)
    assert lengths == [96, 105]
    assert torch.equal(logits, expected([2], ids))

    weights = read_adapter(tmp_path / "3", plain.bank.shapes, max_rank=8, dtype=torch.float32)
    for decoder in (remembering, plain):
        assert decoder.bank.install(3, decoder.bank.prepare(weights), keep=0)
    logits, lengths = read([3], ids)  # it changes a layer of what was the trunk
    assert lengths[0] == 0 and lengths[1] == 40
    assert torch.equal(logits, expected([3], ids))
    logits, lengths = read([1], ids)
    assert lengths == [0, 40, 80, 96, 105]
    assert torch.equal(logits, expected([1], ids))
