"""One round of TRL's PPO, and what it computed on the way, for `benchmarks/parity_ppo.py`.

    trl_ppo_worker.py SETTINGS.json OUT.pt

Run by .peers/trl-ppo, which has none of our packages. TRL keeps these tensors in local variables of `train`: they are
read from its frame where it calls functions that are ours for the moment.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer  # type: ignore[import-not-found]

ROLLOUT = (
    "queries", "responses", "sequence_lengths", "padding_mask", "padding_mask_p1", "logprobs", "ref_logprobs", "values",
    "scores", "non_score_reward", "rewards", "returns",
)  # fmt: skip
STEP = ("micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss")


def kept(frame: Any, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Copies of a frame's variables."""
    return {name: torch.as_tensor(frame.f_locals[name]).detach().clone() for name in names}


def main(settings: dict[str, Any], out: Path) -> None:
    """Train for one batch and write what `parity_ppo.py` reads."""
    torch.set_num_threads(settings["threads"])
    torch.manual_seed(0)
    folder = settings["model"]
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.pad_token = settings["pad_token"]
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    policy = PeftModel.from_pretrained(base, settings["adapter"], is_trainable=True)
    scalars = []
    for _ in range(2):
        scalar: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
        scalar.config.pad_token_id = tokenizer.pad_token_id
        scalars.append(scalar)
    prompts = Dataset.from_dict({"input_ids": settings["prompts"]})
    config = PPOConfig(
        output_dir=str(out.parent), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", num_sample_generations=0, per_device_train_batch_size=len(prompts),
        total_episodes=len(prompts), gradient_accumulation_steps=1,
        num_mini_batches=settings["minibatches"], num_ppo_epochs=settings["epochs"],
        local_rollout_forward_batch_size=len(prompts), response_length=settings["tokens"],
        stop_token="eos",  # noqa: S106
        temperature=settings["temperature"], kl_coef=settings["beta"], gamma=settings["gamma"], lam=settings["lam"],
        cliprange=settings["clip"], cliprange_value=settings["value_clip"], learning_rate=settings["learning_rate"],
        missing_eos_penalty=None, whiten_rewards=False, kl_estimator="k1", disable_tqdm=True,
    )  # fmt: skip
    trainer = PPOTrainer(
        config, tokenizer, policy, None, scalars[0], prompts, scalars[1], eval_dataset=prompts.select(range(1))
    )

    found: dict[str, Any] = {"steps": []}
    whiten, backward = ppo_trainer.masked_whiten, trainer.accelerator.backward

    def whitened(values: torch.Tensor, mask: torch.Tensor, **options: Any) -> torch.Tensor:
        result: torch.Tensor = whiten(values, mask, **options)
        found.update(kept(sys._getframe(1), ROLLOUT), advantages=values.clone(), whitened=result.clone())
        return result

    def noted(total: torch.Tensor, **options: Any) -> None:
        frame = sys._getframe(1)
        step = kept(frame, STEP)
        for loss, of in (("pg", "new_logprobs"), ("vf", "vpred")):
            (step[f"{loss}_gradient"],) = torch.autograd.grad(
                frame.f_locals[f"{loss}_loss"], frame.f_locals[of], retain_graph=True
            )
        found["steps"].append(step)
        backward(total, **options)

    ppo_trainer.masked_whiten, trainer.accelerator.backward = whitened, noted
    trainer.train()
    torch.save(found, out)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
