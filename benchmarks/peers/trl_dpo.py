"""TRL's DPO on some votes, for `benchmarks/alternatives.py`.

    trl_dpo.py SETTINGS.json OUT_DIR

Run by .peers/trl-reward, which has none of our packages. Leaves a PEFT adapter and result.json in OUT_DIR.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found]

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Until(TrainerCallback):
    """Ends training when its time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """The time begins."""
        self._end = time.monotonic() + self._seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Look at the clock."""
        control.should_training_stop = time.monotonic() > self._end


def main(settings: dict[str, Any], out: Path) -> None:
    """As many of TRL's three epochs as fit into the seconds, at one step size: nobody knows before how many do."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    model = AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.float32)
    config = DPOConfig(
        output_dir=str(out), use_cpu=True, bf16=settings["dtype"] == "bfloat16", gradient_checkpointing=False,
        report_to="none", save_strategy="no", disable_tqdm=True, per_device_train_batch_size=8,
        learning_rate=settings["learning_rate"], lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = DPOTrainer(
        model,
        args=config,
        train_dataset=Dataset.from_list(settings["votes"]),
        processing_class=tokenizer,
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM"),
        callbacks=[Until(settings["seconds"])],
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.save_model(str(out))
    steps = {"steps": trainer.state.global_step, "of": trainer.state.max_steps, "seconds": seconds}
    (out / "result.json").write_text(json.dumps(steps))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
