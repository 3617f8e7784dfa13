"""TRL's RewardTrainer fitted to some pairs and asked about others, for `benchmarks/reward.py`.

    trl_reward_fit.py SETTINGS.json OUT.json

Run by .peers/trl-reward, which has none of our packages.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found]

PAD = "<|endoftext|>"
"""The model's own padding is its EOS, which TRL would then not read."""


@torch.inference_mode()
def scores(model: Any, texts: list[list[int]], pad: int) -> list[float]:
    """Of whole texts, in float32, a few of like length at a time."""
    found = [0.0] * len(texts)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(order), 8):
        some = order[start : start + 8]
        width = max(len(texts[i]) for i in some)
        ids = torch.tensor([texts[i] + [pad] * (width - len(texts[i])) for i in some])
        mask = torch.arange(width) < torch.tensor([len(texts[i]) for i in some])[:, None]
        values = model(input_ids=ids, attention_mask=mask.long()).logits.squeeze(-1).tolist()
        for i, value in zip(some, values, strict=True):
            found[i] = value
    return found


def peak_memory() -> int:
    """Bytes that this process held at most (`ru_maxrss` would count what its parent did before)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main(settings: dict[str, Any], out: Path) -> None:
    """One epoch; writes the score margin of each held-out pair, the seconds of the fit and the peak memory."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.pad_token = PAD
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        settings["model"], dtype=torch.float32, num_labels=1
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    train = [(prompt + chosen, prompt + rejected) for prompt, chosen, rejected in settings["train"]]
    columns = {"chosen_ids": [c for c, _ in train], "rejected_ids": [r for _, r in train]}
    pairs = Dataset.from_dict({**columns, "length": [max(map(len, pair)) for pair in train]})
    config = RewardConfig(
        output_dir=str(out.parent), use_cpu=True, bf16=settings["dtype"] == "bfloat16", gradient_checkpointing=False,
        report_to="none", save_strategy="no", num_train_epochs=1, learning_rate=settings["learning_rate"],
        # Eight pairs a step, of like length and in two parts: as it ships half of what it reads is padding.
        per_device_train_batch_size=4, gradient_accumulation_steps=2, train_sampling_strategy="group_by_length",
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = RewardTrainer(model, config, train_dataset=pairs, processing_class=tokenizer)
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    peak = peak_memory()
    held_out = settings["held_out"]
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)  # without autocast
    chosen = scores(model.eval(), [p + c for p, c, _ in held_out], tokenizer.pad_token_id)
    rejected = scores(model, [p + r for p, _, r in held_out], tokenizer.pad_token_id)
    margins = [c - r for c, r in zip(chosen, rejected, strict=True)]
    found = {"margins": [round(margin, 5) for margin in margins], "seconds": round(seconds, 2), "peak": peak}
    out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
