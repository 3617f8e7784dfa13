"""A LoRA as the engine takes it: read from PEFT's format and checked against the base before the bank is touched."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from serve.errors import AdapterError
from serve.policy.adapters import CONFIG, WEIGHTS

_TENSOR_NAME = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<half>[AB])(?:\.[^.]+)?\.weight")

_PLAIN = {
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "lora_bias": False,
    "use_qalora": False,
    "use_bdlora": False,
    "modules_to_save": None,
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
    "target_parameters": None,
    "alora_invocation_tokens": None,
}
"""Options that would make an adapter more than x·Aᵀ·Bᵀ with one scaling, and what they are when it is not."""


@dataclass(frozen=True)
class LoraWeights:
    """`layers` maps a linear's name in the base to A (rank, in) and B (out, rank); the scaling is already inside B."""

    layers: dict[str, tuple[Tensor, Tensor]]


def read_adapter(
    folder: Path, shapes: Mapping[str, tuple[int, int]], *, max_rank: int, dtype: torch.dtype
) -> LoraWeights:
    """Read an adapter folder. `shapes` maps each linear of the base to (out, in).

    Raises AdapterError naming the file, option or tensor that does not fit.
    """
    config = _read_config(folder / CONFIG)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise AdapterError(f"{folder} has no {WEIGHTS}; save the adapter in the safetensors format")
    try:
        tensors = load_file(weights)
    except (SafetensorError, OSError) as error:
        raise AdapterError(
            f"{weights} is not a readable safetensors file ({error}); publish the adapter again"
        ) from error
    rank = config["r"]
    if not config.get("rank_pattern"):
        for name, tensor in tensors.items():
            if ".lora_A." in name and len(tensor) != rank:
                raise AdapterError(f"{name} has rank {len(tensor)}, but {CONFIG} says r = {rank}")
    alpha, rslora = config.get("lora_alpha", rank), config.get("use_rslora", False)
    # With a rank pattern each linear has its own r, and so its own alpha / r: scale by the rank each tensor really has.
    return check_tensors(
        tensors, lambda r: alpha / (math.sqrt(r) if rslora else r), shapes, max_rank=max_rank, dtype=dtype
    )


def check_tensors(
    tensors: Mapping[str, Tensor],
    scaling: Callable[[int], float],
    shapes: Mapping[str, tuple[int, int]],
    *,
    max_rank: int,
    dtype: torch.dtype,
) -> LoraWeights:
    """PEFT's state-dict names → checked weights. `scaling` maps a rank to the factor of B·A."""
    halves: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _TENSOR_NAME.fullmatch(name)
        if match is None:
            raise AdapterError(
                f"{name} is not a LoRA weight; heads and other saved modules do not fit a policy adapter"
            )
        module = match["module"]
        if module not in shapes:
            raise AdapterError(f"{name} names no linear of this base; was the adapter trained on another model?")
        if match["half"] in halves.setdefault(module, {}):
            raise AdapterError(f"{module} has two tensors for lora_{match['half']}; save one adapter only")
        halves[module][match["half"]] = tensor.detach()
    if not halves:
        raise AdapterError("the adapter holds no LoRA weights")
    return LoraWeights(
        {module: _check_pair(module, pair, scaling, shapes[module], max_rank, dtype) for module, pair in halves.items()}
    )


def _check_pair(
    module: str,
    pair: Mapping[str, Tensor],
    scaling: Callable[[int], float],
    shape: tuple[int, int],
    max_rank: int,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    if len(pair) != 2:
        raise AdapterError(f"{module} has lora_{next(iter(pair))} without its other half")
    a, b = pair["A"], pair["B"]
    rank = a.shape[0] if a.dim() == 2 else 0
    if rank < 1 or tuple(a.shape) != (rank, shape[1]) or tuple(b.shape) != (shape[0], rank):
        raise AdapterError(
            f"{module}: lora_A {tuple(a.shape)} and lora_B {tuple(b.shape)} do not fit a linear of "
            f"{shape[1]} → {shape[0]}; was the adapter trained on another model?"
        )
    if rank > max_rank:
        raise AdapterError(f"{module} has rank {rank}; the largest allowed is {max_rank} (raise max_lora_rank)")
    # The scaling is folded in at full precision, before the weights take the base's type.
    a, b = a.to(dtype), (b.float() * scaling(rank)).to(dtype)
    for half, tensor in (("A", a), ("B", b)):
        least, most = torch.aminmax(tensor)  # NaN if there is one; a sixth of the time that isfinite takes
        if not math.isfinite(least) or not math.isfinite(most):
            raise AdapterError(f"{module}.lora_{half} holds NaN or infinity; train the adapter again")
    return a, b


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise AdapterError(f"{path.parent} has no {path.name}; is it an adapter folder in PEFT's format?") from None
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}); publish the adapter again") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise AdapterError(f"{path} does not describe a LoRA")
    if not isinstance(config.get("r"), int) or config["r"] < 1:
        raise AdapterError(f"{path} gives no rank r")
    for option, plain in _PLAIN.items():
        if config.get(option) not in (plain, None) and config[option]:
            raise AdapterError(f"{path} sets {option}; only plain LoRA weights can serve")
    return config
