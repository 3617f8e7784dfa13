"""Is our PPO the equation? One batch of TRL 1.12's rollouts, computed by its code and by ours, in float32.

    make peers
    python -m benchmarks.parity --json benchmarks/results/parity.json

TRL samples answers from a policy with a LoRA, measures them and takes some steps. Ours computes the log-probabilities
of the same tokens with the same weights, and `training.ppo_math` all that follows from them: rewards, advantages, both
losses and their gradients. Where the two differ by convention, the convention is named, switched, and both figures are
shown. Scores and values are TRL's own, for its models for them are built otherwise.

Not compared, because TRL has no such thing or has it elsewhere: the adaptive β, the penalty of capped answers, PTX, the
clamp of log-ratios at ±20, the norm of gradients (TRL does not clip), and one optimizer over both losses.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prompts import held_out_prompts
from benchmarks.record import ROOT, Row, document, write_json
from benchmarks.reference import CACHE, make_adapter
from serve.policy import chat
from serve.policy.base import Backbone, load_backbone, resolve_model
from serve.policy.split import boundary
from serve.records import Message
from training import ppo_math
from training.roles import FrozenLayers, LoraShape, Policy
from training.sequences import Sequences

PYTHON = ROOT / ".peers" / "trl-ppo" / "bin" / "python"
TOLERANCE = 1e-4
PAD = "<|endoftext|>"
"""TRL tells an answer's end by a padding token that no answer has; the model's own is its EOS."""
EPISODES, TOKENS = 16, 64
PPO: dict[str, Any] = {
    "minibatches": 4, "epochs": 2, "temperature": 0.8, "beta": 0.05, "gamma": 0.98, "lam": 0.95, "clip": 0.2,
    "value_clip": 0.2, "learning_rate": 1e-3,
}  # fmt: skip
MICRO_BATCH = 1024


Findings = dict[tuple[str, str], float]
"""The largest difference in each quantity, by its name and by what was switched to TRL's way (empty: nothing)."""


def run_trl(backbone: Backbone, adapter: Path, folder: Path, threads: int) -> dict[str, Any]:
    """TRL's tensors of one batch, and of each of its steps."""
    prompts = [chat.render(backbone.tokenizer, [Message("user", text)]) for text in held_out_prompts()]
    short = sorted(prompts, key=len)[:EPISODES]
    settings = PPO | {
        "model": str(backbone.folder.path), "adapter": str(adapter), "prompts": short, "pad_token": PAD,
        "tokens": TOKENS, "threads": threads,
    }  # fmt: skip
    (folder / "settings.json").write_text(json.dumps(settings))
    worker = ROOT / "benchmarks" / "peers" / "trl_ppo_worker.py"
    subprocess.run([PYTHON, worker, folder / "settings.json", folder / "out.pt"], check=True, cwd=folder)
    found: dict[str, Any] = torch.load(folder / "out.pt", weights_only=True)
    return found


def compare(trl: Mapping[str, Any], backbone: Backbone, adapter: Path) -> Findings:
    """All quantities, in the order in which a round computes them."""
    found: Findings = {}

    def check(what: str, ours: Tensor, theirs: Tensor, where: Tensor | None = None, convention: str = "") -> None:
        difference = (ours.detach() - theirs).abs().nan_to_num(math.inf)
        largest = float((difference if where is None else difference[where]).max())
        found[what, convention] = max(largest, found.get((what, convention), 0.0))

    # 1. The same tokens: TRL pads prompts on the left, and marks places past an answer's last token
    pad = backbone.tokenizer.convert_tokens_to_ids(PAD)
    mask, one_more = ~trl["padding_mask"], ~trl["padding_mask_p1"]
    lengths = (trl["sequence_lengths"] + 1).tolist()
    sequences = Sequences.of(
        [[token for token in query if token != pad] for query in trl["queries"].tolist()],
        [answer[:length] for answer, length in zip(trl["responses"].tolist(), lengths, strict=True)],
    )
    assert torch.equal(sequences.answer_mask, mask[:, : sequences.answer_mask.shape[1]])
    width = mask.shape[1]

    # 2. Log-probabilities of policy and reference
    first = boundary(backbone.layer_count, None)
    shape = LoraShape(first, rank=16, alpha=32)
    states = FrozenLayers(backbone, first, first)(sequences, MICRO_BATCH)
    policy, reference = (Policy(backbone, shape, seed=0, start=start) for start in (adapter, None))
    logprobs, reference_logprobs = (
        _widened(role.all_logprobs(states.boundary, sequences, PPO["temperature"], MICRO_BATCH), width)
        for role in (policy, reference)
    )
    check("old logprobs", logprobs, trl["logprobs"], mask)
    check("reference logprobs", reference_logprobs, trl["ref_logprobs"], mask)

    # 3. Rewards, advantages and returns
    scores, beta = trl["scores"], PPO["beta"]
    kl = ppo_math.kl_rewards(torch.zeros_like(scores), logprobs, reference_logprobs, mask, beta)
    check("KL rewards", kl, trl["non_score_reward"], mask)
    rewards = ppo_math.kl_rewards(scores, logprobs, reference_logprobs, mask, beta)
    moved = kl.clone()
    moved[torch.arange(len(kl)), ppo_math.last_index(one_more)] += scores
    place = "the score, and one more value, at the place after the last token"
    for convention, given, places in (("", rewards, mask), (place, moved, one_more)):
        advantages, returns = ppo_math.gae(given, trl["values"], places, gamma=PPO["gamma"], lam=PPO["lam"])
        check("rewards", given, trl["rewards"], convention=convention)
        check("advantages", advantages, trl["advantages"], mask, convention)
        check("returns", returns, trl["returns"], mask, convention)
    whitened = ppo_math.whiten(advantages, mask)
    check("whitened advantages", whitened, trl["whitened"], mask, "the same")
    count = int(mask.sum())
    whitened = whitened * math.sqrt((count - 1) / count)
    check("whitened advantages", whitened, trl["whitened"], mask, "the same; the variance over n − 1")

    # 4. Losses and their gradients: of the first step with our own log-probabilities, of later ones with TRL's
    for number, step in enumerate(trl["steps"], 1):
        name = "first" if number == 1 else "later"
        rows = step["micro_batch_inds"]
        some, more = mask[rows], one_more[rows]
        new = (logprobs[rows] if number == 1 else step["new_logprobs"]).requires_grad_()
        policy_loss, _ = ppo_math.clipped_policy_loss(new, logprobs[rows], whitened[rows], some, clip=PPO["clip"])
        check(f"{name} policy loss", policy_loss, step["pg_loss"], convention="the same")
        (gradient,) = torch.autograd.grad(policy_loss, new)
        check(f"{name} policy loss, its gradient", gradient, step["pg_gradient"], some, "the same")
        values = step["vpred"].requires_grad_()
        value_loss = ppo_math.clipped_value_loss(
            values, trl["values"][rows], returns[rows], more, clip=PPO["value_clip"]
        )
        check(f"{name} value loss", value_loss, step["vf_loss"], convention="the same")
        (gradient,) = torch.autograd.grad(value_loss, values)
        check(f"{name} value loss, its gradient", gradient, step["vf_gradient"], more, "the same")
    return found


def cases(trl: Mapping[str, Any]) -> list[Row]:
    """How much of what could differ occurs in the batch: without these, agreement would prove little."""
    ended = int((trl["sequence_lengths"] + 1 < trl["responses"].shape[1]).sum())
    clipped_ratios = clipped_values = 0
    for step in trl["steps"]:
        rows = step["micro_batch_inds"]
        ratio = (step["new_logprobs"] - trl["logprobs"][rows]).exp()
        clipped_ratios += int(((ratio - 1).abs() > PPO["clip"])[~trl["padding_mask"][rows]].sum())
        far = (step["vpred"] - trl["values"][rows]).abs() > PPO["value_clip"]
        clipped_values += int(far[~trl["padding_mask_p1"][rows]].sum())
    return [
        Row("answers that end before the limit", f"of {len(trl['responses'])}", ended),
        Row("tokens whose ratio left the clip, over all steps", "", clipped_ratios),
        Row("values that left the clip, over all steps", "", clipped_values),
    ]


def _widened(x: Tensor, width: int) -> Tensor:
    """(B, T) → (B, width), filled up with zeros."""
    return torch.nn.functional.pad(x, (0, width - x.shape[1]))


def rows_of(findings: Findings) -> list[Row]:
    """A row for each quantity and convention."""
    return [
        Row(what + (f" ({convention})" if convention else ""), "largest difference", float(f"{difference:.2g}"))
        for (what, convention), difference in findings.items()
    ]


def agrees(findings: Findings) -> bool:
    """Whether each quantity, with all conventions switched (its last entry), is within the tolerance."""
    return all(difference <= TOLERANCE for difference in {what: d for (what, _), d in findings.items()}.values())


def main() -> None:
    """Compare and print; exit 1 where something does not agree."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.parity", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    if not PYTHON.exists():
        raise SystemExit("TRL is not installed; `make peers` installs it")
    torch.set_num_threads(options.threads)
    backbone = load_backbone(resolve_model("default", CACHE), dtype="float32")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        adapter = make_adapter(folder / "lora", size=0.02)
        trl = run_trl(backbone, adapter, folder, options.threads)
        findings = compare(trl, backbone, adapter)
    occurring = cases(trl)
    rows = rows_of(findings) + occurring
    for row in rows:
        print(f"{row.what}: {row.ours:g}")
    if options.json is not None:
        settings = PPO | {"episodes": EPISODES, "tokens": TOKENS, "dtype": "float32", "threads": options.threads}
        write_json(options.json, document("parity", settings, rows))
    sys.exit(0 if agrees(findings) and all(row.ours > 0 for row in occurring) else 1)


if __name__ == "__main__":
    main()
