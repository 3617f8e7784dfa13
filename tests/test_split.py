"""The split backbone gives the whole model's states."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from serve.policy.base import load_backbone, resolve_model
from serve.policy.split import Section, boundary


@pytest.mark.parametrize(("layers", "adapted", "expected"), [(30, None, 20), (4, None, 3), (30, 99, 0), (30, 12, 18)])
def test_the_boundary_leaves_the_adapted_layers_on_top(layers: int, adapted: int | None, expected: int) -> None:
    assert boundary(layers, adapted) == expected


@pytest.mark.parametrize("cuts", [(0, 4), (0, 2, 4), (0, 1, 3, 4)])
def test_sections_in_a_row_are_bit_equal_to_the_whole(cuts: tuple[int, ...], tiny_model: Path, tmp_path: Path) -> None:
    model = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32").model
    states = torch.tensor([[40, 41, 42, 43], [50, 51, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    with torch.no_grad():
        whole = model.base_model(input_ids=states, attention_mask=mask).last_hidden_state
        for start, stop in itertools.pairwise(cuts):
            states = Section(model, start, stop)(states, mask)
    assert torch.equal(states[mask.bool()], whole[mask.bool()])
