"""What is a vote worth? Accuracy of the reward model on clean, held-out pairs after 100, 300 and 1,000 noisy votes.

    python -m benchmarks.votes --json benchmarks/results/votes.json
    python -m benchmarks.votes --quick

Answers are the base model's own, written once. Voters as in `benchmarks/voters.py` judge pairs drawn at random, pairs
on which the fold models disagree most, and four answers at once; the reward model is fitted as a run fits it. Beside it
stands a probe as one would write it first: ridge regression of the votes on frozen states, last token and mean over the
answer, of a third, two thirds, five sixths and all of the layers, with the best of three penalties by cross-validation.
Each cell is saved when it is done, and counts for this commit.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.loop_state import Lines, Progress
from benchmarks.record import ROOT, Row, commit, document, write_json
from benchmarks.reference import CACHE
from benchmarks.voters import PREFERENCES, VOTERS, Preference, ballot, winner
from serve.engine.local import LocalEngine
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.policy.chat import render
from serve.records import BASE_VERSION, Message, Sampling
from training.config import TrainingConfig
from training.preferences import Ranked, folds_by_prompt
from training.reward import RewardFit, accuracy_folds, fit_reward, ranked_sequences
from training.roles import FrozenLayers, FrozenStates, lora_shapes
from training.rollouts import Rollout, open_engine, sample
from training.sequences import Sequences

SHOWN = ("brevity", "closing", "declining", "one_paragraph", "contrast", "advice")
"""The last two were never looked at while anything was chosen."""
WAYS = ("random", "disagreement", "four")
VOTES = (100, 300, 1000)
ANSWERS, HELD_OUT_ANSWERS = 8, 4
"""To each prompt that is voted on, and to each held-out one."""
CANDIDATES = 400
"""Pairs among which the fold models' disagreement chooses."""
FIRST_AT_RANDOM = 40
ROUNDS = 6
"""In so many portions the rest of the pairs is chosen, each by a reward model of all votes before."""
RIDGES = (1.0, 10.0, 100.0)
"""Of the probe beside ours, on features of unit variance, each divided by the root of their number."""


@dataclass(frozen=True)
class Cell:
    """One fit."""

    preference: str
    way: str
    votes: int
    seed: int


@dataclass(frozen=True)
class Asked:
    """A prompt and what the base answered."""

    number: int
    prompt: str
    answers: list[Rollout]


class Remembering(FrozenLayers):
    """Frozen layers that run each row once, however often it is asked for."""

    def __init__(self, backbone: Backbone, policy_first: int, scorer_first: int) -> None:
        super().__init__(backbone, policy_first, scorer_first)
        self._known: dict[tuple[int, ...], tuple[Tensor, Tensor]] = {}

    def __call__(self, sequences: Sequences, micro_batch_tokens: int) -> FrozenStates:
        """As `FrozenLayers`."""
        rows = [tuple(ids[:n].tolist()) for ids, n in zip(sequences.input_ids, sequences.lengths, strict=True)]
        new = [i for i, row in enumerate(rows) if row not in self._known]
        if new:
            found = super().__call__(sequences.take(torch.tensor(new)), micro_batch_tokens)
            self._known |= {
                rows[i]: pair for i, pair in zip(new, zip(found.boundary, found.near, strict=True), strict=True)
            }
        kept = [self._known[row] for row in rows]
        return FrozenStates([boundary for boundary, _ in kept], [near for _, near in kept])


class Study:
    """The base model's answers, and reward models fitted to votes on them."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._backbone = load_backbone(resolve_model("default", CACHE))
        config = TrainingConfig()
        policy_shape, self._shape = lora_shapes(self._backbone, config)
        self._frozen = Remembering(self._backbone, policy_shape.first_layer, self._shape.first_layer)
        self._config = config.reward
        self._tokens = config.micro_batch_tokens
        self._pools: dict[bool, tuple[list[Asked], list[Asked]]] = {}
        self._probed: dict[tuple[int, ...], Tensor] = {}

    def accuracy(self, cell: Cell) -> dict[str, float]:
        """Of one fit, on clean held-out pairs: our reward model's, with caution and without, and the probe's."""
        preference = PREFERENCES[cell.preference]
        voted, held_out = self._pool(preference)
        rankings = self._vote(cell, preference, voted)
        fitted = self._fit(rankings, cell.seed)
        pairs = clean_pairs(preference, held_out)
        sequences = Sequences.of(
            [answer.prompt_ids for pair in pairs for answer in pair], [a.token_ids for pair in pairs for a in pair]
        )
        states = self._frozen(sequences, self._tokens)
        found = {"climbed": self._right(fitted, states, sequences)}
        fitted.scorer.caution.zero_()
        found["ours"] = self._right(fitted, states, sequences)
        found["out of fold"] = fitted.report["accuracy"]["value"]
        found["probe"], found["probe out of fold"] = self._probe(rankings, sequences, cell.seed)
        found["pairs"] = len(pairs)
        return found

    def _pool(self, preference: Preference) -> tuple[list[Asked], list[Asked]]:
        """Voted and held-out prompts with their answers."""
        if preference.harmful not in self._pools:
            engine = open_engine(self._backbone)
            try:
                pools = [
                    self._asked(engine, prompts, count, seed)
                    for prompts, count, seed in (
                        (preference.voted_prompts(), ANSWERS, 1_000_000),
                        (preference.held_out_prompts(), HELD_OUT_ANSWERS, 2_000_000),
                    )
                ]
            finally:
                engine.close()
            self._pools[preference.harmful] = (pools[0], pools[1])
        return self._pools[preference.harmful]

    def _asked(self, engine: LocalEngine, prompts: list[str], count: int, seed: int) -> list[Asked]:
        ids = [render(self._backbone.tokenizer, (Message("user", prompt),)) for prompt in prompts]
        rollouts = sample(
            engine,
            BASE_VERSION,
            ids,
            answers_per_prompt=count,
            sampling=Sampling(max_tokens=64),
            seed=seed,
            in_flight=4,
        )
        return [
            Asked(number, prompt, rollouts[number * count : (number + 1) * count])
            for number, prompt in enumerate(prompts)
        ]

    def _vote(self, cell: Cell, preference: Preference, pool: list[Asked]) -> list[Ranked]:
        rng = random.Random(f"{cell.preference} {cell.seed}")
        order = rng.sample(pool, len(pool))
        if cell.way == "four":
            return [
                rank_of(preference, order[n % len(order)], rng.sample(range(ANSWERS), 4), n, rng)
                for n in range(cell.votes)
            ]
        count = cell.votes if cell.way == "random" else min(FIRST_AT_RANDOM, cell.votes)
        votes = [
            rank_of(preference, order[n % len(order)], rng.sample(range(ANSWERS), 2), n, rng) for n in range(count)
        ]
        portion = -(-(cell.votes - count) // ROUNDS)
        while len(votes) < cell.votes:
            chosen = self._most_disputed(votes, pool, min(portion, cell.votes - len(votes)), cell.seed, rng)
            votes += [rank_of(preference, a, [i, j], len(votes) + k, rng) for k, (a, i, j) in enumerate(chosen)]
        return votes

    def _most_disputed(
        self, votes: list[Ranked], pool: list[Asked], count: int, seed: int, rng: random.Random
    ) -> list[tuple[Asked, int, int]]:
        """Pairs that nobody judged yet, by how far the fold models' score differences spread; one a prompt."""
        judges = self._fit(votes, seed).judges
        seen = {frozenset(vote.answers) for vote in votes}
        every = [
            (asked, i, j)
            for asked in pool
            for i, j in itertools.combinations(range(ANSWERS), 2)
            if frozenset((asked.answers[i].token_ids, asked.answers[j].token_ids)) not in seen
        ]
        some = rng.sample(every, min(CANDIDATES, len(every)))
        sequences = Sequences.of(
            [asked.answers[0].prompt_ids for asked, _, _ in some for _ in range(2)],
            [asked.answers[place].token_ids for asked, i, j in some for place in (i, j)],
        )
        untrained = judges.untrained
        raw = untrained.all_features(self._frozen(sequences, self._tokens), sequences, self._tokens)
        features = (raw - untrained.mean) / untrained.std
        spread = ((features[::2] - features[1::2]) @ judges.heads.T).std(-1)
        chosen: dict[int, tuple[Asked, int, int]] = {}
        for place in spread.argsort(descending=True).tolist():
            chosen.setdefault(some[place][0].number, some[place])
        return list(chosen.values())[:count]

    def _fit(self, rankings: list[Ranked], seed: int) -> RewardFit:
        return fit_reward(
            rankings,
            backbone=self._backbone,
            frozen=self._frozen,
            shape=self._shape,
            config=self._config,
            micro_batch_tokens=self._tokens,
            seed=seed,
            progress=lambda step, done, metrics: None,
        )

    def _right(self, fitted: RewardFit, states: FrozenStates, sequences: Sequences) -> float:
        scores = fitted.scorer.all_values(states, sequences, self._tokens)[1]
        return float((scores[::2] > scores[1::2]).double().mean())

    # -- the probe beside ours ----------------------------------------------------------------------------------------

    def _probe(self, rankings: list[Ranked], held_out: Sequences, seed: int) -> tuple[float, float]:
        """Accuracy on clean held-out pairs, and out of fold on the votes themselves."""
        answers = self._states_of(ranked_sequences(rankings))
        mean, spread = answers.mean(0), answers.std(0) + 1e-6
        width = answers.shape[1] ** 0.5
        features, asked = ((x - mean) / spread / width for x in (answers, self._states_of(held_out)))
        starts = list(itertools.accumulate((len(r.answers) for r in rankings), initial=0))
        pairs = [(start + i, start + j, n) for n, (start, r) in enumerate(zip(starts, rankings, strict=False))
                 for i, j, target in r.pairs() if target == 1.0]  # fmt: skip
        better, worse, of = (torch.tensor(column) for column in zip(*pairs, strict=True))
        differences = features[better] - features[worse]
        folds = torch.tensor(folds_by_prompt(rankings, accuracy_folds(len(pairs), self._config), seed))[of]

        def head(chosen: Tensor, ridge: float) -> Tensor:
            rows = differences[chosen].double()
            dual = torch.linalg.solve(rows @ rows.T + ridge * torch.eye(len(rows)), torch.ones(len(rows)).double())
            found: Tensor = (rows.T @ dual).float()
            return found

        def out_of_fold(ridge: float) -> float:
            right = (differences[folds == f] @ head(folds != f, ridge) > 0 for f in folds.unique().tolist())
            return float(torch.cat(list(right)).double().mean())

        best = max(RIDGES, key=out_of_fold)
        held_out_pairs = asked[::2] - asked[1::2]
        right = held_out_pairs @ head(torch.ones(len(of), dtype=torch.bool), best) > 0
        return float(right.double().mean()), out_of_fold(best)

    @torch.no_grad()
    def _states_of(self, sequences: Sequences) -> Tensor:
        """Last and mean states of four depths of every answer (B, 8 · D)."""
        found = []
        layers = self._backbone.layer_count
        for row in range(len(sequences)):
            length, start = int(sequences.lengths[row]), int(sequences.prompt_lengths[row])
            ids = sequences.input_ids[row, :length]
            key = tuple(ids.tolist())
            if key not in self._probed:
                states = self._backbone.model(ids[None], output_hidden_states=True).hidden_states
                depths = [states[layers * k // 6][0, start:].float() for k in (2, 4, 5, 6)]
                self._probed[key] = torch.cat([part for x in depths for part in (x[-1], x.mean(0))])
            found.append(self._probed[key])
        return torch.stack(found)


def rank_of(preference: Preference, asked: Asked, chosen: Sequence[int], number: int, rng: random.Random) -> Ranked:
    """How one of the voters ranks some answers: each two as if asked which is better, erring as often, by wins."""
    voter = VOTERS[number % len(VOTERS)]
    wins = [0.0] * len(chosen)
    for a, b in itertools.combinations(range(len(chosen)), 2):
        first, second = (asked.answers[chosen[place]].text for place in (a, b))
        best = ballot(preference, asked.prompt, first, second, arm="real", voter=voter, rng=rng)
        for place, side in ((a, 0), (b, 1)):
            wins[place] += 0.5 if best is None else float(best == side)
    order = sorted(range(len(chosen)), key=lambda place: -wins[place])
    levels = sorted(set(wins), reverse=True)
    return Ranked(
        prompt_id=asked.number,
        voter=f"voter {number % len(VOTERS)}",
        prompt_ids=asked.answers[0].prompt_ids,
        answers=tuple(asked.answers[chosen[place]].token_ids for place in order),
        groups=tuple(levels.index(wins[place]) for place in order),
        positions=tuple(order),
        finish_reasons=tuple(asked.answers[chosen[place]].finish_reason for place in order),
        strength=None,
    )


def clean_pairs(preference: Preference, held_out: list[Asked]) -> list[tuple[Rollout, Rollout]]:
    """Every two answers to a held-out prompt that the preference tells apart, the better one first."""
    pairs = []
    for asked in held_out:
        for a, b in itertools.combinations(asked.answers, 2):
            best = winner(preference, asked.prompt, a.text, b.text)
            if best is not None:
                pairs.append((a, b) if best == 0 else (b, a))
    return pairs


def rows_of(done: dict[Cell, dict[str, float]]) -> list[Row]:
    """Means over seeds and preferences; for pairs at random also out of fold, and as PPO climbs it."""
    rows = []
    for way, votes in itertools.product(WAYS, VOTES):
        everything = [them for cell, them in done.items() if (cell.way, cell.votes) == (way, votes)]
        if everything:
            rows.append(_row(f"all, {votes} votes, {way}", everything, "ours", "probe"))
        if everything and way == "random":
            rows.append(_row(f"all, {votes} votes, with caution, as PPO climbs it", everything, "climbed", "probe"))
            rows.append(
                _row(f"all, {votes} votes, out of fold on the votes", everything, "out of fold", "probe out of fold")
            )
    return rows


def _row(what: str, found: Sequence[dict[str, float]], mine: str, peers: str) -> Row:
    """The mean of fits, and the lowest and highest of ours."""
    ours, theirs = [them[mine] for them in found], statistics.mean(them[peers] for them in found)
    mean = statistics.mean(ours)
    return Row(what, "right", mean, "probe", theirs, mean / theirs, len(found), min(ours), max(ours))


def means_of(done: dict[Cell, dict[str, float]]) -> list[dict[str, Any]]:
    """Mean accuracy over seeds, of ours and of the probe, by preference, way and votes."""
    found: dict[tuple[str, str, int], list[dict[str, float]]] = {}
    for cell, them in done.items():
        found.setdefault((cell.preference, cell.way, cell.votes), []).append(them)
    return [
        {"preference": preference, "way": way, "votes": votes}
        | {figure: statistics.mean(them[figure] for them in some) for figure in ("ours", "probe")}
        for (preference, way, votes), some in found.items()
    ]


def curves_of(done: dict[Cell, dict[str, float]]) -> dict[str, list[tuple[int, float]]]:
    """Mean accuracy over votes, by how pairs are chosen, and the probe's."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for name, way, figure in [(f"ours, {way}", way, "ours") for way in WAYS] + [("probe, random", "random", "probe")]:
        for votes in VOTES:
            if found := [them[figure] for cell, them in done.items() if (cell.way, cell.votes) == (way, votes)]:
                lines.setdefault(name, []).append((votes, round(statistics.mean(found), 4)))
    return lines


def main() -> None:
    """Fit every cell that is not done yet, print, write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.votes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one preference, one seed, 100 votes")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks" / "work" / "votes")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lines = Lines(options.work / "cells.jsonl")
    saved = {Cell(**row["cell"]): row["found"] for row in lines.rows if row["commit"] == commit()}
    shown, votes, seeds = (SHOWN[:1], VOTES[:1], 1) if options.quick else (SHOWN, VOTES, options.seeds)
    study, progress = Study(options.threads), Progress()
    done: dict[Cell, dict[str, float]] = {}
    for asked in itertools.product(shown, WAYS, votes, range(seeds)):
        cell = Cell(*asked)
        if cell in saved:
            done[cell] = saved[cell]
        else:
            done[cell] = study.accuracy(cell)
            lines.add({"commit": commit(), "cell": vars(cell), "found": done[cell]})
        progress.line(f"{cell}: {json.dumps(done[cell])}")
    rows = rows_of(done)
    print(*rows, sep="\n")
    if options.json is not None:
        settings: dict[str, Any] = {
            "seeds": seeds,
            "answers": ANSWERS,
            "voters": [vars(v) for v in VOTERS],
            "tokens": 64,
        }
        write_json(
            options.json, document("votes", settings, rows, means=means_of(done), curves={"accuracy": curves_of(done)})
        )


if __name__ == "__main__":
    main()
