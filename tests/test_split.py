"""The split backbone gives the whole model's states."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from serve.errors import ModelError
from serve.policy.base import load_backbone, resolve_model
from tests.tiny import write_model
from training.llama_section import LlamaSection
from training.roles import LoraShape, with_lora
from training.split import GeneralSection, Section, boundary, check_split, open_section


@pytest.mark.parametrize(("layers", "adapted", "expected"), [(30, None, 20), (4, None, 3), (30, 99, 0), (30, 12, 18)])
def test_the_boundary_leaves_the_adapted_layers_on_top(layers: int, adapted: int | None, expected: int) -> None:
    assert boundary(layers, adapted) == expected


@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 3, 4), (0, 0, 4)])
def test_sections_in_a_row_are_bit_equal_to_the_whole(cuts: tuple[int, ...], tiny_model: Path, tmp_path: Path) -> None:
    model = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32").model
    states = torch.tensor([[40, 41, 42, 43], [50, 51, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        whole = model.base_model(input_ids=states, attention_mask=mask).last_hidden_state
        for start, stop in itertools.pairwise(cuts):
            states = GeneralSection(model, start, stop)(states, mask)
    assert torch.equal(states[mask.bool()], whole[mask.bool()])


def test_a_model_whose_sections_are_not_the_whole_is_refused_by_name(tiny_model: Path, tmp_path: Path) -> None:
    check_split(load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32").model, [0, 1, 3, 4])
    check_split(load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="bfloat16").model, [0, 1, 3, 4])
    config = GraniteConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        embedding_multiplier=2.0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        granite = AutoModelForCausalLM.from_config(config).eval()
    check_split(granite, [0, 2])
    with pytest.raises(ModelError, match="granite"):
        check_split(granite, [0, 1, 2])


def by_hand_and_by_modules(model: Any, start: int, stop: int) -> tuple[Section, Section]:
    found = open_section(model, start, stop)
    assert isinstance(found, LlamaSection)
    return found, GeneralSection(model, start, stop)


@pytest.mark.parametrize("cut", [0, 2, 4])
def test_a_llamas_sections_by_hand_are_those_of_its_modules(cut: int, tiny_model: Path, tmp_path: Path) -> None:
    model = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32").model
    tokens, mask = torch.tensor([[40, 41, 42, 43], [50, 51, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    states = [section(tokens, mask) for section in by_hand_and_by_modules(model, 0, cut)]
    for _ in range(2):
        torch.testing.assert_close(states[0][mask.bool()], states[1][mask.bool()], atol=1e-5, rtol=1e-4)
        states = [s(states[0], mask) for s in by_hand_and_by_modules(model, cut, 4)]


def test_texts_packed_into_one_row_do_not_see_each_other(tiny_model: Path, tmp_path: Path) -> None:
    model = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32").model
    tokens, positions = torch.tensor([[40, 41, 42, 43, 44]]), torch.tensor([[0, 1, 2, 0, 1]])
    text = torch.tensor([0, 0, 0, 1, 1])
    mask = ((text[:, None] == text) & torch.ones(5, 5, dtype=torch.bool).tril())[None, None]
    by_hand, by_modules = (s(tokens, mask, positions) for s in by_hand_and_by_modules(model, 0, 4))
    torch.testing.assert_close(by_hand, by_modules, atol=1e-5, rtol=1e-4)
    alone = open_section(model, 0, 4)(tokens[:, 3:], torch.ones(1, 2, dtype=torch.long))
    torch.testing.assert_close(by_hand[:, 3:], alone, atol=1e-5, rtol=1e-4)


def test_gradients_by_hand_are_those_of_the_modules(tiny_model: Path, tmp_path: Path) -> None:
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32")
    model = with_lora(backbone, LoraShape(1, 4, 8), seed=0)
    generator = torch.Generator().manual_seed(1)
    lora = [p for p in model.parameters() if p.requires_grad]
    with torch.no_grad():
        for weight in lora:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    states = torch.randn(2, 6, 32, generator=generator).requires_grad_()
    pull = torch.randn(2, 6, 32, generator=generator) * mask[..., None]
    found = []
    for section in by_hand_and_by_modules(model.get_base_model(), 1, 4):
        result = section(states, mask)
        found.append(torch.autograd.grad((result * pull).sum(), [states, *lora]))
    for ours, expected in zip(*found, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-3)


def test_other_families_run_by_their_own_modules(tmp_path: Path) -> None:
    write_model(tmp_path / "biased", attention_bias=True)
    model = load_backbone(resolve_model(str(tmp_path / "biased"), tmp_path), dtype="float32").model
    assert isinstance(open_section(model, 0, 4), GeneralSection)
