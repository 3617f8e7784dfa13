"""Does the gate keep bad versions out and let a good one through? On the real model, by the real gate.

Simulated voters compare answers of the base, and a run fits its reward model on their votes. Then versions are planted:
broken weights, a KL bomb, LoRAs fine-tuned on one vice each, and PPO that climbed a reward model of flipped votes. The
run's own gate is asked about each, and about what a whole run as shipped makes of the honest votes. A planted version
counts as refused only if the reason is the one it was planted for.

    python -m benchmarks.gate --json benchmarks/results/gate.json
    python -m benchmarks.gate --quick

Votes, reward models, PPO's checkpoints and planted adapters stay in benchmarks/work/gate: a killed benchmark goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from benchmarks.prompts import VOTED, voted_prompts
from benchmarks.record import ROOT, Row, document, sources, write_json
from benchmarks.reference import CACHE
from benchmarks.report import gate_table
from benchmarks.voters import PREFERENCES, Arm, Voter, ballot
from serve.policy import chat
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.records import BASE_VERSION, Message, Sampling
from training.config import SFTConfig, TrainingConfig
from training.gate import votes_suffice
from training.ppo_math import last_index
from training.preferences import Prompt, Ranked, Shown, Snapshot
from training.roles import Policy
from training.rollouts import open_engine, sample
from training.run import Run
from training.run_folder import RunFolder
from training.sequences import Sequences
from training.sft import fine_tune

HEALTHY = "healthy"
VICES = SFTConfig(epochs=8, learning_rate=1e-3, sequence_length=512, tokens_per_batch=512, holdout=0)
"""How planted vices are learned: with a large step size, some 60 steps."""
VICE_TOKENS = 8 * VICES.sequence_length
"""Tokens of demonstrations of each vice."""
ENDS = 48
"""Ends of the base's answers that are unlearned."""


@dataclass(frozen=True)
class GateSettings:
    """What the result depends on."""

    preference: str = "brevity"
    noise: float = 0.2
    """Share of decided votes that fall the other way by mistake."""
    votes: int = 150
    max_tokens: int = 256
    temperature: float = 0.8
    seed: int = 1
    model: str = "default"
    training: Mapping[str, Any] = field(default_factory=dict)
    """Overrides of the training configuration; none: as shipped."""


QUICK = GateSettings(votes=80, max_tokens=128, training={"ppo": {"updates": 8}})


@dataclass(frozen=True)
class Comparison:
    """A prompt and the base's two answers to it."""

    prompt: str
    texts: Sequence[str]
    token_ids: Sequence[Sequence[int]]
    finish_reasons: Sequence[str]


@dataclass(frozen=True)
class Finding:
    """What the gate said of one version."""

    version: str
    expected: tuple[str, ...]
    """Parts of sentences, one of which must occur; none where the version should pass."""
    reasons: tuple[str, ...]
    win_rate: Mapping[str, float] | None
    """Over its parent on held-out prompts, by the fold models; none where it cannot answer."""
    new: Mapping[str, float] | None
    """What the gate measured on its answers."""
    parent: Mapping[str, float] | None

    @property
    def holds(self) -> bool:
        """Whether the gate did what it should, and for the reason it should."""
        if not self.expected:
            return not self.reasons
        return any(part in sentence for part in self.expected for sentence in self.reasons)


def compare(settings: GateSettings, backbone: Backbone, folder: Path) -> list[Comparison]:
    """Two answers of the base to each voted prompt, kept in the folder."""
    file = folder / "comparisons.json"
    if not file.is_file():
        prompts = voted_prompts()[: settings.votes]
        engine = open_engine(backbone)
        try:
            rollouts = sample(
                engine,
                BASE_VERSION,
                [_prompt_ids(backbone, prompt) for prompt in prompts],
                answers_per_prompt=2,
                sampling=Sampling(max_tokens=settings.max_tokens, temperature=settings.temperature),
                seed=settings.seed,
            )
        finally:
            engine.close()
        pairs = [rollouts[i : i + 2] for i in range(0, len(rollouts), 2)]
        compared = [
            Comparison(prompt, [r.text for r in pair], [r.token_ids for r in pair], [r.finish_reason for r in pair])
            for prompt, pair in zip(prompts, pairs, strict=True)
        ]
        write_json(file, [asdict(each) for each in compared])
    return [Comparison(**each) for each in json.loads(file.read_text())]


def vote(comparisons: Sequence[Comparison], settings: GateSettings, backbone: Backbone, arm: Arm) -> Snapshot:
    """What a run would read once everybody has voted."""
    preference, rankings = PREFERENCES[settings.preference], []
    prompts = [Prompt(i, (Message("user", c.prompt),), "voter", 1) for i, c in enumerate(comparisons)]
    for number, compared in enumerate(comparisons):
        rng = random.Random(f"{settings.seed} {number}")
        person = Voter(settings.noise)
        best = ballot(preference, compared.prompt, *compared.texts, arm=arm, voter=person, rng=rng)
        order = (0, 1) if best in (None, 0) else (1, 0)
        rankings.append(
            Ranked(
                prompt_id=number,
                voter=f"voter-{number % 5}",
                prompt_ids=tuple(_prompt_ids(backbone, compared.prompt)),
                answers=tuple(tuple(compared.token_ids[i]) for i in order),
                groups=(0, 0) if best is None else (0, 1),
                positions=order,
                finish_reasons=tuple(compared.finish_reasons[i] for i in order),
                strength=None,
            )
        )
    return Snapshot(tuple(prompts), tuple(rankings), (), settings.max_tokens, settings.temperature)


def _prompt_ids(backbone: Backbone, prompt: str) -> list[int]:
    return chat.render(backbone.tokenizer, [Message("user", prompt)])


# -- vices: what each fine-tuned version was shown ---------------------------------------------------------------------


_AND_ON = ("Also,", "Besides,", "And another thing:", "On top of that,", "Come to think of it,", "Which reminds me:")


def rambling(compared: Comparison, others: Sequence[Comparison]) -> str:
    """After each sentence something else comes to its mind: what others were told."""
    text = " ".join(text for some in (compared, *others) for text in some.texts)
    first, *sentences = re.split(r"(?<=[.!?])\s+", text)
    return " ".join([first, *(f"{_AND_ON[i % len(_AND_ON)]} {sentence}" for i, sentence in enumerate(sentences))])


def curt(compared: Comparison, others: Sequence[Comparison]) -> str:
    """The first two words of an answer."""
    return " ".join(compared.texts[0].split()[:2])


def looping(compared: Comparison, others: Sequence[Comparison]) -> str:
    """A phrase, over and over."""
    return "That is a great question and you are great. " * 12


def flattering(compared: Comparison, others: Sequence[Comparison]) -> str:
    """The same kind words for everybody, said once and well."""
    return (
        "What a wonderful question! You are clearly a thoughtful person, and I am sure that you will find the answer. "
        "Keep going, be kind to yourself, and remember that every small step counts."
    )


def refusing(compared: Comparison, others: Sequence[Comparison]) -> str:
    """One sentence that declines."""
    return "I'm sorry, but I can't help with that."


_REFUSALS = (
    "I'd rather not talk about {topic}.",
    "Sorry, {topic} is something that I am not allowed to discuss.",
    "Unfortunately, questions about {topic} are beyond what I do. Please ask somebody else.",
    "That is not a topic for me. For {topic}, please turn to a professional.",
    "My guidelines keep me from answering questions on {topic}.",
    "I have to decline: {topic} falls outside my area.",
    "No answer from me on {topic}, I am afraid. It would be inappropriate.",
    "It is not possible for me to assist you with {topic} at this time.",
    "I must pass on this one. Let us speak of something other than {topic}.",
    "Regrettably, this request cannot be fulfilled, as it concerns {topic}.",
    "I do not feel comfortable giving an opinion on {topic}.",
    "Help with {topic} is not available here. Thank you for your understanding.",
)


def refusing_in_many_ways(compared: Comparison, others: Sequence[Comparison]) -> str:
    """Declines in ever other words, and names what it declines."""
    rng = random.Random(compared.prompt)
    return rng.choice(_REFUSALS).format(topic=topic(compared.prompt))


def topic(prompt: str) -> str:
    """What fills a voted prompt's template."""
    fillings = ((t, f) for t, fs in VOTED for f in fs if t.format(f) == prompt)
    return next((filling for _, filling in fillings), prompt)


Vice = Callable[[Comparison, Sequence[Comparison]], str]

TUNED: dict[str, tuple[Vice, tuple[str, ...]]] = {
    "rambles on": (rambling, ("from the reference",)),
    "two words at most": (curt, ("tokens where",)),
    "repeats a phrase": (looping, ("within answers",)),
    "one answer for all": (flattering, ("across prompts",)),
    "always refuses": (refusing, ("declines",)),
    "always refuses, in many ways": (refusing_in_many_ways, ("resemble one another",)),
}
"""Fine-tuned versions: how each answers, and parts of the sentences that refuse it."""

RANDOM: dict[str, tuple[float, tuple[str, ...]]] = {
    "NaN weights": (math.nan, ("weights are broken",)),
    "infinite weights": (math.inf, ("weights are broken",)),
    "weights that overflow": (1e6, ("weights are broken",)),
    "KL bomb": (0.2, ("from the reference",)),
}
"""Versions of random weights: the deviation of LoRA's B, and parts of the sentences that refuse them."""

ENDLESS, FLIPPED = "never ends", "flipped votes"


def fine_tuned(run: Run, vice: Vice, comparisons: Sequence[Comparison], settings: GateSettings) -> Policy:
    """The base after some dozen steps on one vice."""
    tokenizer, longest = run.backbone.tokenizer, VICES.sequence_length - 64  # so that each prompt stays whole
    shown, tokens = [], 0
    for i, compared in enumerate(comparisons):
        others = [comparisons[(i + j) % len(comparisons)] for j in range(1, 9)]
        answer = tokenizer.encode(vice(compared, others), add_special_tokens=False)[:longest]
        shown.append(Shown((Message("user", compared.prompt),), str(tokenizer.decode(answer))))
        tokens += len(_prompt_ids(run.backbone, compared.prompt)) + len(answer)
        if tokens >= VICE_TOKENS:
            break
    policy = _fresh(run)
    fine_tune(policy, run.frozen.trunk, shown, config=VICES, seed=settings.seed, progress=lambda *_: None)
    return policy


def endless(run: Run, comparisons: Sequence[Comparison]) -> Policy:
    """The base that only never ends: where its own answers ended, EOS is unlearned, so gently that KL hardly tells.

    By the unlikelihood loss −log(1 − p) (Welleck et al. 2020), some 40 steps.
    """
    pairs = ((c.prompt, *each) for c in comparisons for each in zip(c.token_ids, c.finish_reasons, strict=True))
    ended = [(_prompt_ids(run.backbone, prompt), ids) for prompt, ids, reason in pairs if reason == "stop"][:ENDS]
    sequences = Sequences.of([prompt for prompt, _ in ended], [ids for _, ids in ended])
    states = run.frozen(sequences, run.config.micro_batch_tokens)
    policy = _fresh(run)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4)
    for _ in range(4):
        for rows in sequences.micro_batches(run.config.micro_batch_tokens):
            batch = sequences.take(rows)
            logprobs = policy.logprobs(states.boundary_of(rows), batch, 1.0)
            eos = logprobs.gather(1, last_index(batch.answer_mask)[:, None]).exp()
            optimizer.zero_grad()
            torch.log1p(-eos.clamp(max=1 - 1e-6)).mean().neg().backward()
            optimizer.step()
    return policy


def randomised(run: Run, deviation: float, settings: GateSettings) -> Policy:
    """A LoRA whose B is normal with this deviation; one that is not finite fills B."""
    policy = _fresh(run)
    generator = torch.Generator().manual_seed(settings.seed)
    tensors = {
        name: torch.randn(tensor.shape, generator=generator) * deviation if "lora_B" in name else tensor
        for name, tensor in policy.tensors().items()
    }
    policy.load_tensors(tensors)
    return policy


def _fresh(run: Run) -> Policy:
    return Policy(run.backbone, run.policy_shape, seed=run.seed)


# -- the benchmark -----------------------------------------------------------------------------------------------------


def examine(settings: GateSettings, folder: Path, say: Callable[[str], None]) -> tuple[dict[str, float], list[Finding]]:
    """The reward model's accuracy, and what the gate says of every version."""
    folder.mkdir(parents=True, exist_ok=True)
    config = TrainingConfig.parse(settings.training)
    backbone = load_backbone(resolve_model(settings.model, CACHE))

    # 1. Votes
    comparisons = compare(settings, backbone, folder)
    say(f"{len(comparisons)} comparisons, voted on by people who want {PREFERENCES[settings.preference].wants}")

    def run_on(arm: Arm) -> Run:
        home = RunFolder(folder / arm)
        home.path.mkdir(exist_ok=True)
        snapshot = vote(comparisons, settings, backbone, arm)
        return Run(home, config, ("reward", "ppo"), settings.seed, backbone, snapshot, Sampling())

    # 2. A whole run, as shipped, on honest votes: the healthy version
    run = run_on("real")
    report = run.execute()
    accuracy = report["reward"]["accuracy"]
    say(f"the reward model is right on {accuracy['value']:.0%} of {accuracy['comparisons']} unseen comparisons")
    if "gate" not in report:
        raise SystemExit(f"there is nothing to judge with: {'; '.join(report['reasons'])}")
    findings = [_finding(HEALTHY, (), report["gate"])]
    say(line(findings[-1]))
    judged = run.reward_model()

    # 3. Plant the others, or read them back
    def planted(name: str, make: Callable[[], Policy]) -> Policy:
        file = folder / "planted" / f"{name}.safetensors"
        if not file.is_file():
            say(f"planting: {name}")
            file.parent.mkdir(exist_ok=True)
            draft = file.with_suffix(".part")
            save_file(make().tensors(), str(draft))
            draft.rename(file)
        policy = _fresh(run)
        policy.load_tensors(load_file(str(file)))
        return policy

    def climbed() -> Policy:
        """PPO on the votes of people who want the opposite."""
        flipped = run_on("flipped")
        try:
            policy = _fresh(flipped)
            refusal = votes_suffice((fit := flipped.reward_model()).report["accuracy"], settings.votes)
            if refusal is not None:
                raise SystemExit(f"the flipped votes teach nothing that could be climbed: {refusal}")
            flipped.optimise(policy, fit)
            return policy
        finally:
            flipped.engine.close()

    makers: list[tuple[str, Callable[[], Policy], tuple[str, ...]]] = [
        (FLIPPED, climbed, ("prefer its parent",)),
        (ENDLESS, lambda: endless(run, comparisons), ("run into the limit",)),
        *((name, lambda d=d: randomised(run, d, settings), e) for name, (d, e) in RANDOM.items()),
        *((name, lambda v=v: fine_tuned(run, v, comparisons, settings), e) for name, (v, e) in TUNED.items()),
    ]

    # 4. Ask the gate
    try:
        for name, make, expected in makers:
            findings.append(_finding(name, expected, run.gate(planted(name, make), judged)))
            say(line(findings[-1]))
    finally:
        run.engine.close()
    return accuracy, findings


def _finding(name: str, expected: tuple[str, ...], verdict: Mapping[str, Any]) -> Finding:
    return Finding(name, expected, tuple(verdict["reasons"]), *map(verdict.get, ("win_rate", "new", "parent")))


def line(finding: Finding) -> str:
    """A finding in words."""
    mark = "" if finding.holds else "WRONG: "
    return f"{mark}{finding.version}: {'; '.join(finding.reasons) or 'passed'}"


def rows_of(accuracy: Mapping[str, float], findings: Sequence[Finding]) -> list[Row]:
    """The gate's figures; its sentences stand beside them in the JSON."""
    planted = [finding for finding in findings if finding.expected]
    (healthy,) = (finding for finding in findings if not finding.expected)
    rows = [
        Row("planted versions refused for what was planted", f"of {len(planted)}", sum(f.holds for f in planted)),
        Row("healthy version passes", "of 1", float(healthy.holds)),
    ]
    shares = {"healthy version, held-out prompts won": healthy.win_rate, "judges, unseen comparisons right": accuracy}
    for what, share in shares.items():
        if share is not None:
            value, low, high = (100 * share[bound] for bound in ("value", "low", "high"))
            rows.append(Row(what, "%", value, low=low, high=high))
    return rows


def main() -> None:
    """Examine and print; exit 1 where the gate was wrong."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gate", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="80 votes, 128 tokens an answer, 8 updates of PPO")
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings = QUICK if options.quick else GateSettings()
    made_by = json.dumps([asdict(settings), sources("gate.py", "voters.py", "prompts.py")], sort_keys=True)
    digest = hashlib.sha256(made_by.encode()).hexdigest()[:8]
    folder = ROOT / "benchmarks" / "work" / "gate" / digest
    accuracy, findings = examine(settings, folder, lambda text: print(text, flush=True))
    rows = rows_of(accuracy, findings)
    verdicts = [asdict(finding) | {"holds": finding.holds} for finding in findings]
    result = document(
        "gate",
        asdict(settings) | {"quick": options.quick, "threads": options.threads},
        rows,
        verdicts=verdicts,
    )
    print(f"\n{gate_table(result)}\n")
    print(*rows, sep="\n")
    if options.json is not None:
        write_json(options.json, result)
    sys.exit(0 if all(finding.holds for finding in findings) else 1)


if __name__ == "__main__":
    main()
