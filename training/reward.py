"""Step 2, the reward model: Bradley–Terry on every pair that the votes imply.

P(i ≻ j) = σ(score_i − score_j) (Ouyang et al. 2022, eq. 1). The scalar head is fitted exactly on frozen features; if
asked for, epochs with a LoRA below it follow, as many as held-out votes say that help. Fold models (heads alone, split
by prompt) are what the gate asks, not the model that PPO climbs; accuracy is out of fold, over more folds than theirs
while votes are few (`FINE_UNTIL`).
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from serve.feedback.statistics import wilson
from serve.policy.adapters import sync
from serve.policy.base import Backbone
from training.bradley_terry import fit_head, known_directions, log_loss
from training.config import RewardConfig
from training.gate import FEW_PROMPTS
from training.pairs import Pairs
from training.parallel import in_parallel, set_gradients
from training.preferences import MIN_VOTERS_FOR_SHARES, Ranked, folds_by_prompt, folds_by_voter, voter_weights
from training.roles import FrozenLayers, FrozenStates, LoraShape
from training.scorer import Scorer, doubt
from training.sequences import Sequences

RIDGE = 1.0
"""Penalty of the head's fit, on features scaled to norm about 1; between 0.3 and 2 little changes."""

MIN_VOTERS_FOR_VOTER_FOLDS = 5

MIN_VOTES_FOR_LEANING = 4
"""Of a voter with fewer votes whose places are known, nobody can tell whether the place mattered."""

FINE_FOLDS, FINE_UNTIL = 20, 1500
"""Up to so many pairs accuracy is taken over many folds: each is judged by a head that has seen nearly all votes."""

HEADS_FILE, REPORT_FILE = "fold_heads.safetensors", "report.json"

LEARNING_CURVE = (0.25, 0.5, 0.75)
"""Shares of the votes on which the accuracy is measured as well: the curve shows what more votes would bring."""

Progress = Callable[[int, float, dict[str, float]], None]
"""Called with a step (votes used, then epochs on top), the share done and what was measured."""


@dataclass(frozen=True)
class Judges:
    """The fold models: linear heads (K, F) on what an untrained scorer reads from the frozen backbone."""

    heads: Tensor
    untrained: Scorer
    """Its LoRA is still at zero; it holds the features' mean and standard deviation."""

    def each(self, states: FrozenStates, sequences: Sequences, micro_batch_tokens: int) -> Tensor:
        """Every fold's score of each answer, less the reward model's caution: (B, K)."""
        raw = self.untrained.all_features(states, sequences, micro_batch_tokens)
        features = (raw - self.untrained.mean) / self.untrained.std
        caution = self.untrained.caution * doubt(features, self.untrained.known)
        return features @ self.heads.T - caution[:, None]

    def score(self, states: FrozenStates, sequences: Sequences, micro_batch_tokens: int) -> Tensor:
        """Their mean: (B,)."""
        return self.each(states, sequences, micro_batch_tokens).mean(-1)


@dataclass(frozen=True)
class RewardFit:
    """The trained reward model, its fold models and what is known of them."""

    scorer: Scorer
    judges: Judges
    report: dict[str, Any]

    def save(self, folder: Path) -> None:
        """Write reward model and fold models; the report last, so that with it the folder is whole."""
        (folder / REPORT_FILE).unlink(missing_ok=True)  # of another release
        self.scorer.save(folder)
        self.judges.untrained.save(folder / "untrained")
        save_file({"heads": self.judges.heads}, str(folder / HEADS_FILE))
        draft = folder / f"{REPORT_FILE}.part"
        draft.write_text(json.dumps(self.report, indent=2) + "\n")
        for entry in (*folder.rglob("*"), folder):
            sync(entry)
        draft.rename(folder / REPORT_FILE)
        sync(folder)

    @classmethod
    def load(cls, folder: Path, backbone: Backbone, shape: LoraShape) -> RewardFit | None:
        """What `save` wrote, or None if it never finished, or another release wrote it."""
        if not (folder / REPORT_FILE).is_file():
            return None
        scorer, untrained = Scorer(backbone, shape, seed=0), Scorer(backbone, shape, seed=0)
        if not (scorer.load_folder(folder) and untrained.load_folder(folder / "untrained")):
            return None
        heads = load_file(str(folder / HEADS_FILE))["heads"]
        return cls(scorer, Judges(heads, untrained), json.loads((folder / REPORT_FILE).read_text()))


def ranked_answers(rankings: Sequence[Ranked]) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of all ranked answers' prompts, and of the answers, in order."""
    return [r.prompt_ids for r in rankings for _ in r.answers], [a for r in rankings for a in r.answers]


def ranked_sequences(rankings: Sequence[Ranked]) -> Sequences:
    """All ranked answers with their prompts, in order."""
    return Sequences.of(*ranked_answers(rankings))


def fit_reward(
    rankings: Sequence[Ranked],
    *,
    backbone: Backbone,
    frozen: FrozenLayers,
    shape: LoraShape,
    config: RewardConfig,
    micro_batch_tokens: int,
    seed: int,
    progress: Progress,
) -> RewardFit:
    """Fit the reward model on standing votes.

    `shape` places its LoRA; `frozen` gives the states below. Scores are not normalised yet.
    """
    # 1. Every answer once through the frozen layers, and its features with the LoRA still at zero
    pairs = Pairs.of(rankings, config.max_voter_share, config.margin)
    sequences = ranked_sequences(rankings)
    scorer = Scorer(backbone, shape, seed=seed)
    features = scorer.standardise(scorer.summarise(frozen, sequences, micro_batch_tokens))
    progress(0, 0.3, {})

    # 2. Fold models: out-of-fold predictions for every pair
    folds = torch.tensor(folds_by_prompt(rankings, config.folds, seed))[pairs.ranking]
    heads, logits = fit_folds(features, pairs, folds)
    fine = torch.tensor(folds_by_prompt(rankings, accuracy_folds(len(pairs), config), seed))[pairs.ranking]
    for votes in sorted({math.ceil(share * len(rankings)) for share in LEARNING_CURVE}):
        early = pairs.ranking < votes
        some = pairs.where(early)
        accuracy = accuracy_of(some, fit_folds(features, some, fine[early])[1])
        progress(votes, 0.3, {"reward_accuracy": accuracy["value"]})
    if not torch.equal(fine, folds):
        logits = fit_folds(features, pairs, fine)[1]
    names = list(dict.fromkeys(r.voter for r in rankings))  # in the order of their numbers
    report = {
        "pairs": len(pairs),
        "rankings": len(rankings),
        "ties": int((pairs.target == 0.5).sum()),
        **judged(rankings, names, pairs, logits, features @ heads.T.float(), sequences.answer_mask.sum(-1)),
    }
    if len(names) >= MIN_VOTERS_FOR_VOTER_FOLDS:
        by_voter = torch.tensor(folds_by_voter(rankings, config.folds, seed))[pairs.ranking]
        report["accuracy_on_unseen_voters"] = accuracy_of(pairs, fit_folds(features, pairs, by_voter)[1])
    judges = Judges(heads.float(), scorer.twin(backbone))
    votes = len(rankings)
    progress(votes, 0.4, {"reward_accuracy": report["accuracy"]["value"], "reward_loss": report["log_loss"]})

    # 3. How many LoRA epochs help, told by one fold held out (0: the head alone is as good)
    losses: list[float] = []
    epochs = 0
    if config.epochs:
        held_out = folds == 0
        states = frozen(sequences, micro_batch_tokens)
        leanings = _start_head(scorer, features, pairs.where(~held_out))[1]
        fresh = scorer.tensors()
        unseen = pairs.where(held_out).without(leanings)
        held_out_loss = partial(_held_out_loss, scorer, states, sequences, unseen, micro_batch_tokens)
        train = partial(
            _lora_epochs, scorer, states, sequences, config=config, micro_batch_tokens=micro_batch_tokens, seed=seed
        )
        losses.append(held_out_loss())
        for epoch in train(pairs.where(~held_out).without(leanings), epochs=config.epochs):
            losses.append(held_out_loss())
            progress(votes + epoch + 1, 0.4 + 0.3 * (epoch + 1) / config.epochs, {"reward_loss": losses[-1]})
        epochs = min(range(len(losses)), key=losses.__getitem__)
        scorer.load(fresh)

    # 4. The reward model itself, on all pairs
    head, leanings = _start_head(scorer, features, pairs)
    if epochs:
        for epoch in train(pairs.without(leanings), epochs=epochs):
            progress(votes + config.epochs + epoch + 1, 0.7 + 0.3 * (epoch + 1) / epochs, {})

    # 5. What the votes leave open, to be taken from every score
    known = known_of(features, pairs, head)
    for each in (scorer, judges.untrained):
        each.known = known
        each.caution.fill_(config.caution)
    report |= {
        "lora_epochs": epochs,
        "held_out_log_loss_by_epoch": losses,
        "first_place_logit": dict(zip(names, leanings.tolist(), strict=True)),
        "voter_share": _shares(names, pairs),
    }
    return RewardFit(scorer, judges, report)


def accuracy_folds(pairs: int, config: RewardConfig) -> int:
    """Over how many folds accuracy is taken of so many pairs."""
    return FINE_FOLDS if pairs <= FINE_UNTIL else config.folds


def bradley_terry_loss(better: Tensor, worse: Tensor, target: Tensor, weight: Tensor, margin: Tensor) -> Tensor:
    """Weighted mean of −[t log σ(Δ − m) + (1 − t) log σ(m − Δ)] with Δ = better − worse; all (N,) → a scalar.

    (Touvron et al. 2023, eq. 2, for the margin.)
    """
    logits = better - worse - margin
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * weight).sum() / weight.sum()


def centring_loss(better: Tensor, worse: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of (better + worse)², which differences alone leave open; all (N,) → a scalar.

    Eisenstein et al. 2023, arXiv 2312.09244.
    """
    return ((better + worse) ** 2 * weight).sum() / weight.sum()


def fit_folds(features: Tensor, pairs: Pairs, folds: Tensor) -> tuple[Tensor, Tensor]:
    """One head for each fold, fitted on the others: heads (K, F) and each pair's out-of-fold logit (N,), in float64.

    With a single prompt nothing can be held out: one head, and all logits, are 0.
    """
    logits = torch.zeros(len(pairs), dtype=torch.float64)
    heads = []
    for fold in folds.unique().tolist():
        inside = folds != fold
        if not inside.any():
            continue
        head, _ = fit_head_of(features, pairs.where(inside))
        asked = pairs.where(~inside)
        logits[~inside] = (features[asked.better] - features[asked.worse]).double() @ head
        heads.append(head)
    if not heads:
        heads.append(torch.zeros(features.shape[1], dtype=torch.float64))
    return torch.stack(heads), logits


def fit_head_of(features: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """The exact head (F,), and each voter's leaning to what is shown first, as a logit (V,).

    A voter who often takes the first answer whatever it says would blur the head: what the place explains, the head
    need not.
    """
    differences = features[pairs.better] - features[pairs.worse]
    leanings = torch.zeros(int(pairs.voter.max()) + 1 if len(pairs) else 1, dtype=torch.float64)
    votes = pairs.voter.bincount(pairs.side.abs() * pairs.weight, len(leanings)).round()  # (V,)
    told = votes >= MIN_VOTES_FOR_LEANING
    places = (pairs.voter[:, None] == told.nonzero().T) * pairs.side[:, None]
    columns = torch.cat([differences, places.to(differences.dtype)], 1)
    found = fit_head(columns, pairs.target, pairs.pull, margins=pairs.margin, ridge=RIDGE)
    leanings[told] = found[features.shape[1] :]
    return found[: features.shape[1]], leanings


def known_of(features: Tensor, pairs: Pairs, head: Tensor) -> Tensor:
    """The directions in which the votes tell something of an exact head (F,): (R, F)."""
    differences = features[pairs.better] - features[pairs.worse]
    return known_directions(differences, pairs.pull, head, margins=pairs.margin, ridge=RIDGE)


def _start_head(scorer: Scorer, features: Tensor, pairs: Pairs) -> tuple[Tensor, Tensor]:
    """Put the exact head in, and return it as `fit_head_of` does."""
    head, leanings = fit_head_of(features, pairs)
    with torch.no_grad():
        scorer.weight.copy_(head)
        scorer.bias.zero_()
    return head, leanings


def _lora_epochs(
    scorer: Scorer,
    states: FrozenStates,
    sequences: Sequences,
    pairs: Pairs,
    *,
    config: RewardConfig,
    micro_batch_tokens: int,
    seed: int,
    epochs: int,
) -> Iterator[int]:
    """Train LoRA and head on the pairs; yields after each epoch. All pairs of a ranking stay in one batch."""
    trained = scorer.trained()
    optimizer = torch.optim.Adam(trained, lr=config.learning_rate, eps=1e-5, fused=True)
    rankings = pairs.ranking.unique().tolist()
    shuffler = random.Random(seed)
    for epoch in range(epochs):
        shuffler.shuffle(rankings)
        for start in range(0, len(rankings), config.comparisons_per_batch):
            chosen = torch.tensor(rankings[start : start + config.comparisons_per_batch])
            batch = pairs.where(torch.isin(pairs.ranking, chosen))
            batch = replace(batch, pull=batch_pull(batch, config.max_voter_share))

            def run(rankings: Tensor, batch: Pairs = batch, count: int = len(chosen)) -> tuple[Tensor, ...]:
                """Gradients of some rankings' share of the batch's loss."""
                part = batch.where(torch.isin(batch.ranking, rankings))
                better, worse = _pair_scores(scorer, states, sequences, part, micro_batch_tokens)
                loss = bradley_terry_loss(better, worse, part.target, part.pull, part.margin)
                loss = loss + config.centring * centring_loss(better, worse, part.pull)
                return torch.autograd.grad(loss * part.pull.sum() / count, trained)

            parts = in_parallel(run, chosen.tensor_split(min(torch.get_num_threads(), len(chosen))))
            set_gradients(trained, parts)
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
        yield epoch


def batch_pull(batch: Pairs, max_voter_share: float) -> Tensor:
    """Weights (N,) of a batch's pairs under which no voter exceeds the share in this batch, from 3 voters up.

    With fewer they stay as they are in the whole.
    """
    if len(batch.voter.unique()) < MIN_VOTERS_FOR_SHARES:
        return batch.pull
    rankings, first = batch.ranking.unique(return_inverse=True)
    voter_of = torch.zeros_like(rankings).scatter(0, first, batch.voter)
    weights = torch.tensor(voter_weights(voter_of.tolist(), max_voter_share))
    return batch.weight * weights[first]


def _shares(names: Sequence[str], pairs: Pairs) -> dict[str, float]:
    """Each voter's share of the fit."""
    totals = torch.zeros(len(names)).scatter_add(0, pairs.voter, pairs.pull)
    return dict(zip(names, (totals / totals.sum()).tolist(), strict=True))


def _pair_scores(
    scorer: Scorer, states: FrozenStates, sequences: Sequences, pairs: Pairs, micro_batch_tokens: int
) -> tuple[Tensor, Tensor]:
    """Scores of each pair's better and worse answer, each (N,); an answer in several pairs is run once."""
    rows, place = torch.cat([pairs.better, pairs.worse]).unique(return_inverse=True)
    parts = sequences.micro_batches(micro_batch_tokens, rows)

    def scores_of(part: Tensor) -> Tensor:
        return scorer.score(states.boundary_of(part), states.near_of(part), sequences.take(part))

    scores = in_parallel(scores_of, parts)
    in_order = torch.cat(scores)[torch.cat(parts).argsort()]  # micro-batches are sorted by length: back to row order
    return in_order[place[: len(pairs)]], in_order[place[len(pairs) :]]


@torch.no_grad()
def _held_out_loss(
    scorer: Scorer, states: FrozenStates, sequences: Sequences, pairs: Pairs, micro_batch_tokens: int
) -> float:
    better, worse = _pair_scores(scorer, states, sequences, pairs, micro_batch_tokens)
    return log_loss(better - worse - pairs.margin, pairs.target, pairs.weight)


def accuracy_of(pairs: Pairs, logits: Tensor, chosen: Tensor | None = None) -> dict[str, float]:
    """Share of strict preferences predicted, a comparison counting as one and a logit of 0 as half right; with its 95%
    interval.

    Votes on one prompt tend to be right or wrong together: the interval is Wilson's for as many independent ones as
    would vary as much (the design effect: Kish 1965), which a few prompts cannot tell: they count as one vote each.
    """
    strict = pairs.target == 1.0
    if chosen is not None:
        strict &= chosen
    weight = pairs.weight[strict].double()
    right = (logits[strict].sign() + 1) / 2 * weight
    prompts, of = pairs.prompt[strict].unique(return_inverse=True)
    rights, totals = (torch.zeros(len(prompts)).double().scatter_add(0, of, each) for each in (right, weight))
    total = float(weight.sum())
    share = float(right.sum()) / total if total else 0.5
    together = float((rights - share * totals).square().sum())
    if len(prompts) > 1 and total > 1:  # of a sample, as `alone` is not
        together *= len(prompts) / (len(prompts) - 1) * (total - 1) / total
    alone = total * share * (1 - share)
    if alone and len(prompts) >= FEW_PROMPTS:
        independent = total / max(1.0, together / alone)
    else:
        independent = min(total, float(len(prompts)))
    interval = wilson(share * independent, independent)
    return {
        "value": share,
        "low": interval.low,
        "high": interval.high,
        "comparisons": round(total),
        "prompts": len(prompts),
    }


def judged(
    rankings: Sequence[Ranked],
    names: Sequence[str],
    pairs: Pairs,
    logits: Tensor,
    scores: Tensor,
    lengths: Tensor,
) -> dict[str, Any]:
    """What is known of the reward model: accuracy, calibration and biases by out-of-fold logits (N,), and by the fold
    models' scores (B, K) of answers with so many tokens (B,).
    """
    positions = torch.tensor([p for r in rankings for p in r.positions])
    capped = torch.tensor([reason == "length" for r in rankings for reason in r.finish_reasons])
    left_won = (positions[pairs.better] >= 0) & (positions[pairs.better] < positions[pairs.worse])
    right_won = (positions[pairs.worse] >= 0) & (positions[pairs.better] > positions[pairs.worse])
    both_capped, one_capped = capped[pairs.better] & capped[pairs.worse], capped[pairs.better] ^ capped[pairs.worse]
    longer = lengths[pairs.better] - lengths[pairs.worse]
    apart = scores[pairs.better] - scores[pairs.worse]
    return {
        "accuracy": accuracy_of(pairs, logits),
        "log_loss": log_loss(logits, pairs.target.double(), pairs.weight.double()),
        "calibration": calibration(pairs, logits),
        "by_voter": {name: accuracy_of(pairs, logits, pairs.voter == number) for number, name in enumerate(names)},
        "by_position": {
            "left_won": accuracy_of(pairs, logits, left_won),
            "right_won": accuracy_of(pairs, logits, right_won),
        },
        "by_finish": {
            "both_capped": accuracy_of(pairs, logits, both_capped),
            "one_capped": accuracy_of(pairs, logits, one_capped),
            "others": accuracy_of(pairs, logits, ~both_capped & ~one_capped),
        },
        "by_length": {
            "longer_won": accuracy_of(pairs, logits, longer > 0),
            "shorter_won": accuracy_of(pairs, logits, longer < 0),
        },
        "length_correlation": _correlation(scores.mean(1).double(), lengths.double()),
        "fold_spread": float(apart.std(1).mean()) if scores.shape[1] > 1 else 0.0,
    }


def calibration(pairs: Pairs, logits: Tensor) -> list[dict[str, float]]:
    """Strict pairs by how sure the fold models were (½ to 1): what they said and how often they were right.

    Both are means in which a comparison counts as one, and a logit of 0 is half right.
    """
    strict = pairs.target == 1.0
    sure = torch.sigmoid(logits[strict].abs())
    right, weight = (logits[strict].sign() + 1) / 2, pairs.weight[strict].double()
    rows = []
    for low in (0.5, 0.6, 0.7, 0.8, 0.9):
        inside = (sure >= low) & (sure < low + 0.1 if low < 0.9 else sure <= 1.0)
        if inside.any():
            share = weight[inside] / weight[inside].sum()
            said, were = (float(each[inside] @ share) for each in (sure, right))
            rows.append({"said": said, "right": were, "pairs": int(inside.sum())})
    return rows


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    scale = float(x.norm() * y.norm())
    return float(x @ y) / scale if scale else 0.0
