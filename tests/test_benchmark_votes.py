"""The study of what a vote is worth."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.reading import Answers
from serve.policy.base import load_backbone, resolve_model
from tests.run_scenes import write_snapshot
from training.config import RewardConfig
from training.pairs import Pairs
from training.preferences import read_snapshot
from training.reward import fit_head_of, fit_reward, known_of, ranked_answers, ranked_sequences
from training.roles import FrozenLayers, LoraShape
from training.scorer import Scorer, doubt


def test_the_study_of_votes_reads_answers_and_fits_heads_as_a_run_does(tiny_model: Path, tmp_path: Path) -> None:
    backbone = load_backbone(resolve_model(str(tiny_model), tmp_path / "cache"), dtype="float32")
    write_snapshot(tmp_path / "snapshot.db", votes=30)
    lengths = random.Random(0)  # some shorter than the windows of first and latest tokens
    rankings = [
        replace(ranked, answers=tuple(answer[: lengths.randint(2, 20)] for answer in ranked.answers))
        for ranked in read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings
    ]
    shape, config = LoraShape(3, 4, 8), RewardConfig()
    frozen = FrozenLayers(backbone, 2, 3)
    fitted = fit_reward(
        rankings, backbone=backbone, frozen=frozen, shape=shape, config=config, micro_batch_tokens=128, seed=0,
        progress=lambda step, done, metrics: None,
    )  # fmt: skip
    sequences = ranked_sequences(rankings)
    expected = fitted.scorer.all_values(frozen(sequences, 128), sequences, 128)[1]

    scorer = Scorer(backbone, shape, seed=0)
    answers = Answers(frozen, scorer, 128)
    prompts, texts = ranked_answers(rankings)
    answers.summaries(prompts[5:9], texts[5:9])  # read before: must be found again
    features = scorer.standardise(answers.summaries(prompts, texts))
    pairs = Pairs.of(rankings, config.max_voter_share)
    head = fit_head_of(features, pairs)[0]
    found = features @ head.float() - config.caution * doubt(features, known_of(features, pairs, head))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
