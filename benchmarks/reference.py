"""What transformers computes with the canonical weights and PEFT's own LoRA: the yardstick for what the engine says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serve.policy.base import load_backbone, resolve_model
from serve.records import BASE_VERSION

CACHE = Path("~/.cache/hustings").expanduser()
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


class Reference:
    """The default model in float32 and some adapters, by version."""

    def __init__(self, adapters: Mapping[int, Path]) -> None:
        from peft import PeftModel

        self._backbone = load_backbone(resolve_model("default", CACHE), dtype="float32")
        self._models: dict[int, Any] = {BASE_VERSION: self._backbone.model} | {
            version: PeftModel.from_pretrained(self._backbone.view(), str(folder)).eval()
            for version, folder in adapters.items()
        }

    @torch.inference_mode()
    def logits(self, version: int, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
        """What each token of the answer was drawn from: logits (tokens of the answer, V)."""
        ids = torch.tensor([[*prompt, *answer]])
        logits: Tensor = self._models[version](input_ids=ids, logits_to_keep=len(answer) + 1).logits
        return logits[0, :-1]

    def logprobs(self, version: int, prompt: Sequence[int], answer: Sequence[int], temperature: float) -> Tensor:
        """Log-probability of each token of the answer (tokens,), teacher-forced."""
        logprobs = (self.logits(version, prompt, answer) / temperature).log_softmax(-1)
        return logprobs.gather(-1, torch.tensor(answer)[:, None])[:, 0]

    @torch.inference_mode()
    def greedy(self, version: int, prompt: Sequence[int], tokens: int) -> list[int]:
        """The likeliest continuation, without an end before so many tokens."""
        out = self._models[version].generate(
            input_ids=torch.tensor([list(prompt)]),
            do_sample=False,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
        return [int(token) for token in out[0, len(prompt) :]]


def make_adapter(folder: Path, *, seed: int = 0, size: float = 0.01) -> Path:
    """A LoRA of rank 16 on all linears of the upper third, in PEFT's format; `size` is the deviation of its B."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_pretrained(resolve_model("default", CACHE).path)
    layers = model.config.num_hidden_layers
    upper = list(range(layers * 2 // 3, layers))
    settings = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS, layers_to_transform=upper, task_type="CAUSAL_LM")
    model = get_peft_model(model, settings)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=size)
    model.save_pretrained(str(folder))
    return folder
