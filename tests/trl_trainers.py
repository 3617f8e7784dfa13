"""Trains with TRL on our exports, as `make ecosystem` does: run by .peers/trl-reward, which has none of our packages.

    trl_trainers.py MODEL EXPORTS

EXPORTS holds trl.jsonl, kto.jsonl and sft.jsonl, conversational, and the same under plain/. Two steps each; a loss that
is no number ends it.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl import (  # type: ignore[import-not-found]
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    SFTConfig,
    SFTTrainer,
)

STEPS = 2
WAYS: dict[str, tuple[Any, Any, str]] = {
    "RewardTrainer": (RewardTrainer, RewardConfig, "trl"),
    "DPOTrainer": (DPOTrainer, DPOConfig, "trl"),
    "KTOTrainer": (KTOTrainer, KTOConfig, "kto"),
    "SFTTrainer": (SFTTrainer, SFTConfig, "sft"),
}


def train(name: str, model_folder: str, file: Path) -> float:
    """The loss of the last step."""
    trainer_class, config_class, _ = WAYS[name]
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    if name == "RewardTrainer":
        model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=1)
        model.config.pad_token_id = tokenizer.pad_token_id
    else:
        model = AutoModelForCausalLM.from_pretrained(model_folder)
    rows = load_dataset("json", data_files=str(file), split="train")
    with tempfile.TemporaryDirectory() as out:
        config = config_class(
            output_dir=out, use_cpu=True, bf16=False, max_steps=STEPS, per_device_train_batch_size=2, logging_steps=1,
            report_to="none", save_strategy="no", disable_tqdm=True, gradient_checkpointing=False,
        )  # fmt: skip
        trainer = trainer_class(model=model, args=config, train_dataset=rows, processing_class=tokenizer)
        return float(trainer.train().training_loss)


def main(model_folder: str, exports: Path) -> None:
    """Every trainer on both styles."""
    for name, (_, _, format) in WAYS.items():
        for style, folder in (("conversational", exports), ("plain", exports / "plain")):
            loss = train(name, model_folder, folder / f"{format}.jsonl")
            print(f"{name}, {style}: loss {loss:.3f}", flush=True)
            assert math.isfinite(loss), f"{name} on {style} {format}"


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
