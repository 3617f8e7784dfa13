"""Figures held side by side with a peer."""

from __future__ import annotations

import math

import torch

from benchmarks.findings import Findings


def test_figures_agree_once_the_convention_is_switched_and_only_then() -> None:
    ours, theirs = torch.tensor([1.0, 5.0]), torch.tensor([1.0, 2.0])
    found = Findings()
    found.compare("score", ours, theirs)
    assert not found.hold
    found.compare("score", ours, theirs, torch.tensor([True, False]), "the first alone")
    assert found.hold
    found.compare("score", ours, theirs + math.nan, convention="the first alone")
    assert not found.hold and found.rows("PPO")[0].what == "PPO: score"


def test_a_gradient_is_measured_by_its_largest_number_and_must_not_be_zero() -> None:
    small = torch.tensor([1e-6, 2e-6])
    for ours, theirs, hold in (
        (small, small * 1.00001, True),
        (small, small * 1.001, False),
        (small, torch.zeros(2), False),
        (torch.zeros(2), torch.zeros(2), False),
    ):
        found = Findings()
        found.compare_gradient("loss", ours, theirs)
        assert found.hold == hold


def test_agreement_counts_only_where_its_cases_occurred() -> None:
    found = Findings()
    found.occurs("ends early", torch.tensor([True, False]), least=2)
    assert not found.hold
    found.occurs("ends early", torch.tensor([True]), least=2)
    [row] = found.rows("PPO")
    assert found.hold and (row.ours, row.unit) == (2, "of 3")
