"""Does the engine compute the model? Token by token beside transformers with the canonical weights and PEFT's LoRA.

    python -m benchmarks.agreement --json benchmarks/results/agreement.json
    python -m benchmarks.agreement --quick

The reference writes a greedy answer to each of 100 prompts, as the base and with an adapter. The engine's decoder then
reads the same tokens, one a step, in a batch of 1 and of 16, before and after the adapter was swapped in: where its
likeliest token is not the reference's, the distance between the two in the reference's own logits says how near a tie
it was.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.prompts import held_out_prompts
from benchmarks.record import Row, document, write_json
from benchmarks.reference import CACHE, Reference, make_adapter
from serve.engine.decoder import Decoder
from serve.engine.decoders import open_decoder
from serve.engine.lora_weights import read_adapter
from serve.policy import chat
from serve.policy.base import load_backbone, resolve_model
from serve.records import Message

PROMPTS = 100
TOKENS = 32
BATCHES = (1, 16)


@dataclass(frozen=True)
class Difference:
    """A position at which another token is likeliest."""

    version: int
    batch: int
    prompt: int
    position: int
    ours: int
    theirs: int
    nats: float
    """By how much the reference likes its own choice better."""


@dataclass(frozen=True)
class Case:
    """A prompt and the reference's answer to it."""

    prompt: list[int]
    answer: list[int]
    logits: Tensor
    """(tokens of the answer, V)"""


@torch.inference_mode()
def teacher_forced(decoder: Decoder, version: int, cases: Sequence[Case]) -> list[list[int]]:
    """The likeliest token at each position of each answer, all of them decoded together."""
    slots = decoder.slots()
    first = []
    for case in cases:
        cache = decoder.prompt([version], case.prompt)
        decoder.bank.route([version])
        logits = torch.empty(0)
        while cache.length < len(case.prompt):
            logits = decoder.forward(torch.tensor([case.prompt[cache.length :]]), cache)
        first.append(int(logits[0].argmax()))
        slots.adopt(cache, 0)
    found = [[token] for token in first]
    for position in range(TOKENS - 1):
        decoder.bank.route([version] * len(cases))
        logits = decoder.forward(torch.tensor([[case.answer[position]] for case in cases]), slots)
        for row, token in zip(found, logits.argmax(-1).tolist(), strict=True):
            row.append(token)
    return found


def compare(decoder: Decoder, version: int, cases: Sequence[Case], batch: int) -> list[Difference]:
    """Where the decoder would have gone another way."""
    found = []
    for start in range(0, len(cases), batch):
        some = cases[start : start + batch]
        for offset, (case, tokens) in enumerate(zip(some, teacher_forced(decoder, version, some), strict=True)):
            # Not the written token: an answer may not end early, so the likeliest one was passed over where it is EOS.
            likeliest = case.logits.argmax(-1).tolist()
            for position, (ours, theirs) in enumerate(zip(tokens, likeliest, strict=True)):
                if ours != theirs:
                    logits = case.logits[position]
                    nats = float(logits[theirs] - logits[ours])
                    found.append(Difference(version, batch, start + offset, position, ours, theirs, nats))
    return found


def measure(count: int = PROMPTS) -> tuple[list[Row], list[Difference]]:
    """All figures, and every difference."""
    backbone = load_backbone(resolve_model("default", CACHE))
    with tempfile.TemporaryDirectory() as folder:
        adapter = make_adapter(Path(folder), size=0.1)
        reference = Reference({1: adapter})
        decoder = open_decoder(backbone, places=4, max_rank=16)
        prompts = [chat.render(backbone.tokenizer, [Message("user", text)]) for text in held_out_prompts()[:count]]
        rows, differences = [], []
        for version in (0, 1):
            if version:
                weights = read_adapter(adapter, decoder.bank.shapes, max_rank=16, dtype=decoder.bank.dtype)
                assert decoder.bank.install(1, decoder.bank.prepare(weights), keep=0)
            cases = []
            for prompt in prompts:
                answer = reference.greedy(version, prompt, TOKENS)
                cases.append(Case(prompt, answer, reference.logits(version, prompt, answer)))
            for batch in BATCHES:
                found = compare(decoder, version, cases, batch)
                differences += found
                share = 1 - len(found) / (len(cases) * TOKENS)
                when = "after a swap" if version else "before a swap"
                rows.append(Row(f"agreement {when}, batch {batch}", "%", round(100 * share, 3), runs=len(cases)))
    widest = max((difference.nats for difference in differences), default=0.0)
    rows.append(Row("agreement, widest tie that fell the other way", "nats", round(widest, 4)))
    return rows, differences


def main() -> None:
    """Measure and print; write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agreement", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="10 prompts")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    count = 10 if options.quick else PROMPTS
    rows, differences = measure(count)
    print(*rows, sep="\n")
    for d in differences:
        print(f"  version {d.version}, batch {d.batch}, prompt {d.prompt}, position {d.position}: {d.nats:.4f} nats")
    settings: dict[str, Any] = {"prompts": count, "tokens": TOKENS, "reference": "transformers float32 + PEFT"}
    if options.json is not None:
        details = [vars(difference) for difference in differences]
        write_json(options.json, document("agreement", settings, rows, differences=details))


if __name__ == "__main__":
    main()
