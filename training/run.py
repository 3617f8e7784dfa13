"""One training run, from its folder alone: snapshot → (SFT) → reward model → PPO → gate → report.

Each stage leaves its result in the folder, so a run that was killed goes on where it stood: a finished stage is read
back, PPO continues from its last checkpoint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve.errors import AdapterError, InvalidInput, NothingToLearn, Unavailable
from serve.policy.adapters import WEIGHTS, sync
from serve.policy.base import Backbone, ModelFolder, load_backbone
from serve.records import BASE_VERSION, Sampling
from training.config import MIN_TEMPERATURE, TrainingConfig
from training.gate import UNABLE, Answers, judge, votes_suffice
from training.ppo import POLICY_PLACE, PPO, Roles
from training.preferences import LONGEST_RANKED, Prompt, Snapshot, demonstrations_hash, read_snapshot
from training.prompts import split_prompts
from training.reporter import Reporter
from training.reward import RewardFit, fit_reward
from training.roles import FrozenLayers, FrozenStates, LoraShape, Policy, lora_shapes
from training.rollouts import open_engine, padded_rollouts, sample
from training.run_folder import RunFolder
from training.scorer import Scorer
from training.sequences import Sequences
from training.sft import fine_tune, row_tokens
from training.split import check_split

log = logging.getLogger(__name__)

REFERENCE_PLACE, PARENT_PLACE = -2, -3
"""The engine's names for versions that are not published under a number here."""

ROLLOUT_TOKENS = 128
"""Rollouts end here at the latest if nothing else is asked for: longer ones take longer and taught no more."""

REFERENCE_ANSWERS = 64
"""Answers of the reference on which scores get mean 0 and standard deviation 1."""

LONGEST_PROMPT = 1024
"""Tokens; longer prompts are not answered in a run."""


def execute(path: Path) -> dict[str, Any]:
    """Carry the run out and return its report; the caller writes it."""
    folder = RunFolder(path)
    asked = folder.config()
    config = TrainingConfig.parse(asked["settings"])
    stages: list[str] = asked["stages"]
    seed = int(asked["seed"])
    model = asked["model"]
    if model.get("threads"):
        torch.set_num_threads(int(model["threads"]))
    torch.manual_seed(seed)
    backbone = load_backbone(
        ModelFolder(Path(model["path"]), model["name"], model["hash"], Path(model["cache"])), dtype=model["dtype"]
    )
    longest = min(LONGEST_RANKED, backbone.context_length)
    snapshot = read_snapshot(folder.snapshot, backbone.tokenizer, longest)
    serving = Sampling(**asked.get("serving", {}))  # runs of earlier releases do not say
    run = Run(folder, config, stages, seed, backbone, snapshot, serving)
    try:
        return run.execute()
    finally:
        run.engine.close()


class Run:
    """The pieces that all stages share, and the stages in order."""

    def __init__(
        self,
        folder: RunFolder,
        config: TrainingConfig,
        stages: Sequence[str],
        seed: int,
        backbone: Backbone,
        snapshot: Snapshot,
        serving: Sampling,
    ) -> None:
        """`serving` is what the server samples with where nobody asks for anything else."""
        self.folder, self.config, self.stages, self.seed = folder, config, stages, seed
        self.backbone, self.snapshot, self.serving = backbone, snapshot, serving
        self.report: dict[str, Any] = {
            "status": "succeeded",
            "reasons": [],
            "adapter": False,
            "reference": "base",
            "demonstrations_hash": demonstrations_hash(snapshot.demonstrations) if snapshot.demonstrations else None,
            "settings": asdict(config),  # whole, defaults included: with base, snapshot and seed it makes the version
        }
        self.reporter = Reporter(folder.path, stages)
        self.policy_shape, self.scorer_shape = lora_shapes(backbone, config)
        first, near = self.policy_shape.first_layer, self.scorer_shape.first_layer
        check_split(backbone.model, [0, first, near, backbone.layer_count])
        self.frozen = FrozenLayers(backbone, first, near)
        # The base as a policy: a fresh LoRA adds nothing, and this one, the smallest there is, is never trained.
        self.base = Policy(backbone, LoraShape(near, rank=1, alpha=1), seed=seed)
        self.reference_adapter: Path | None = None
        self.reference = self.base
        max_tokens = config.ppo.max_tokens or snapshot.max_tokens or serving.max_tokens
        if max_tokens >= backbone.context_length:
            raise InvalidInput(
                f"rollouts of {max_tokens} tokens leave no room for a prompt in the model's {backbone.context_length}; "
                "set ppo.max_tokens"
            )
        temperature = rollout_temperature(config.ppo.temperature, snapshot.temperature, serving.temperature)
        # The gate judges answers as they will be served; those that PPO learns from may end sooner
        self.sampling = Sampling(max_tokens=max_tokens, temperature=temperature)
        self.rollout_sampling = replace(
            self.sampling, max_tokens=config.ppo.max_tokens or min(ROLLOUT_TOKENS, max_tokens)
        )
        longest = min(LONGEST_PROMPT, backbone.context_length - max_tokens)
        self.pool, self.held_out = split_prompts(
            [*snapshot.prompts, *(Prompt(-1, d.messages, "demonstrated", 1) for d in snapshot.demonstrations)],
            backbone.tokenizer,
            longest=longest,
            held_out=config.gate.held_out_prompts,
        )
        if not self.held_out:
            raise NothingToLearn(
                f"no two prompts of at most {longest} tokens to answer; let people chat first, or lower ppo.max_tokens"
            )
        if ("reward" in stages or "ppo" in stages) and not snapshot.rankings:
            raise NothingToLearn("no vote stands any more; let people vote first")
        if list(stages) == ["sft"] and not snapshot.demonstrations:
            raise NothingToLearn("no demonstration stands any more; let people write answers first")
        self.engine = open_engine(backbone)

    def execute(self) -> dict[str, Any]:
        """All stages; returns the report."""
        if "sft" in self.stages and self.snapshot.demonstrations:
            self.reference_adapter = self.supervised()
            self.reference = self._policy(self.reference_adapter)
        policy = self._policy(self.reference_adapter)
        judged: RewardFit | None = None
        if "reward" in self.stages or "ppo" in self.stages:
            judged = self.reward_model()
            refusal = votes_suffice(judged.report["accuracy"], len(self.snapshot.rankings))
            if refusal:
                return self._rejected([refusal])
        if "ppo" in self.stages:
            assert judged is not None
            self.optimise(policy, judged)
        elif self.reference_adapter is None:  # the reward model alone was asked for
            return self.report
        elif kept_no_epoch(self.report["sft"]):
            return self._rejected(["SFT kept no epoch: the demonstrations that it held out became no likelier"])
        policy.save(self.folder.adapter)
        self.report["adapter"] = True
        gate = self.gate(policy, judged)
        self.report["gate"] = gate
        if gate["passed"]:
            return self.report
        return self._rejected([*no_step(self.report.get("ppo"), self.config.ppo.value_warmup), *gate["reasons"]])

    def supervised(self) -> Path:
        """Step 1 → the folder of the SFT adapter, which is then the reference."""
        target = self.folder.sft
        self.report["reference"] = "sft"
        figures = target / "report.json"
        if (target / WEIGHTS).is_file():
            log.info("the SFT adapter for these demonstrations is there already: it is the reference")
            if figures.is_file():
                self.report["sft"] = json.loads(figures.read_text())
            return target
        policy = self._policy(None)
        self.reporter("sft", 0, 0.0, {})

        def progress(step: int, done: float, metrics: dict[str, float]) -> None:
            self.reporter("sft", step, done, metrics)

        self.report["sft"] = fine_tune(
            policy,
            self.frozen.trunk,
            self.snapshot.demonstrations,
            config=self.config.sft,
            seed=self.seed,
            progress=progress,
        )
        draft = target.with_suffix(".part")
        policy.save(draft)
        (draft / figures.name).write_text(json.dumps(self.report["sft"], indent=2) + "\n")
        for entry in (*draft.iterdir(), draft):
            sync(entry)
        draft.rename(target)
        sync(target.parent)
        return target

    def reward_model(self) -> RewardFit:
        """Step 2 → the reward model, its scores normalised on the reference's answers."""
        target = self.folder.path / "reward"
        fitted = RewardFit.load(target, self.backbone, self.scorer_shape)
        if fitted is None:
            self.reporter("reward", 0, 0.0, {})

            def progress(step: int, done: float, metrics: dict[str, float]) -> None:
                self.reporter("reward", step, done * 0.9, metrics)

            fitted = fit_reward(
                self.snapshot.rankings,
                backbone=self.backbone,
                frozen=self.frozen,
                shape=self.scorer_shape,
                config=self.config.reward,
                micro_batch_tokens=self.config.micro_batch_tokens,
                seed=self.seed,
                progress=progress,
            )
            # If they do not suffice the run ends here, and nobody reads scores
            if votes_suffice(fitted.report["accuracy"], len(self.snapshot.rankings)) is None:
                fitted.report["normalisation"] = self._normalise(fitted)
            fitted.save(target)
        accuracy = fitted.report["accuracy"]["value"]
        log.info("the reward model is right on %.0f%% of unseen comparisons", 100 * accuracy)
        self.report["reward"] = fitted.report
        return fitted

    def _normalise(self, fitted: RewardFit) -> dict[str, float]:
        """Scores get mean 0 and standard deviation 1 on the reference's own answers, so that β keeps its meaning."""
        place = self._place(REFERENCE_PLACE, self.reference_adapter)
        prompts = self.pool.draw(REFERENCE_ANSWERS, self.seed)
        rollouts = sample(
            self.engine, place, prompts, answers_per_prompt=1, sampling=self.rollout_sampling, seed=self.seed
        )
        sequences, _ = padded_rollouts(rollouts)
        states = self.frozen(sequences, self.config.micro_batch_tokens)
        scores = fitted.scorer.all_values(states, sequences, self.config.micro_batch_tokens)[1]
        shift, scale = float(scores.mean()), max(float(scores.std()), 1e-6)
        fitted.scorer.rescale(shift, scale)
        return {"mean": shift, "std": scale, "answers": len(rollouts)}

    def optimise(self, policy: Policy, judged: RewardFit) -> None:
        """Step 3: PPO; leaves the policy at its best step."""
        config = self.config.ppo
        checkpoint = self.folder.path / "checkpoint" / "ppo.pt"
        checkpoint.parent.mkdir(exist_ok=True)
        ppo = PPO(
            roles=Roles(
                policy=policy,
                reference_logprobs=self._reference_logprobs,
                reward=judged.scorer,
                value=self._value_model(judged.scorer),
                frozen=self.frozen,
            ),
            engine=self.engine,
            pool=self.pool,
            config=config,
            gate=self.config.gate,
            sampling=self.rollout_sampling,
            penalise_cap=self.rollout_sampling.max_tokens == self.serving.max_tokens,
            demonstrations=self._demonstrations() if config.ptx > 0 else None,
            micro_batch_tokens=self.config.micro_batch_tokens,
            seed=self.seed,
        )
        if not checkpoint.is_file():
            self.reporter("ppo", 0, 0.0, {})
        elif ppo.load(checkpoint):
            log.info("PPO goes on from update %d", ppo.progress.update)
        else:
            log.warning("another release of Hustings wrote the checkpoint: PPO begins anew")
        for batch in ppo.run():
            update = ppo.progress.update
            measured = update + (ppo.progress.stopped is not None)  # the last policy has no update of its own
            decode = partial(self.backbone.tokenizer.decode, skip_special_tokens=True)
            prompts = [str(decode(list(rollout.prompt_ids))) for rollout in batch.rollouts]
            self.reporter.answers(measured, prompts, [r.text for r in batch.rollouts], batch.scores.tolist())
            self.reporter("ppo", measured, update / config.updates, batch.metrics)
            told = (batch.metrics[name] for name in ("score", "kl", "sampler_gap", "sampler_kl"))
            log.info("policy %d: score %.2f, KL %.2f; sampler and trainer: mean |Δ| %.4f, KL %.4f", measured, *told)
            if update % self.config.checkpoint_updates == 0:  # last: a kill before it repeats the update's lines
                ppo.save(checkpoint)
        state = ppo.progress
        log.info("PPO has ended: %s; the best step is %s", state.stopped, state.best_update)
        policy.load_tensors(ppo.best)
        self.report["ppo"] = {
            "updates": state.update,
            "best_update": state.best_update,
            "best_score": state.best_score,
            "best_kl": state.best_kl,
            "stopped": state.stopped,
            "faults": state.faults,
            "max_tokens": self.rollout_sampling.max_tokens,
            "temperature": self.sampling.temperature,
            "last": state.last,
        }

    def gate(self, policy: Policy, judged: RewardFit | None) -> dict[str, Any]:
        """Answers of the new version and of its parent to the held-out prompts, judged."""
        self.reporter("gate", 1, 0.0, {})
        parent = self._place(PARENT_PLACE, self.folder.parent if self.folder.parent.is_dir() else None)
        before = self._answers(parent, judged)
        self.reporter("gate", 2, 0.45, {})
        try:
            self.engine.load_tensors(POLICY_PLACE, policy.tensors(), scaling=policy.scaling)
            after = self._answers(POLICY_PLACE, judged)
        except (AdapterError, Unavailable) as error:  # it has answered with the parent: it is not the engine
            log.info("%s", error)
            return {"passed": False, "reasons": [UNABLE]}
        verdict = judge(after, before, self.config.gate, compare=judged is not None)
        self.reporter("gate", 3, 1.0, {"win_rate": verdict["win_rate"]["value"]})
        return verdict

    def _answers(self, place: int, judged: RewardFit | None) -> Answers:
        """A version's answers to the held-out prompts, with the same seeds for each version."""
        rollouts = sample(
            self.engine, place, self.held_out, answers_per_prompt=1, sampling=self.sampling, seed=self.seed
        )
        tokens = self.config.micro_batch_tokens
        sequences, sampled = padded_rollouts(rollouts)
        states = self.frozen(sequences, tokens)
        expected = self._reference_logprobs(states, sequences)
        kl = (sampled - expected) * sequences.answer_mask
        nll = -self.base.all_logprobs(states.near, sequences, 1.0, tokens)
        scores = judged.judges.score(states, sequences, tokens) if judged else torch.zeros(len(rollouts))
        return Answers(rollouts, kl.sum(-1).tolist(), nll.sum(-1).tolist(), scores.tolist())

    def _value_model(self, reward: Scorer) -> Scorer:
        """The reward model's twin; or one that says 0 of everything, on the same features."""
        value = reward.twin(self.backbone)
        if not self.config.ppo.value_from_reward:
            with torch.no_grad():
                for head in (value.weight, value.bias, value.caution):
                    head.zero_()
        return value

    def _policy(self, start: Path | None) -> Policy:
        return Policy(self.backbone, self.policy_shape, seed=self.seed, start=start)

    def _reference_logprobs(self, states: FrozenStates, sequences: Sequences) -> Tensor:
        """Of what KL is measured against: the SFT adapter, else the base, which shares the middle layers, too."""
        inputs = states.near if self.reference is self.base else states.boundary
        return self.reference.all_logprobs(inputs, sequences, self.sampling.temperature, self.config.micro_batch_tokens)

    def _place(self, place: int, adapter: Path | None) -> int:
        """Make an adapter resident in the engine; no adapter is the base, which always is."""
        if adapter is None:
            return BASE_VERSION
        self.engine.load(place, adapter)
        return place

    def _demonstrations(self) -> Sequences | None:
        if not self.snapshot.demonstrations:
            return None
        length = row_tokens(self.config.sft, self.backbone)
        texts = [d.token_ids(self.backbone.tokenizer, length) for d in self.snapshot.demonstrations]
        return Sequences.of([prompt for prompt, _ in texts], [answer for _, answer in texts])

    def _rejected(self, reasons: list[str]) -> dict[str, Any]:
        for reason in reasons:
            log.info("refused: %s", reason)
        return {**self.report, "status": "rejected", "reasons": reasons}


def kept_no_epoch(sft: dict[str, Any]) -> bool:
    """Whether SFT left the policy as it was. `sft`: its report; without held-out demonstrations nobody knows."""
    return bool(sft["held_out_losses"]) and min(sft["held_out_losses"]) == sft["held_out_losses"][0]


def no_step(ppo: dict[str, Any] | None, value_warmup: int) -> list[str]:
    """Why PPO has nothing to show, if it has not: the gate sees only that nothing has changed. `ppo`: its report."""
    if ppo is None or (ppo["best_update"] or 0) > value_warmup:  # until then it is the reference
        return []
    last = f"of the last one: {ppo['faults'][0]}" if ppo["faults"] else "none within the bounds scored higher"
    return [f"PPO kept no step ({ppo['stopped']}); {last}"]


def rollout_temperature(asked: float | None, voted: float | None, served: float) -> float:
    """The one asked for, else that of the voted answers; greedy ones teach nothing, so there the server's, else 1."""
    if asked is not None:
        return asked
    return next((t for t in (voted, served) if t is not None and t >= MIN_TEMPERATURE), 1.0)


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """The last file of a run: with it the run has ended."""
    draft = folder / "report.json.part"
    draft.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    draft.rename(folder / "report.json")
