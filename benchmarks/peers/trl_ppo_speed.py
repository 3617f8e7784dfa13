"""TRL's PPO, one update at a time, for `benchmarks/ppo.py`: a line of JSON in, a line out.

    trl_ppo_speed.py SETTINGS.json

Run by .peers/trl-ppo, which has none of our packages. TRL's `train` goes from batch to batch by itself: it is held
where it begins to write answers, until it is told to go on.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

MANY = 10_000
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def open_trainer(settings: dict[str, Any], folder: Path) -> Any:
    """TRL's trainer with a LoRA policy; its value model is trained whole, or by a LoRA too."""
    path, dtype = settings["model"], getattr(torch, settings["dtype"])
    tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    tokenizer.pad_token = settings["pad_token"]
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=LINEARS, task_type="CAUSAL_LM")
    base = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    base.generation_config.eos_token_id = None  # all answers are equally long
    policy = get_peft_model(base, lora)
    scalars: list[Any] = []
    for _ in range(2):
        scalar: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, num_labels=1)
        scalar.config.pad_token_id = tokenizer.pad_token_id
        scalars.append(scalar)
    reward, value = scalars
    if settings["value_lora"]:
        value.requires_grad_(False)
        value = inject_adapter_in_model(lora, value)
        value.score.requires_grad_(True)
    batch = settings["episodes"]
    prompts = Dataset.from_dict({"input_ids": settings["prompts"]})
    config = PPOConfig(
        output_dir=str(folder), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", num_sample_generations=0, per_device_train_batch_size=batch, total_episodes=batch * MANY,
        gradient_accumulation_steps=1, num_mini_batches=settings["minibatches"], num_ppo_epochs=settings["epochs"],
        local_rollout_forward_batch_size=batch, response_length=settings["tokens"], stop_token=None,
        temperature=settings["temperature"], learning_rate=1e-5, missing_eos_penalty=None, disable_tqdm=True,
    )  # fmt: skip
    return PPOTrainer(
        config, tokenizer, policy, None, reward, prompts, value, eval_dataset=prompts.select(range(1)), peft_config=None
    )


def peak_memory() -> int:
    """Bytes that this process held at most (`ru_maxrss` would count what its parent did before)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def main(settings: dict[str, Any], folder: Path) -> None:
    """Update whenever a line comes; answer with the seconds of each phase and the peak memory in bytes."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    trainer = open_trainer(settings, folder)
    marks: list[float] = []
    generate, whiten = ppo_trainer.batch_generation, ppo_trainer.masked_whiten

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=channel, flush=True)

    def held(*given: Any, **options: Any) -> Any:
        if marks:
            began, written, scored = marks
            say(
                {
                    "generate": written - began,
                    "score": scored - written,
                    "update": time.perf_counter() - scored,
                    "peak": peak_memory(),
                }
            )
        else:
            say({"ready": True})
        if not sys.stdin.readline():
            raise SystemExit
        began = time.perf_counter()
        result = generate(*given, **options)
        marks[:] = [began, time.perf_counter()]
        return result

    def scored(*given: Any, **options: Any) -> Any:
        marks.append(time.perf_counter())
        return whiten(*given, **options)

    ppo_trainer.batch_generation, ppo_trainer.masked_whiten = held, scored
    trainer.train()


if __name__ == "__main__":
    channel = sys.stdout
    sys.stdout = sys.stderr  # TRL prints its logs
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[1]).parent)
