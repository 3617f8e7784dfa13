from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from serve.engine.decoders import open_decoder
from serve.engine.lora_bank import BankLinear, LoraBank, Routing
from serve.engine.lora_weights import LoraWeights, read_adapter
from serve.errors import AdapterError
from serve.policy.base import load_backbone, resolve_model

SHAPES = {"q": (6, 4)}


@pytest.fixture(scope="module")
def shapes(tiny_model: Path) -> dict[str, tuple[int, int]]:
    backbone = load_backbone(resolve_model(str(tiny_model), tiny_model / "cache"), dtype="float32")
    return open_decoder(backbone, places=3, max_rank=8).bank.shapes


@pytest.fixture(scope="module")
def pristine(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model, rank=4)


@pytest.fixture
def adapter(pristine: Path, tmp_path: Path) -> Path:
    """One to break."""
    return Path(shutil.copytree(pristine, tmp_path / "adapter"))


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture
def bank() -> Iterator[LoraBank]:
    """Of one linear, 4 → 6."""
    with torch.inference_mode():
        bank = LoraBank(places=3, max_rank=8, dtype=torch.float32, device=torch.device("cpu"))
        bank.add({"q": torch.randn(6, 4)}, torch.randn(6))
        yield bank


@pytest.fixture
def linear(bank: LoraBank) -> BankLinear:
    (linear,) = bank.linears
    assert isinstance(linear, BankLinear)
    return linear


def _lora(rank: int, seed: int) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights({"q": (torch.randn(rank, 4, generator=generator), torch.randn(6, rank, generator=generator))})


def _expected(linear: BankLinear, x: Tensor, lora: LoraWeights | None) -> Tensor:
    out = F.linear(x, linear.weight, linear.bias)
    if lora is None:
        return out
    a, b = lora.layers["q"]
    return out + x @ a.T @ b.T


def _read(folder: Path, shapes: dict[str, tuple[int, int]], max_rank: int = 8) -> LoraWeights:
    return read_adapter(folder, shapes, max_rank=max_rank, dtype=torch.float32)


def _edit_config(folder: Path, **options: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


def _edit_tensors(folder: Path, edit: dict[str, Tensor], drop: tuple[str, ...] = ()) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path) | edit
    save_file({name: t for name, t in tensors.items() if name not in drop}, path)


def test_each_row_is_answered_by_its_own_adapter_whatever_its_rank(bank: LoraBank, linear: BankLinear) -> None:
    one, two = _lora(2, seed=1), _lora(5, seed=2)
    assert bank.install(1, bank.prepare(one), keep=0)
    assert bank.install(2, bank.prepare(two), keep=0)
    bank.route([2, 0, 1])
    x = torch.randn(3, 2, 4)
    expected = torch.stack([_expected(linear, row, lora) for row, lora in zip(x, (two, None, one), strict=True)])
    torch.testing.assert_close(linear(x), expected)


@pytest.mark.parametrize(("version", "seed"), [(1, 1), (2, 2)])
def test_a_batch_of_one_version_takes_the_path_without_gather(
    bank: LoraBank, linear: BankLinear, version: int, seed: int
) -> None:
    for installed in (1, 2):
        bank.install(installed, bank.prepare(_lora(installed + 1, seed=installed)), keep=0)
    bank.route([version, version])
    x = torch.randn(2, 3, 4)
    torch.testing.assert_close(linear(x), _expected(linear, x, _lora(version + 1, seed)))


def test_no_memory_is_taken_before_an_adapter_touches_a_linear(bank: LoraBank, linear: BankLinear) -> None:
    assert linear.stack is None
    bank.install(1, bank.prepare(_lora(2, seed=1)), keep=0)
    assert linear.stack is not None
    assert linear.stack.a.shape == (2, 2, 4)


def test_the_least_recently_used_idle_version_gives_up_its_place(bank: LoraBank) -> None:
    bank.install(1, bank.prepare(_lora(2, seed=1)), keep=0)
    bank.install(2, bank.prepare(_lora(2, seed=2)), keep=0)
    bank.acquire(1)  # now 2 is the one used longest ago
    bank.release(1)
    assert bank.install(3, bank.prepare(_lora(3, seed=3)), keep=0)
    assert [bank.is_resident(v) for v in (0, 1, 2, 3)] == [True, True, False, True]


def test_what_serves_and_what_has_requests_in_flight_is_not_evicted(bank: LoraBank) -> None:
    bank.install(1, bank.prepare(_lora(2, seed=1)), keep=0)
    bank.install(2, bank.prepare(_lora(2, seed=2)), keep=0)
    bank.acquire(2)
    assert not bank.install(3, bank.prepare(_lora(2, seed=3)), keep=1)
    assert bank.is_resident(1)
    assert bank.is_resident(2)
    bank.release(2)
    assert bank.install(3, bank.prepare(_lora(2, seed=3)), keep=1)
    assert not bank.is_resident(2)


def test_a_place_keeps_nothing_of_the_version_before(bank: LoraBank, linear: BankLinear) -> None:
    bank.install(1, bank.prepare(_lora(8, seed=1)), keep=0)
    bank.install(2, bank.prepare(_lora(2, seed=2)), keep=0)
    bank.install(3, bank.prepare(_lora(1, seed=3)), keep=0)  # into the place of 1, with a lower rank
    bank.route([3, 2])
    x = torch.randn(2, 1, 4)
    expected = torch.stack([_expected(linear, row, _lora(r, s)) for row, r, s in zip(x, (1, 2), (3, 2), strict=True)])
    torch.testing.assert_close(linear(x), expected)


def test_weights_are_replaced_in_place_only_while_unused(bank: LoraBank, linear: BankLinear) -> None:
    bank.install(1, bank.prepare(_lora(2, seed=1)), keep=0)
    bank.acquire(1)
    assert not bank.install(1, bank.prepare(_lora(2, seed=9)), keep=0)
    bank.release(1)
    assert bank.install(1, bank.prepare(_lora(2, seed=9)), keep=0)
    bank.route([1])
    x = torch.randn(1, 1, 4)
    torch.testing.assert_close(linear(x), _expected(linear, x, _lora(2, seed=9)))


def test_parts_of_a_fused_linear_keep_their_own_adapters() -> None:
    x, bias = torch.randn(2, 3, 4), torch.randn(8)
    q, k, v = torch.randn(4, 4), torch.randn(2, 4), torch.randn(2, 4)
    bank = LoraBank(places=3, max_rank=8, dtype=torch.float32, device=torch.device("cpu"))
    linear = bank.add({"q": q, "k": k, "v": v}, bias)
    assert bank.shapes == {"q": (4, 4), "k": (2, 4), "v": (2, 4)}
    both = LoraWeights({"q": (torch.randn(3, 4), torch.randn(4, 3)), "v": (torch.randn(1, 4), torch.randn(2, 1))})
    lone = LoraWeights({"k": (torch.randn(2, 4), torch.randn(2, 2))})
    bank.install(1, bank.prepare(both), keep=0)
    bank.install(2, bank.prepare(lone), keep=0)
    for routed in ([1, 2], [1, 1], [2, 2], [0, 1]):
        bank.route(routed)
        for row, version in enumerate(routed):
            layers = {0: {}, 1: both.layers, 2: lone.layers}[version]
            expected = [
                F.linear(x[row], w) + (x[row] @ layers[n][0].T @ layers[n][1].T if n in layers else 0)
                for n, w in (("q", q), ("k", k), ("v", v))
            ]
            torch.testing.assert_close(linear(x)[row], torch.cat(expected, dim=-1) + bias)


@pytest.mark.parametrize("shape", [(1, 1, 40), (2, 1, 40), (5, 3, 40), (1, 400, 40)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("release", [True, False])
def test_the_packed_weight_computes_what_the_plain_one_does(shape: tuple[int, ...], bias: bool, release: bool) -> None:
    linear = nn.Linear(40, 24, bias=bias).requires_grad_(False)
    packed = BankLinear({"up": linear.weight[:10], "down": linear.weight[10:]}, linear.bias, Routing())
    x = torch.randn(*shape)
    with torch.inference_mode():
        torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)
        packed.pack(release=release)
        torch.testing.assert_close(packed(x), linear(x), rtol=1e-5, atol=1e-5)
    assert bool(packed.weights) != release


def test_the_scaling_is_alpha_over_r_or_over_its_root(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    name = "model.layers.2.self_attn.q_proj"
    stored = load_file(adapter / "adapter_model.safetensors")[f"base_model.model.{name}.lora_B.weight"]
    torch.testing.assert_close(_read(adapter, shapes).layers[name][1], stored * 8 / 4)
    _edit_config(adapter, use_rslora=True)
    torch.testing.assert_close(_read(adapter, shapes).layers[name][1], stored * 8 / math.sqrt(4))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"use_dora": True}, "use_dora"),
        ({"bias": "all"}, "bias"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"peft_type": "IA3"}, "LoRA"),
        ({"r": 3}, "rank 4"),
    ],
)
def test_an_option_that_cannot_serve_is_refused_by_name(
    adapter: Path, shapes: dict[str, tuple[int, int]], options: dict[str, object], named: str
) -> None:
    _edit_config(adapter, **options)
    with pytest.raises(AdapterError, match=named):
        _read(adapter, shapes)


Q2 = "base_model.model.model.layers.2.self_attn.q_proj"


@pytest.mark.parametrize(
    ("edit", "drop", "named"),
    [
        ({f"{Q2}.lora_A.weight": torch.ones(4, 31)}, (), r"layers\.2\.self_attn\.q_proj.*\(4, 31\)"),
        ({f"{Q2}.lora_B.weight": torch.full((32, 4), math.nan)}, (), r"layers\.2\.self_attn\.q_proj\.lora_B.*NaN"),
        ({f"{Q2}.lora_A.weight": torch.full((4, 32), math.inf)}, (), r"layers\.2\.self_attn\.q_proj\.lora_A.*infinity"),
        ({f"{Q2.replace('2', '9')}.lora_A.weight": torch.ones(4, 32)}, (), r"layers\.9\.self_attn\.q_proj"),
        ({"base_model.model.lm_head.weight": torch.ones(2, 2)}, (), r"lm_head\.weight"),
        ({}, (f"{Q2}.lora_B.weight",), r"layers\.2\.self_attn\.q_proj.*other half"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused_by_name(
    adapter: Path, shapes: dict[str, tuple[int, int]], edit: dict[str, Tensor], drop: tuple[str, ...], named: str
) -> None:
    _edit_tensors(adapter, edit, drop)
    with pytest.raises(AdapterError, match=named):
        _read(adapter, shapes)


def test_a_rank_above_the_limit_is_refused(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    with pytest.raises(AdapterError, match="rank 4; the largest allowed is 2"):
        _read(adapter, shapes, max_rank=2)


def test_missing_and_broken_files_are_refused_by_name(adapter: Path, shapes: dict[str, tuple[int, int]]) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterError, match=r"adapter_model\.safetensors is not a readable"):
        _read(adapter, shapes)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(AdapterError, match=r"no adapter_model\.safetensors"):
        _read(adapter, shapes)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterError, match=r"adapter_config\.json cannot be read"):
        _read(adapter, shapes)
    (adapter / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
        _read(adapter, shapes)
