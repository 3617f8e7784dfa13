"""Answers that share a row with others to the same prompt."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from serve.policy.base import load_backbone, resolve_model
from training.roles import FrozenLayers, LoraShape
from training.scorer import Scorer
from training.sequences import Sequences
from training.shared_prompts import ROW_ANSWERS, ROW_TOKENS, rows_by_prompt
from training.split import GeneralSection
from training.summaries import Summaries


def some(*answers: tuple[int, int, int]) -> Sequences:
    """Answers of random tokens, each by the number of its prompt, the prompt's tokens and its own."""
    rng = random.Random(0)
    prompts = {number: [rng.randrange(3, 250) for _ in range(size)] for number, size, _ in answers}
    return Sequences.of(
        [prompts[number] for number, _, _ in answers],
        [[rng.randrange(3, 250) for _ in range(size)] for *_, size in answers],
    )


@pytest.mark.parametrize("general", [False, True], ids=["our layers", "transformers' own"])
def test_an_answer_is_read_as_in_a_row_of_its_own(
    general: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if general:
        for module in ("roles", "scorer"):
            monkeypatch.setattr(f"training.{module}.open_section", GeneralSection)
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path), dtype="float32")
    frozen, scorer = FrozenLayers(backbone, 2, 3), Scorer(backbone, LoraShape(3, 4, 8), seed=0)
    sequences = some((0, 30, 9), (1, 5, 20), (0, 30, 1), (2, 12, 40), (1, 5, 7), (0, 30, 25))
    with torch.no_grad():
        alone = Summaries.of(scorer.depths(*frozen.states(sequences), sequences), sequences.answer_mask)
    for tokens in (64, 4096):
        shared = scorer.summarise(frozen, sequences, tokens)
        for name, expected in vars(alone).items():
            torch.testing.assert_close(getattr(shared, name), expected, atol=2e-5, rtol=1e-4, msg=name)


def test_a_prompt_is_read_once_for_as_many_answers_as_fit() -> None:
    rows, lengths = rows_by_prompt(some((0, 100, 50), (1, 10, 20), (0, 100, 60), (1, 10, 30)))
    assert (rows, lengths.tolist()) == ([[0, 2], [1, 3]], [210, 60])
    rows, lengths = rows_by_prompt(
        some(*[(0, 100, 100)] * 9, (1, 700, 10), (1, 700, 10), (2, 1500, 300), (2, 1500, 300))
    )
    assert rows == [[0, 1, 2, 3], [4, 5, 6, 7], [8], [9, 10], [11], [12]]
    assert lengths[:3].max() <= ROW_TOKENS
    rows, _ = rows_by_prompt(some(*[(0, 10, 1)] * 20))
    assert [len(row) for row in rows] == [ROW_ANSWERS, ROW_ANSWERS, 4]
