"""Finding and loading the backbone; what is wrong with a model is said in a sentence."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from serve.engine.decoders import KINDS, open_decoder
from serve.errors import ModelError
from serve.policy import base, memory
from serve.policy.base import load_backbone, resolve_model


def test_a_folder_is_its_own_canonical_weights_and_its_hash_is_theirs(tiny_model: Path, tmp_path: Path) -> None:
    found = resolve_model(str(tiny_model), tmp_path / "cache")
    assert found.path == tiny_model.resolve()
    copied = tmp_path / "copy"
    shutil.copytree(tiny_model, copied)
    assert resolve_model(str(copied), tmp_path / "cache").hash == found.hash
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert resolve_model(str(copied), tmp_path / "cache").hash != found.hash


@pytest.mark.parametrize(
    ("source", "fix"),
    [("./nowhere", "config.json"), ("/nowhere/at/all", "config.json"), ("nowhere.gguf", "--model")],
)
def test_a_missing_model_names_the_fix(source: str, fix: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=fix):
        resolve_model(source, tmp_path)


def test_a_folder_without_weights_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="safetensors"):
        resolve_model(str(tmp_path), tmp_path / "cache")


def test_a_broken_gguf_leaves_nothing_behind(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF but not really")
    with pytest.raises(ModelError, match="not a readable GGUF"):
        resolve_model(str(broken), tmp_path / "cache")
    assert not list((tmp_path / "cache" / "models").iterdir())


def test_truncated_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copy"
    shutil.copytree(tiny_model, copied)
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match="copy"):
        _ = load_backbone(resolve_model(str(copied), tmp_path / "cache")).model
    with pytest.raises(ModelError, match="copy"):
        load_backbone(resolve_model(str(copied), tmp_path / "cache")).weights()


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_that_does_not_fit_is_refused_before_its_weights_are_read(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: memory.BESIDE + 1000)
    monkeypatch.setattr("safetensors.torch.load_file", None)
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path))
    sentence = r"tiny-model\d* needs about 0\.5 GiB and 0\.5 GiB are free; choose a smaller --model or free memory"
    with pytest.raises(ModelError, match=sentence):
        open_decoder(backbone, places=3, max_rank=8, kind=kind)


def test_expanding_a_gguf_asks_for_memory_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_memory", lambda _: 2**29)
    with pytest.raises(ModelError, match=r"expanding SmolLM2.* needs about 1\.5 GiB and 0\.5 GiB are free"):
        resolve_model("default", tmp_path)


@pytest.mark.parametrize(
    ("files", "free"),
    [
        ({}, sys.maxsize),
        ({"proc/meminfo": "MemTotal: 9 kB\nMemAvailable:    5 kB\n"}, 5 * 1024),
        (
            {
                "proc/meminfo": "MemAvailable: 5 kB\n",
                "proc/self/cgroup": "4:memory:/old\n0::/system.slice/hustings.service\n",
                "sys/fs/cgroup/system.slice/memory.max": "4000\n",
                "sys/fs/cgroup/system.slice/memory.stat": "anon 1000\nfile 3000\n",
                "sys/fs/cgroup/system.slice/hustings.service/memory.max": "max\n",
            },
            3000,
        ),
        (
            {
                "proc/self/cgroup": "0::/docker/seen-only-from-outside\n",
                "sys/fs/cgroup/memory.max": "1000\n",
                "sys/fs/cgroup/memory.stat": "anon 2000\n",
            },
            0,
        ),
    ],
)
def test_free_memory_is_the_kernels_or_the_cgroups_whichever_is_less(
    files: dict[str, str], free: int, tmp_path: Path
) -> None:
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert memory.available_memory(torch.device("cpu"), tmp_path) == free


def test_a_gpu_is_taken_where_it_is_asked_for_and_holds_the_model(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**28, 2**33))
    model = resolve_model(str(tiny_model), tmp_path)
    assert load_backbone(model).device.type == "cpu"
    backbone = load_backbone(model, device="auto")
    assert (backbone.device.type, backbone.dtype) == ("cuda", torch.bfloat16)
    with pytest.raises(ModelError, match=r"0\.2 GiB are free; .* CUDA_VISIBLE_DEVICES= to use the processor"):
        open_decoder(backbone, places=3, max_rank=8)


def test_the_default_model_missing_says_make_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "DEFAULT_MODEL_PACKAGE", "no_such_package_here")
    with pytest.raises(ModelError, match="make install"):
        resolve_model("default", tmp_path)


def test_a_view_shares_tensors_and_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path))
    view = backbone.view()
    ours, theirs = dict(backbone.model.named_parameters()), dict(view.named_parameters())
    assert all(ours[name] is theirs[name] for name in ours)
    view.model.layers[0].self_attn.q_proj = torch.nn.Identity()
    assert isinstance(backbone.model.model.layers[0].self_attn.q_proj, torch.nn.Linear)
    assert not any(p.requires_grad for p in ours.values())
    assert backbone.eos_token_ids == {2}
    assert backbone.context_length == 1024
