"""The lean decoder and the general one compute what transformers and PEFT compute, in every shape they take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor

from serve.engine.decoders import KINDS, open_decoder
from serve.engine.general import GeneralDecoder
from serve.engine.llama import LlamaDecoder, LlamaShape
from serve.engine.lora_weights import read_adapter
from serve.engine.native.decoder import NativeDecoder
from serve.engine.static import StaticDecoder
from serve.errors import ModelError
from serve.policy.base import Backbone, load_backbone, resolve_model
from tests import tiny

DECODERS = {"static": StaticDecoder, "native": NativeDecoder, "lean": LlamaDecoder, "general": GeneralDecoder}
SHAPES: dict[str, dict[str, Any]] = {
    "as the default model": {},
    "a head of its own": {"tie_word_embeddings": False},
    "every head its keys": {"num_key_value_heads": 4},
    "one key for all": {"num_key_value_heads": 1},
    "wide heads": {"head_dim": 16},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "another base of angles": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
}


@pytest.fixture(scope="module")
def make_backbone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Backbone]:
    cache = tiny_model / "cache"

    def make(**changes: Any) -> Backbone:
        folder = tmp_path_factory.mktemp("model")
        tiny.write_model(folder, **changes)
        return load_backbone(resolve_model(str(folder), cache), dtype="float32")

    return make


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_ragged_rows_of_several_versions_match_peft_row_by_row(
    make_backbone: Callable[..., Backbone], tmp_path: Path, shape: str, kind: str
) -> None:
    backbone = make_backbone(**SHAPES[shape])
    decoder = open_decoder(backbone, places=4, max_rank=8, kind=kind)
    if shape != "biases":
        assert type(decoder) is DECODERS[kind]
    models: dict[int, Any] = {0: backbone.model}
    for version, (rank, layers) in {1: (4, (2, 3)), 2: (2, (0, 3))}.items():
        folder = tiny.write_adapter(
            tmp_path / str(version), backbone.folder.path, rank=rank, layers=layers, seed=version
        )
        models[version] = PeftModel.from_pretrained(backbone.view(), str(folder))
        weights = read_adapter(folder, decoder.bank.shapes, max_rank=8, dtype=torch.float32)
        assert decoder.bank.install(version, decoder.bank.prepare(weights), keep=0)

    generator = torch.Generator().manual_seed(5)
    rows = [
        (version, torch.randint(3, 200, (length,), generator=generator))
        for version, length in ((2, 7), (0, 19), (1, 2))
    ]
    for packed in (False, True):
        slots = decoder.slots()
        for version, ids in rows:
            cache = decoder.prompt([0], ids.tolist())
            decoder.bank.route([version])
            for chunk in ids.split(4):
                logits = decoder.forward(chunk[None], cache)
            _close(logits[0], models[version](input_ids=ids[None]).logits[0, -1], kind)
            slots.adopt(cache, 0)
        decoder.bank.route([version for version, _ in rows])
        follow = torch.randint(3, 200, (3, 3), generator=generator)  # (rows, steps)
        for step in range(3):
            logits = decoder.forward(follow[:, step : step + 1], slots)
            for row, (version, ids) in enumerate(rows):
                whole = torch.cat((ids, follow[row, : step + 1]))
                _close(logits[row], models[version](input_ids=whole[None]).logits[0, -1], kind)
        if not packed:
            while decoder.settle():
                pass


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_an_adapter_may_change_some_parts_of_a_linear_each_at_its_own_rank(
    make_backbone: Callable[..., Backbone], tmp_path: Path, kind: str
) -> None:
    """Fused parts lie in panels of 16: these begin and end in the middle of one."""
    backbone = make_backbone()
    decoder = open_decoder(backbone, places=3, max_rank=16, kind=kind)
    folder = tiny.write_adapter(
        tmp_path, backbone.folder.path, rank=7, target_modules=("q_proj", "v_proj", "up_proj"),
        rank_pattern={"v_proj": 12, "up_proj": 3},
    )  # fmt: skip
    weights = read_adapter(folder, decoder.bank.shapes, max_rank=16, dtype=torch.float32)
    assert decoder.bank.install(1, decoder.bank.prepare(weights), keep=0)
    ids = torch.arange(3, 25)
    cache = decoder.prompt([1], ids.tolist())
    decoder.bank.route([1])
    theirs = PeftModel.from_pretrained(backbone.view(), str(folder))(input_ids=ids[None]).logits[0, -1]
    _close(decoder.forward(ids[None], cache)[0], theirs, kind)


def _close(ours: Tensor, theirs: Tensor, kind: str) -> None:
    tolerance = 2e-2 if kind == "native" else 1e-4  # llama.c keeps keys and values as half floats
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
    assert (ours - theirs).abs().mean() < tolerance / 4


def test_what_the_lean_decoder_does_not_compute_goes_to_transformers(make_backbone: Callable[..., Backbone]) -> None:
    stretched = {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}
    assert isinstance(open_decoder(make_backbone(rope_parameters=stretched), places=3, max_rank=8), GeneralDecoder)
    config = make_backbone().config
    assert LlamaShape.read(config) is not None
    assert LlamaShape.read(config | {"model_type": "gpt2"}) is None
    assert LlamaShape.read(config | {"hidden_act": "gelu"}) is None


def test_configurations_of_transformers_4_mean_the_same(make_backbone: Callable[..., Backbone]) -> None:
    config = make_backbone(rope_parameters={"rope_type": "default", "rope_theta": 500.0}).config
    older = {k: v for k, v in config.items() if k != "rope_parameters"} | {"rope_theta": 500.0, "rope_scaling": None}
    assert LlamaShape.read(older) == LlamaShape.read(config)
    llama3 = older | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}
    assert LlamaShape.read(llama3) is None


def test_a_missing_tensor_is_named(make_backbone: Callable[..., Backbone]) -> None:
    from safetensors.torch import load_file, save_file

    folder = make_backbone().folder
    file = folder.path / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.1\.mlp\.up_proj\.weight"):
        open_decoder(load_backbone(resolve_model(str(folder.path), folder.cache)), places=3, max_rank=8)


def test_a_lean_decoder_loads_no_modelling_code(tiny_model: Path) -> None:
    """Those imports are half of a start."""
    import subprocess
    import sys

    code = (
        "import sys; from pathlib import Path; from serve.policy.base import load_backbone, resolve_model;"
        "from serve.engine.local import LocalEngine;"
        f"model = resolve_model({str(tiny_model)!r}, Path({str(tiny_model / 'cache')!r}));"
        "LocalEngine(load_backbone(model)).close(); LocalEngine(load_backbone(model), decoder='lean').close();"
        "heavy = {'transformers.modeling_utils', 'torch.distributed.tensor', 'peft', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr[-500:]
