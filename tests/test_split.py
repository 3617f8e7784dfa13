"""The split backbone gives the whole model's states."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GraniteConfig

from serve.errors import ModelError
from serve.policy.base import load_backbone, resolve_model
from serve.policy.split import Section, boundary, check_split


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
            states = Section(model, start, stop)(states, mask)
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
