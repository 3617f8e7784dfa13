"""A published version to take away: the adapter in PEFT's format, its manifest, and a card that says what it is."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

from serve.feedback.reports import gate_figures, gate_win_rate, reward_accuracy
from serve.feedback.statistics import Interval
from serve.policy.adapters import CONFIG, MANIFEST, WEIGHTS
from serve.records import Version

CARD = "README.md"


def archive(folder: Path, version: Version, votes: int) -> bytes:
    """The version's folder as a zip file, with a card; its weights do not shrink, so nothing is compressed."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as target:
        for name in (CONFIG, WEIGHTS, MANIFEST):
            target.write(folder / name, name)
        target.writestr(CARD, card(version, manifest, votes))
    return stream.getvalue()


def card(version: Version, manifest: dict[str, Any], votes: int) -> str:
    """What it is made of, and what is known of it, in the format of model hubs."""
    base, report = manifest.get("base") or {}, version.report
    measured = gate_figures(report)
    known = [
        _line("Held-out prompts on which the fold models prefer it to its parent", gate_win_rate(report)),
        _line("Unseen comparisons on which its reward model is right", reward_accuracy(report)),
        _figure("KL to its reference, nats an answer", measured.get("kl")),
        _figure("Tokens an answer, median", measured.get("length")),
    ]
    facts = "\n".join(line for line in known if line) or "- Nothing was measured."
    return f"""---
base_model: {base.get("model") or "unknown"}
library_name: peft
pipeline_tag: text-generation
tags: [hustings, rlhf, ppo, lora]
---

# Version {version.number}, learned from people's votes

A LoRA adapter for **{base.get("model") or "an unknown base"}** (SHA-256 of its weights: `{base.get("hash")}`), made by
Hustings on {version.created:%Y-%m-%d} from {votes} votes of the people who use one server: their preferences, not
everybody's. Its parent is version {version.parent}.

## What is known of it

{facts}

## How to use it

    from peft import PeftModel
    from transformers import AutoModelForCausalLM
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("THE BASE"), "THIS FOLDER")

The licence of the base holds. `manifest.json` has the hashes of the files and every setting of the run.
"""


def _line(what: str, share: Interval | None) -> str:
    return "" if share is None else f"- {what}: {share.value:.0%} ({share.low:.0%} to {share.high:.0%})"


def _figure(what: str, value: float | None) -> str:
    return "" if value is None else f"- {what}: {value:.1f}"
