"""What is a vote worth? Accuracy of the reward model on clean, held-out pairs after 100, 300 and 1,000 noisy votes.

    python -m benchmarks.votes --json benchmarks/results/votes.json
    python -m benchmarks.votes --quick

Answers are the base model's own, written once. Voters as in `benchmarks/voters.py` judge pairs drawn at random, pairs
on which the fold models disagree most, and four answers at once; the reward model is fitted as a run fits it. Beside it
stands the probe of `benchmarks/probe.py`. Each cell is a line of the file beside the result, and is made anew when
the code has changed.
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

from benchmarks.cells import Cells
from benchmarks.loop_state import Progress
from benchmarks.probe import Probe, right
from benchmarks.reading import Answers
from benchmarks.record import Row, document, sources, write_json
from benchmarks.reference import CACHE
from benchmarks.voters import PREFERENCES, VOTERS, Preference, ballot, winner
from serve.engine.local import LocalEngine
from serve.policy.base import load_backbone, resolve_model
from serve.policy.chat import render
from serve.records import BASE_VERSION, Message, Sampling
from training.config import TrainingConfig
from training.pairs import Pairs
from training.preferences import Ranked, folds_by_prompt
from training.reward import accuracy_folds, accuracy_of, fit_folds, fit_head_of, known_of, ranked_answers
from training.roles import FrozenLayers, lora_shapes
from training.rollouts import Rollout, open_engine, sample
from training.scorer import Scorer, doubt
from training.sequences import Sequences

SHOWN = ("brevity", "closing", "declining", "one_paragraph", "contrast", "advice")
"""The last two were looked at for two choices (docs/log.md): a busy voter's weight, and where rollouts end."""
WAYS = ("random", "disagreement", "four")
VOTES = (100, 300, 1000)
ANSWERS, HELD_OUT_ANSWERS = 8, 4
"""To each prompt that is voted on, and to each held-out one."""
FIRST_AT_RANDOM = 40
ROUNDS = 6
"""In so many portions the rest of the pairs is chosen, each by a reward model of all votes before."""


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


class Study:
    """The base model's answers, and reward models fitted to votes on them."""

    def __init__(self, threads: int) -> None:
        torch.set_num_threads(threads)
        self._backbone = load_backbone(resolve_model("default", CACHE))
        config = TrainingConfig()
        policy_shape, shape = lora_shapes(self._backbone, config)
        frozen = FrozenLayers(self._backbone, policy_shape.first_layer, shape.first_layer)
        self._scorer = Scorer(self._backbone, shape, seed=0)
        self._answers = Answers(frozen, self._scorer, config.micro_batch_tokens)
        self._config = config.reward
        self._pools: dict[bool, tuple[list[Asked], list[Asked]]] = {}
        self._probe = Probe(self._backbone)

    def accuracy(self, cell: Cell) -> dict[str, float]:
        """Of one fit, on clean held-out pairs: our reward model's, with caution and without, and the probe's.

        Fitted as a run does it by default; a test holds that the two agree.
        """
        preference = PREFERENCES[cell.preference]
        voted, held_out = self._pool(preference)
        rankings = self._vote(cell, preference, voted)
        features, pairs = self._standardise(rankings)
        head = fit_head_of(features, pairs)[0]
        clean = clean_pairs(preference, held_out)
        prompts, texts = zip(*((a.prompt_ids, a.token_ids) for pair in clean for a in pair), strict=True)
        asked = self._scorer.standardised(self._answers.summaries(prompts, texts))
        scores = asked @ head.float()
        found = {
            "ours": right(scores),
            "climbed": right(scores - self._config.caution * doubt(asked, known_of(features, pairs, head))),
            "pairs": len(clean),
        }
        folds = folds_by_prompt(rankings, accuracy_folds(len(pairs), self._config), cell.seed)
        found |= self._probe.accuracy(rankings, folds, Sequences.of(prompts, texts))
        if cell.way == "random":
            logits = fit_folds(features, pairs, torch.tensor(folds)[pairs.ranking])[1]
            found["out of fold"] = accuracy_of(pairs, logits)["value"]
        return found

    def _standardise(self, rankings: Sequence[Ranked]) -> tuple[Tensor, Pairs]:
        """What the scorer reads of ranked answers, brought to one scale by them, and the votes."""
        features = self._scorer.standardise(self._answers.summaries(*ranked_answers(rankings)))
        return features, Pairs.of(rankings, self._config.max_voter_share)

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
            chosen = self._most_disputed(votes, pool, min(portion, cell.votes - len(votes)), cell.seed)
            votes += [rank_of(preference, a, [i, j], len(votes) + k, rng) for k, (a, i, j) in enumerate(chosen)]
        return votes

    def _most_disputed(
        self, votes: list[Ranked], pool: list[Asked], count: int, seed: int
    ) -> list[tuple[Asked, int, int]]:
        """Pairs that nobody judged yet, by how far the fold models' score differences spread; one a prompt."""
        features, pairs = self._standardise(votes)
        folds = torch.tensor(folds_by_prompt(votes, self._config.folds, seed))[pairs.ranking]
        heads = fit_folds(features, pairs, folds)[0].float()
        answers = [answer for asked in pool for answer in asked.answers]
        every = self._answers.summaries([a.prompt_ids for a in answers], [a.token_ids for a in answers])
        scores = (self._scorer.standardised(every) @ heads.T).view(len(pool), ANSWERS, -1)
        seen = {frozenset(vote.answers) for vote in votes}
        best: list[tuple[float, Asked, int, int]] = []
        for asked, of_it in zip(pool, scores, strict=True):
            spread = (of_it[:, None] - of_it[None]).std(-1)
            unseen = [
                (float(spread[i, j]), asked, i, j)
                for i, j in itertools.combinations(range(ANSWERS), 2)
                if frozenset((asked.answers[i].token_ids, asked.answers[j].token_ids)) not in seen
            ]
            best += [max(unseen, key=lambda each: each[0])] if unseen else []
        best.sort(key=lambda each: -each[0])
        return [(asked, i, j) for _, asked, i, j in best[:count]]


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
    """Mean accuracy over seeds, of ours and of the probe, by preference, way and votes; at random out of fold, too."""
    found: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for cell, them in done.items():
        found.setdefault((cell.preference, cell.way, cell.votes), []).append((them["ours"], them["probe"]))
        if "out of fold" in them:
            both = them["out of fold"], them["probe out of fold"]
            found.setdefault((cell.preference, f"{cell.way}, out of fold", cell.votes), []).append(both)
    return [
        {"preference": preference, "way": way, "votes": votes}
        | dict(zip(("ours", "probe"), map(statistics.mean, zip(*some, strict=True)), strict=True))
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
    options = parser.parse_args()
    made_by = sources("votes.py", "reading.py", "probe.py", "voters.py", "prompts.py", packages=["training"])
    cells = Cells("votes", options.json, made_by)
    shown, votes, seeds = (SHOWN[:1], VOTES[:1], 1) if options.quick else (SHOWN, VOTES, options.seeds)
    study, progress = Study(options.threads), Progress()
    done: dict[Cell, dict[str, float]] = {}
    for asked in itertools.product(shown, WAYS, votes, range(seeds)):
        cell = Cell(*asked)
        done[cell] = cells.found(vars(cell), lambda cell=cell: study.accuracy(cell))  # type: ignore[misc]
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
        curves = {"accuracy": curves_of(done)}
        result = document("votes", settings, rows, means=means_of(done), curves=curves, made=cells.made)
        write_json(options.json, result)


if __name__ == "__main__":
    main()
