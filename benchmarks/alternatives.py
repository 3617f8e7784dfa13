"""What else could the same votes do? Best-of-4, SFT on the chosen answers and TRL's DPO, beside the loop's own version.

    make peers-trl                              TRL, in an environment of its own
    python -m benchmarks.alternatives --preference brevity --json benchmarks/results/alternatives-brevity.json

Plays a chain of `benchmarks/loop.py` with a single round, so that all votes are on the base's own answers, and takes
its votes and the minutes that its run took. Best-of-4 takes the base's best answer of four by that run's reward model;
it costs four answers each time, and no training. SFT learns the chosen answers as a run learns demonstrations, but not
to end where a chosen answer was broken off. DPO trains a LoRA of rank 16 on all layers, with each of two learning
rates, for as many of TRL's three epochs as fit into the minutes; TRL ends every answer. All answer the chain's held-out
prompts, and the hidden preference judges against the base's answers. Where the run was refused before PPO its answers
are the base's, and the others get the minutes that a run may take. Every alternative is saved when it is done.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from benchmarks import loop
from benchmarks.fluency import Fluency, SavedAnswer, complaints, mean_nll, measure
from benchmarks.loop import HELD_OUT_SEED
from benchmarks.loop_result import contest, outcomes
from benchmarks.record import ROOT, Row, document, sources, write_json
from benchmarks.reference import CACHE
from benchmarks.reward import THEIRS
from benchmarks.voters import PREFERENCES, Preference
from serve.engine.local import LocalEngine
from serve.policy.base import load_backbone, resolve_model
from serve.policy.chat import render
from serve.records import BASE_VERSION, Message, Sampling
from training.config import TrainingConfig
from training.preferences import Ranked, Shown, read_snapshot
from training.reward import RewardFit
from training.roles import FrozenLayers, Policy, lora_shapes
from training.rollouts import Rollout, open_engine, padded_rollouts, sample
from training.sft import fine_tune

BEST_OF = 4
DPO_RATES = (5e-5, 2e-4)
PLACE = 1
LONGEST_RUN = 15 * 60
"""Seconds that a run with 300 votes may take."""


class BrokenOff(Shown):
    """An answer that ran into the limit: nobody wrote its end."""

    def token_ids(self, tokenizer: PreTrainedTokenizerBase, length: int) -> tuple[list[int], list[int]]:
        """Without the closing EOS."""
        prompt, answer = super().token_ids(tokenizer, length + 1)
        return prompt, answer[:-1]


class Chain:
    """A finished round of a chain: its votes, its reward model and its minutes, and the base's answers."""

    def __init__(self, folder: Path, preference: Preference, votes: int, threads: int) -> None:
        torch.set_num_threads(threads)
        state = json.loads((folder / "state.json").read_text())
        self.preference, self.threads = preference, threads
        self.run = state["rounds"][str(votes)]
        self.settings = state["settings"]
        self.run_seconds: float = state["seconds"][f"run at {votes} votes"]
        self.seconds = LONGEST_RUN if self.run["version"] is None else self.run_seconds
        self.run_folder = folder / "data" / "runs" / f"{self.run['id']:04d}"
        self.model = resolve_model("default", CACHE)
        self.backbone = load_backbone(self.model)
        self.config = TrainingConfig()
        self.policy_shape, self.scorer_shape = lora_shapes(self.backbone, self.config)
        self.frozen = FrozenLayers(self.backbone, self.policy_shape.first_layer, self.scorer_shape.first_layer)
        self.snapshot = read_snapshot(self.run_folder / "snapshot.db", self.backbone.tokenizer)

    @cached_property
    def base(self) -> list[SavedAnswer]:
        """The base's answers to the held-out prompts."""
        found = self.answers_of(lambda engine: BASE_VERSION)
        return [
            SavedAnswer(number, prompt, BASE_VERSION, HELD_OUT_SEED, answer.text, answer.finish_reason)
            for number, (prompt, answer) in enumerate(zip(self.prompts, found, strict=True))
        ]

    @cached_property
    def base_fluency(self) -> Fluency:
        """Of the base's answers."""
        return measure(self.base, mean_nll(self.backbone, self.base))

    @property
    def prompts(self) -> tuple[str, ...]:
        """Held out: nobody voted on an answer to them."""
        return tuple(self.preference.held_out_prompts()[: self.settings["held_out"]])

    @cached_property
    def chosen(self) -> list[tuple[Shown, Shown]]:
        """Of every vote that preferred something: the best and the worst answer."""
        messages = {prompt.id: prompt.messages for prompt in self.snapshot.prompts}

        def shown(vote: Ranked, place: int) -> Shown:
            text = self.backbone.tokenizer.decode(list(vote.answers[place]), skip_special_tokens=True)
            kind = BrokenOff if vote.finish_reasons[place] == "length" else Shown
            return kind(messages[vote.prompt_id], str(text))

        return [(shown(v, 0), shown(v, -1)) for v in self.snapshot.rankings if v.groups[0] != v.groups[-1]]

    def answers(self, load: Callable[[LocalEngine], int], each: int = 1) -> list[list[Rollout]]:
        """`each` answers to every held-out prompt, by the version that `load` puts into the engine."""
        engine = open_engine(self.backbone)
        sampling = Sampling(max_tokens=self.settings["max_tokens"], temperature=self.settings["temperature"])
        try:
            place = load(engine)
            prompts = [render(self.backbone.tokenizer, (Message("user", prompt),)) for prompt in self.prompts]
            found = sample(engine, place, prompts, answers_per_prompt=each, sampling=sampling, seed=HELD_OUT_SEED)
        finally:
            engine.close()
        return [found[start : start + each] for start in range(0, len(found), each)]

    def answers_of(self, load: Callable[[LocalEngine], int]) -> list[Rollout]:
        """One to each."""
        return [some[0] for some in self.answers(load)]

    def judged(self, answers: Sequence[Rollout]) -> dict[str, Any]:
        """Answers to the held-out prompts against the base's, and whether they are still text."""
        ours = [
            replace(base, text=answer.text, finish_reason=answer.finish_reason)
            for base, answer in zip(self.base, answers, strict=True)
        ]
        fluency = measure(ours, mean_nll(self.backbone, ours))
        return {
            **vars(contest(outcomes(self.preference, ours, self.base))),
            "fluency": fluency.as_json(),
            "complaints": complaints(fluency, self.base_fluency),
            "answers": [answer.text for answer in ours],
        }


def as_the_run_does(chain: Chain, work: Path) -> dict[str, Any]:
    """The version that the chain's run made, by PPO; the base where it made none."""

    def load(engine: LocalEngine) -> int:
        if chain.run["version"] is None:
            return BASE_VERSION
        engine.load(PLACE, chain.run_folder / "adapter")
        return PLACE

    return {**chain.judged(chain.answers_of(load)), "seconds": chain.run_seconds}


def best_of_4(chain: Chain, work: Path) -> dict[str, Any]:
    """The best of the base's answers, by the run's reward model."""
    fitted = RewardFit.load(chain.run_folder / "reward", chain.backbone, chain.scorer_shape)
    assert fitted is not None, "the chain's run has no reward model"
    answers = chain.answers(lambda engine: BASE_VERSION, BEST_OF)
    sequences, _ = padded_rollouts([answer for some in answers for answer in some])
    states = chain.frozen(sequences, chain.config.micro_batch_tokens)
    scores = fitted.scorer.all_values(states, sequences, chain.config.micro_batch_tokens)[1].view(-1, BEST_OF)
    return chain.judged([some[int(i)] for some, i in zip(answers, scores.argmax(-1), strict=True)])


def sft_on_chosen(chain: Chain, work: Path) -> dict[str, Any]:
    """SFT as a run does it, on every answer that was preferred."""
    policy = Policy(chain.backbone, chain.policy_shape, seed=0)
    start = time.perf_counter()
    fine_tune(
        policy,
        chain.frozen.trunk,
        [best for best, _ in chain.chosen],
        config=chain.config.sft,
        seed=0,
        progress=lambda step, done, metrics: None,
    )
    seconds = time.perf_counter() - start

    def load(engine: LocalEngine) -> int:
        engine.load_tensors(PLACE, policy.tensors(), scaling=policy.scaling)
        return PLACE

    return {**chain.judged(chain.answers_of(load)), "seconds": seconds}


def dpo(rate: float) -> Callable[[Chain, Path], dict[str, Any]]:
    """TRL's DPO at a learning rate."""

    def train(chain: Chain, work: Path) -> dict[str, Any]:
        out = work / f"dpo-{rate:g}"
        out.mkdir(parents=True, exist_ok=True)
        settings = {
            "model": str(chain.model.path), "threads": chain.threads, "learning_rate": rate,
            "dtype": str(chain.backbone.dtype).removeprefix("torch."),
            "seconds": chain.seconds,
            "votes": [
                {
                    "prompt": [{"role": m.role, "content": m.content} for m in best.messages],
                    "chosen": [{"role": "assistant", "content": best.answer}],
                    "rejected": [{"role": "assistant", "content": worst.answer}],
                }
                for best, worst in chain.chosen
            ],
        }  # fmt: skip
        (out / "settings.json").write_text(json.dumps(settings))
        worker = ROOT / "benchmarks" / "peers" / "trl_dpo.py"
        with (out / "log.txt").open("w") as log:
            command = [str(THEIRS), str(worker), str(out / "settings.json"), str(out)]
            subprocess.run(command, stdout=log, stderr=log, check=True)

        def load(engine: LocalEngine) -> int:
            engine.load(PLACE, out)
            return PLACE

        trained = json.loads((out / "result.json").read_text())
        return {**chain.judged(chain.answers_of(load)), **trained}

    return train


def steps_of(found: Mapping[str, Any]) -> str:
    """How far training came in its time, where that was not far enough."""
    return f" ({found['steps']} of {found['of']} steps)" if found.get("steps", 0) < found.get("of", 0) else ""


def spoiled(found: Mapping[str, Any]) -> str:
    """Why a win rate does not count, if it does not."""
    return f" (does not count: {'; '.join(found['complaints'])})" if found["complaints"] else ""


def main() -> None:
    """Try what is not tried yet, print, write."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.alternatives", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--preference", choices=sorted(PREFERENCES), default="brevity")
    parser.add_argument("--votes", type=int, default=300)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    if not THEIRS.exists():
        raise SystemExit(f"{THEIRS} is missing: `make peers-trl` installs it")
    made_by = sources(
        "alternatives.py", "fluency.py", "loop.py", "loop_result.py", "peers/trl_dpo.py", "prompts.py", "voters.py"
    )
    work = (
        ROOT
        / "benchmarks"
        / "work"
        / "alternatives"
        / f"{options.preference}-{options.votes}-{options.max_tokens}-{made_by}"
    )
    loop.main(
        [
            "--preference", options.preference, "--arms", "real", "--rounds", str(options.votes),
            "--max-tokens", str(options.max_tokens), "--work", str(work), "--json", str(work / "loop.json"),
        ]
    )  # fmt: skip
    chain = Chain(work / "real-0", PREFERENCES[options.preference], options.votes, options.threads)
    ways: dict[str, Callable[[Chain, Path], dict[str, Any]]] = {
        f"PPO, as the run does it ({chain.run['status']})": as_the_run_does,
        "best of 4 by the reward model": best_of_4,
        "SFT on the chosen answers": sft_on_chosen,
        **{f"TRL's DPO, learning rate {rate:g}": dpo(rate) for rate in DPO_RATES},
    }
    found: dict[str, dict[str, Any]] = {}
    for number, (way, function) in enumerate(ways.items()):
        file = work / f"{number}.json"
        if not file.is_file():
            write_json(file, function(chain, work))
        found[way] = json.loads(file.read_text())
        found[way].pop("answers")  # they stay in the file
        print(f"{way}: {json.dumps(found[way])}", flush=True)
    rows = []
    for way, it in found.items():
        rate = 0.5 if it["win_rate"] is None else it["win_rate"]
        rows += [
            Row(
                f"{way}{steps_of(it)}: win rate over the base{spoiled(it)}",
                "share",
                rate,
                low=it["low"],
                high=it["high"],
            ),
            Row(f"{way}: median words", "words", it["fluency"]["median_words"]),
            Row(f"{way}: training", "min", it.get("seconds", 0.0) / 60),
        ]
    print(*rows, sep="\n")
    if options.json is not None:
        settings = {
            "preference": options.preference, "votes": options.votes, "max_tokens": options.max_tokens,
            "run_seconds": chain.run_seconds, "seconds": chain.seconds,
        }  # fmt: skip
        write_json(options.json, document(f"alternatives-{options.preference}", settings, rows, found=found))


if __name__ == "__main__":
    main()
