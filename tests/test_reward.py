"""The reward model: pairs, loss, fold models, and what it can and cannot learn."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve.feedback.statistics import wilson
from serve.policy.base import Backbone, load_backbone, resolve_model
from tests.run_scenes import write_snapshot
from training.config import RewardConfig
from training.pairs import Pairs
from training.preferences import Ranked, folds_by_prompt, folds_by_voter, read_snapshot
from training.reward import (
    RewardFit,
    accuracy_of,
    batch_pull,
    bradley_terry_loss,
    calibration,
    centring_loss,
    fit_head_of,
    fit_reward,
    judged,
    ranked_sequences,
)
from training.roles import FrozenLayers, LoraShape
from training.scorer import HEAD_FILE, doubt
from training.sequences import Sequences

NEAR = LoraShape(3, 4, 8)


def ranked(groups: tuple[int, ...], *, prompt: int = 0, strength: int | None = None, voter: str = "v") -> Ranked:
    answers = tuple((10 + i, 2) for i in range(len(groups)))
    count = len(groups)
    return Ranked(prompt, voter, (prompt,), answers, groups, tuple(range(count)), ("stop",) * count, strength)


def test_a_ranking_of_three_weighs_one_and_orders_every_two() -> None:
    pairs = Pairs.of([ranked((0, 1, 1)), ranked((0, 1))], 0.5)
    assert list(zip(pairs.better.tolist(), pairs.worse.tolist(), pairs.target.tolist(), strict=True)) == [
        (0, 1, 1.0),
        (0, 2, 1.0),
        (1, 2, 0.5),
        (3, 4, 1.0),
    ]
    torch.testing.assert_close(pairs.weight, torch.tensor([1 / 3, 1 / 3, 1 / 3, 1.0]))


def test_no_voter_outweighs_the_others_in_a_fit_or_in_a_batch() -> None:
    busy, quiet, rare = [ranked((0, 1), voter=v) for v in ("busy", "quiet", "rare")]
    pairs = Pairs.of([*[busy] * 6, quiet, rare, ranked((0, 1, 2), voter="rare")], 0.5)
    shares = torch.zeros(3).scatter_add(0, pairs.voter, pairs.pull) / pairs.pull.sum()
    torch.testing.assert_close(shares, torch.tensor([1 / 2, 1 / 6, 1 / 3]))
    assert pairs.weight.sum() == pytest.approx(9)  # judged, each vote counts as one
    batch = pairs.where(pairs.ranking >= 4)  # two of the busy voter's, and three more
    pull = batch_pull(batch, 0.4)
    assert pull[batch.voter == 0].sum() / pull.sum() == pytest.approx(0.4)
    two = pairs.where(pairs.ranking < 7)
    assert torch.equal(batch_pull(two, 0.4), two.pull), "with two voters as in the whole: the busy one stays bounded"


def test_what_the_first_place_explains_the_head_need_not() -> None:
    """Two voters in three take whatever stands first; the third prefers more of feature 0."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(600, 20, generator=generator) / 20**0.5
    votes, rows = [], []
    for i in range(300):
        left, right = 2 * i, 2 * i + 1
        first = i % 3 < 2 or bool(features[left, 0] > features[right, 0])
        votes.append(replace(ranked((0, 1), voter=f"v{i % 3}"), positions=(0, 1) if first else (1, 0)))
        rows += [left, right] if first else [right, left]
    pairs = Pairs.of(votes, 1.0)
    head, leanings = fit_head_of(features[rows], pairs)
    assert leanings[0] > 2 and leanings[1] > 2 and abs(leanings[2]) < 0.5
    blind, _ = fit_head_of(features[rows], replace(pairs, side=torch.zeros_like(pairs.side)))
    truth = torch.zeros(20)
    truth[0] = 1.0
    aligned = [float(torch.cosine_similarity(found.float(), truth, 0)) for found in (head, blind)]
    assert aligned[0] > 0.9 > aligned[1]


def test_a_voter_of_three_votes_is_given_no_leaning_and_thousands_of_judges_cost_nothing() -> None:
    features = torch.randn(8000, 6, generator=torch.Generator().manual_seed(0))
    votes = [replace(ranked((0, 1), voter="left"), positions=(0, 1))] * 4
    votes += [replace(ranked((0, 1), voter="few"), positions=(0, 1))] * 3
    imported = [replace(ranked((0, 1), voter=f"judge {i}"), positions=(-1, -1)) for i in range(3993)]
    start = time.perf_counter()
    _, leanings = fit_head_of(features, Pairs.of([*votes, *imported], 1.0))
    assert time.perf_counter() - start < 5, "a system of as many rows as judges takes minutes"
    assert leanings[0] > 0 and not leanings[1:].any()


def test_the_loss_by_hand() -> None:
    loss = bradley_terry_loss(
        torch.tensor([1.0, 0.0]),
        torch.tensor([0.0, 0.0]),
        torch.tensor([1.0, 0.5]),
        torch.tensor([1.0, 3.0]),
        torch.tensor([0.5, 0.0]),
    )
    expected = (1.0 * math.log(1 + math.exp(-0.5)) + 3.0 * math.log(2)) / 4
    assert loss.item() == pytest.approx(expected)
    centring = centring_loss(torch.tensor([1.0, 0.5]), torch.tensor([-1.0, 1.0]), torch.tensor([1.0, 3.0]))
    assert centring.item() == pytest.approx(3.0 * 1.5**2 / 4)


@pytest.mark.parametrize(
    ("prompts", "right", "independent"),
    [
        (range(60), range(40), 60),  # each on a prompt of its own: Wilson's interval of 40 of 60
        ([0] * 20 + [1] * 20 + [2] * 20, range(40), 3),  # 20 on each of three, right or wrong together
        ([0] * 20 + [1] * 20 + [2] * 20, range(60), 3),
        ([0, 1, 2] * 20, range(50), 3),  # three prompts cannot tell that votes on one go together
        ([0, 1, 2, 3, 4, 5] * 10, range(50), 60),
        ([0, 1, 2, 3, 4, 5] * 10, [i for i in range(60) if i % 6 < 4], 6 * 50 / 59),  # right on all of four prompts
    ],
)
def test_votes_on_one_prompt_do_not_count_as_independent(
    prompts: Sequence[int], right: Sequence[int], independent: float
) -> None:
    pairs = Pairs.of([ranked((0, 1), prompt=prompt) for prompt in prompts], 1.0)
    logits = torch.tensor([1.0 if i in right else -1.0 for i in range(60)])
    found, share = accuracy_of(pairs, logits), len(right) / 60
    expected = wilson(share * independent, independent)
    assert (found["value"], found["low"], found["high"]) == pytest.approx((share, expected.low, expected.high))
    assert (found["comparisons"], found["prompts"]) == (60, len(set(prompts)))


def test_the_report_tells_accuracy_by_place_length_and_end() -> None:
    """Four votes by hand, each answer a row; the model is right on the first two."""
    votes = [
        replace(ranked((0, 1), prompt=0, voter="ann"), positions=(0, 1), finish_reasons=("stop", "stop")),
        replace(ranked((0, 1), prompt=1, voter="ann"), positions=(1, 0), finish_reasons=("length", "stop")),
        replace(ranked((0, 1), prompt=2, voter="bob"), positions=(1, 0), finish_reasons=("length", "length")),
        replace(ranked((0, 1), prompt=3, voter="bob"), positions=(-1, -1), finish_reasons=("stop", "length")),
    ]
    lengths = torch.tensor([9, 3, 9, 3, 4, 8, 5, 5])
    scores = torch.stack([lengths.float(), 3 * lengths.float()], 1)  # of two fold models, who like length
    logits = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    found = judged(votes, ["ann", "bob"], Pairs.of(votes, 1.0), logits, scores, lengths)

    def told(section: str) -> dict[str, tuple[float, float]]:
        return {name: (figures["value"], figures["comparisons"]) for name, figures in found[section].items()}

    assert told("by_voter") == {"ann": (1.0, 2), "bob": (0.0, 2)}
    assert told("by_position") == {"left_won": (1.0, 1), "right_won": (0.5, 2)}
    assert told("by_finish") == {"both_capped": (0.0, 1), "one_capped": (0.5, 2), "others": (1.0, 1)}
    assert told("by_length") == {"longer_won": (1.0, 2), "shorter_won": (0.0, 1)}
    assert found["length_correlation"] == pytest.approx(1.0)
    apart = torch.tensor([[6.0, 18.0], [6.0, 18.0], [-4.0, -12.0], [0.0, 0.0]])
    assert found["fold_spread"] == pytest.approx(float(apart.std(1).mean()))


def test_what_is_not_known_is_half_right() -> None:
    pairs = Pairs.of([ranked((0, 1), prompt=i) for i in range(10)], 1.0)
    assert accuracy_of(pairs, torch.zeros(10))["value"] == 0.5


def test_calibration_says_what_was_claimed_and_what_came_true() -> None:
    pairs = Pairs.of([ranked((0, 1), prompt=i) for i in range(8)] + [ranked((0, 0), prompt=9)], 1.0)
    sure, barely = math.log(0.95 / 0.05), math.log(0.55 / 0.45)
    logits = torch.tensor([sure] * 3 + [-sure] + [barely] * 2 + [-barely] * 2 + [sure]).double()
    assert calibration(pairs, logits) == [
        {"said": pytest.approx(0.55), "right": 0.5, "pairs": 4},
        {"said": pytest.approx(0.95), "right": 0.75, "pairs": 4},
    ]


def test_calibration_counts_a_comparison_once_and_what_is_not_known_half() -> None:
    pairs = Pairs.of([ranked((0, 1)), ranked((0, 1, 2), prompt=1)], 1.0)
    assert calibration(pairs, torch.tensor([1.0, -1.0, -1.0, -1.0]).double()) == [
        {"said": pytest.approx(0.731, abs=1e-3), "right": pytest.approx(0.5), "pairs": 4}
    ]
    assert calibration(pairs, torch.zeros(4).double()) == [{"said": 0.5, "right": pytest.approx(0.5), "pairs": 4}]


def test_epochs_are_not_asked_for_what_the_place_explains() -> None:
    votes = [replace(ranked((0, 1), voter=voter), positions=shown) for voter in "ab" for shown in ((0, 1), (1, 0))]
    votes += [replace(ranked((0, 1), voter="unseen"), positions=(0, 1))]
    pairs = Pairs.of(votes, 1.0).without(torch.tensor([2.0, 0.5]))
    assert pairs.margin.tolist() == [-2.0, 2.0, -0.5, 0.5, 0.0]


def test_a_strong_vote_asks_for_a_wider_gap() -> None:
    features, config = torch.eye(4), RewardConfig(margin=2.0)
    votes = [ranked((0, 1), prompt=0, strength=5), ranked((0, 1), prompt=1)]
    for margin, wider in ((config.margin, True), (0.0, False)):
        head = fit_head_of(features, Pairs.of(votes, 1.0, margin))[0]
        strong, weak = head[0] - head[1], head[2] - head[3]
        assert (strong > weak + 0.3) == wider, margin
    assert Pairs.of([ranked((0, 0), strength=5)], 1.0, 2.0).margin.tolist() == [0.0], "a tie asks for none"


def test_votes_on_one_prompt_share_a_fold_and_so_do_one_voters_votes() -> None:
    votes = [ranked((0, 1), prompt=i % 7) for i in range(30)]
    folds = folds_by_prompt(votes, 3, seed=0)
    assert len({(v.prompt_ids, f) for v, f in zip(votes, folds, strict=True)}) == 7
    assert set(folds) == {0, 1, 2}
    assert set(folds_by_voter(votes, 3, seed=0)) == {0}


@pytest.fixture(scope="module")
def backbone(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(resolve_model(str(tiny_model), tmp_path_factory.mktemp("cache")), dtype="float32")


def fit(backbone: Backbone, path: Path, **votes: object) -> RewardFit:
    write_snapshot(path, **votes)  # type: ignore[arg-type]
    return fit_to(read_snapshot(path, backbone.tokenizer).rankings, backbone)


def fit_to(rankings: Sequence[Ranked], backbone: Backbone, frozen: FrozenLayers | None = None) -> RewardFit:
    return fit_reward(
        rankings,
        backbone=backbone,
        frozen=frozen or FrozenLayers(backbone, 2, 3),
        shape=NEAR,
        config=RewardConfig(layers=1, epochs=1),
        micro_batch_tokens=512,
        seed=1,
        progress=lambda step, done, metrics: None,
    )


def test_it_learns_a_plain_preference_and_survives_its_folder(backbone: Backbone, tmp_path: Path) -> None:
    fitted = fit(backbone, tmp_path / "snapshot.db", votes=50)
    assert fitted.report["accuracy"]["low"] > 0.5
    assert fitted.report["accuracy_on_unseen_voters"]["value"] > 0.7
    fitted.save(tmp_path / "reward")
    again = RewardFit.load(tmp_path / "reward", backbone, NEAR)
    assert again is not None
    for name, tensor in fitted.scorer.tensors().items():
        assert torch.equal(tensor, again.scorer.tensors()[name]), name
    sequences = ranked_sequences(read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings)
    states = FrozenLayers(backbone, 2, 3)(sequences, 512)
    scores = [them.judges.score(states, sequences, 512) for them in (fitted, again)]
    assert torch.equal(*scores)
    (tmp_path / "reward" / "report.json").unlink()  # killed before the end
    assert RewardFit.load(tmp_path / "reward", backbone, NEAR) is None


def test_a_reward_model_of_another_release_is_fitted_anew(backbone: Backbone, tmp_path: Path) -> None:
    fit(backbone, tmp_path / "snapshot.db", votes=6).save(tmp_path / "reward")
    assert RewardFit.load(tmp_path / "reward", backbone, NEAR) is not None
    head = load_file(str(tmp_path / "reward" / HEAD_FILE))
    save_file({**head, "weight": head["weight"][:-1].contiguous()}, str(tmp_path / "reward" / HEAD_FILE))
    assert RewardFit.load(tmp_path / "reward", backbone, NEAR) is None


def test_votes_at_random_do_not_pass_for_a_preference(backbone: Backbone, tmp_path: Path) -> None:
    fitted = fit(backbone, tmp_path / "snapshot.db", votes=40, consistent=False)
    assert fitted.report["accuracy"]["low"] < 0.5


def test_fifty_votes_on_one_prompt_tell_nothing_of_others(backbone: Backbone, tmp_path: Path) -> None:
    write_snapshot(tmp_path / "snapshot.db", votes=50)
    votes = read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings
    fitted = fit_to(
        [replace(vote, prompt_id=votes[0].prompt_id, prompt_ids=votes[0].prompt_ids) for vote in votes], backbone
    )
    assert (fitted.report["accuracy"]["value"], fitted.report["accuracy"]["prompts"]) == (0.5, 1)


def test_with_a_lora_on_all_layers_half_an_answer_is_not_doubted_without_bound(
    backbone: Backbone, tmp_path: Path
) -> None:
    """There the last token's embedding is a feature, and the same in all answers that end."""
    write_snapshot(tmp_path / "snapshot.db", votes=50)
    votes = read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings
    assert all(answer[-1] in backbone.eos_token_ids for vote in votes for answer in vote.answers)
    fitted = fit_to(votes, backbone, FrozenLayers(backbone, 0, 3))
    ended = ranked_sequences(votes)
    broken_off = Sequences.of(
        [v.prompt_ids for v in votes for _ in v.answers], [a[:-1] for v in votes for a in v.answers]
    )
    frozen = FrozenLayers(backbone, 0, 3)
    scores = [fitted.scorer.all_values(frozen(some, 512), some, 512)[1] for some in (ended, broken_off)]
    assert (scores[0] - scores[1]).abs().max() < 20 * scores[0].std()


def test_a_single_vote_tells_nothing_and_breaks_nothing(backbone: Backbone, tmp_path: Path) -> None:
    fitted = fit(backbone, tmp_path / "snapshot.db", votes=1)
    assert fitted.report["accuracy"]["low"] <= 0.5


def test_an_answer_unlike_any_that_was_judged_is_doubted_and_does_not_pay(backbone: Backbone, tmp_path: Path) -> None:
    fitted = fit(backbone, tmp_path / "snapshot.db", votes=50)
    scorer, rankings = fitted.scorer, read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings
    voted = ranked_sequences(rankings)
    strange = Sequences.of([r.prompt_ids for r in rankings], [(7,) * 30 for _ in rankings])  # one byte, over and over
    frozen = FrozenLayers(backbone, 2, 3)
    doubts = []
    for sequences in (voted, strange):
        features = (scorer.all_features(frozen(sequences, 512), sequences, 512) - scorer.mean) / scorer.std
        doubts.append(float(doubt(features, scorer.known).mean()))
        scores = features @ scorer.weight + scorer.bias
        found = scorer.all_values(frozen(sequences, 512), sequences, 512)[1]
        torch.testing.assert_close(found, scores - scorer.caution * doubt(features, scorer.known))
    assert scorer.caution == RewardConfig().caution
    assert doubts[1] > 2 * doubts[0]


def test_the_fold_models_are_as_cautious_as_the_reward_model_and_none_of_it(backbone: Backbone, tmp_path: Path) -> None:
    fitted = fit(backbone, tmp_path / "snapshot.db", votes=50)
    sequences = ranked_sequences(read_snapshot(tmp_path / "snapshot.db", backbone.tokenizer).rankings)
    states = FrozenLayers(backbone, 2, 3)(sequences, 512)
    untrained = fitted.judges.untrained
    features = (untrained.all_features(states, sequences, 512) - untrained.mean) / untrained.std
    by_hand = torch.stack([features @ head for head in fitted.judges.heads]).mean(0)
    by_hand = by_hand - RewardConfig().caution * doubt(features, fitted.scorer.known)
    torch.testing.assert_close(fitted.judges.score(states, sequences, 512), by_hand)
    ours = fitted.scorer.all_values(states, sequences, 512)[1]
    assert not torch.allclose(by_hand, ours, atol=1e-3), "PPO climbs another model"
