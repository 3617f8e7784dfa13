"""Some steps of TRL's reward training, and what it computed on the way, for `benchmarks/parity_reward.py`.

    trl_reward_worker.py SETTINGS.json OUT.pt

Run by .peers/trl-reward, which has none of our packages.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from peft import LoraConfig, set_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl import RewardConfig, RewardTrainer  # type: ignore[import-not-found]


class NotingTrainer(RewardTrainer):  # type: ignore[misc]
    """Keeps what each step was given and what it computed."""

    def compute_loss(self, model: Any, inputs: dict[str, Any], *_: Any, **__: Any) -> torch.Tensor:
        batch = {name: inputs[name].clone() for name in ("input_ids", "attention_mask")}
        loss: torch.Tensor
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True)
        (gradient,) = torch.autograd.grad(loss, outputs.logits, retain_graph=True)
        rewards = outputs.logits.detach().squeeze(-1)
        self.steps.append(
            {**batch, "loss": loss.detach().clone(), "rewards": rewards, "gradient": gradient.squeeze(-1)}
        )
        return loss

    def training_step(self, model: Any, *arguments: Any, **options: Any) -> Any:
        loss = super().training_step(model, *arguments, **options)
        if len(self.steps) == 1:  # here, before they are clipped
            gradients = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
            (head,) = (name for name in gradients if ".score." in name)
            self.steps[0] |= {"to_head": gradients.pop(head)[0], "to_lora": gradients}
        return loss


def trained(settings: dict[str, Any], margin: list[float], centring: float, out: Path) -> dict[str, Any]:
    """The head as it was, and all steps with one loss."""
    torch.manual_seed(0)
    folder, adapter = settings["model"], settings["adapter"]
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, num_labels=1)
    head = model.score.weight.detach().clone()
    shape = LoraConfig.from_pretrained(adapter)
    shape.task_type, shape.inference_mode, shape.modules_to_save = "SEQ_CLS", False, ["score"]
    pairs = Dataset.from_dict(settings["pairs"] | ({"margin": margin} if any(margin) else {}))
    config = RewardConfig(
        output_dir=str(out.parent), use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", disable_tqdm=True, train_sampling_strategy="sequential",
        per_device_train_batch_size=len(pairs), max_steps=settings["steps"], learning_rate=settings["learning_rate"],
        center_rewards_coefficient=centring or None,
    )  # fmt: skip
    trainer = NotingTrainer(
        model, config, train_dataset=pairs, processing_class=AutoTokenizer.from_pretrained(folder), peft_config=shape
    )
    weights = load_file(f"{adapter}/adapter_model.safetensors") | {"base_model.model.score.weight": head}
    set_peft_model_state_dict(trainer.model, weights)
    trainer.steps = []
    trainer.train()
    return {"head": head[0], "steps": trainer.steps}


def main(settings: dict[str, Any], out: Path) -> None:
    """Train anew with each loss and write what `parity_reward.py` reads."""
    torch.set_num_threads(settings["threads"])
    torch.save({name: trained(settings, out=out, **loss) for name, loss in settings["losses"].items()}, out)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
