"""Weights in the narrowest form that gives every one of them back exactly.

A canonical float32 weight that came from a quantised file still lies on that file's grid: 4-bit codes with a step and
an offset for each 32 (GGUF's Q4_1), 8-bit codes with a step (Q8_0), or bfloat16. Such a matrix is kept as its codes, a
sixth of the size, and nothing is lost: each form is tried on the weights themselves and taken only if all agree.

    a packed matrix: panels of 16 outputs, each group by group of 32 inputs; llama.c has the order inside a group
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PANEL = 16
GROUP = 32
KINDS = ("int4", "int8", "bfloat16", "float32")
"""From narrow to wide; the number is llama.c's."""


@dataclass(frozen=True)
class Packed:
    """A matrix as llama.c reads it."""

    kind: str
    panels: int
    groups: int
    data: Tensor
    """Bytes (panels, groups, bytes of a group)."""


def pack(parts: Sequence[Tensor], *, alternate: bool = False) -> Packed:
    """Matrices (out, in) of the same input, fused → the narrowest exact form. `alternate` takes panels in turn."""
    weights = _in_groups(_in_panels(parts, alternate=alternate))
    for kind, form in zip(KINDS, (_int4, _int8, _bfloat16, _float32), strict=True):
        data = form(weights)
        if data is not None:
            return Packed(kind, weights.shape[0], weights.shape[2], data)
    raise AssertionError("float32 always fits")


def _in_panels(parts: Sequence[Tensor], *, alternate: bool = False) -> Tensor:
    """Matrices (out, in), each filled up with zeros to whole panels → (panels, 16, in)."""
    multiple = 2 * PANEL if alternate else PANEL
    panels = [_fill(part.float(), 0, multiple).view(-1, PANEL, part.shape[1]) for part in parts]
    return torch.stack(panels, dim=1).flatten(0, 1) if alternate else torch.cat(panels)


def _in_groups(panels: Tensor) -> Tensor:
    """(panels, 16, in) → (panels, 16, groups, 32)."""
    filled = _fill(panels, 2, GROUP)
    return filled.view(*filled.shape[:2], -1, GROUP)


def _fill(x: Tensor, dim: int, multiple: int) -> Tensor:
    missing = -x.shape[dim] % multiple
    return x if missing == 0 else torch.cat([x, x.new_zeros(*x.shape[:dim], missing, *x.shape[dim + 1 :])], dim)


def _int4(weights: Tensor) -> Tensor | None:
    offset = weights.amin(-1)
    step = ((weights.amax(-1) - offset) / 15).half()
    codes = _codes(weights, step, offset)
    if not torch.equal(offset.half().float(), offset) or not _agree(codes, step, offset, weights, 0, 15):
        return None
    panels, _, groups, _ = weights.shape
    # (panels, side, output, groups, quad, pair of the quad, input of the pair): a quad's four pairs share 16-bit lanes
    codes = codes.int().view(panels, 2, 8, groups, 4, 4, 2).permute(0, 3, 4, 1, 2, 6, 5)
    lanes = (codes << torch.tensor([0, 4, 8, 12], dtype=torch.int32)).sum(-1).to(torch.int16)
    return torch.cat([_bytes(lanes), _bytes(_by_group(step)), _bytes(_by_group(offset.half()))], dim=-1)


def _int8(weights: Tensor) -> Tensor | None:
    step = (weights.abs().amax(-1) / 127).half()
    offset = torch.zeros_like(step, dtype=torch.float32)
    codes = _codes(weights, step, offset)
    if not _agree(codes, step, offset, weights, -127, 127):
        return None
    panels, _, groups, _ = weights.shape
    lanes = codes.to(torch.int8).view(panels, 2, 8, groups, 16, 2).permute(0, 3, 4, 1, 2, 5)
    return torch.cat([_bytes(lanes), _bytes(_by_group(step))], dim=-1)


def _bfloat16(weights: Tensor) -> Tensor | None:
    narrow = weights.bfloat16()
    return _bytes(narrow.permute(0, 2, 3, 1)) if torch.equal(narrow.float(), weights) else None


def _float32(weights: Tensor) -> Tensor:
    return _bytes(weights.permute(0, 2, 3, 1))


def _codes(weights: Tensor, step: Tensor, offset: Tensor) -> Tensor:
    codes: Tensor = ((weights - offset[..., None]) / step.float()[..., None]).round()
    return codes.nan_to_num(0.0, 0.0, 0.0)  # a step of zero


def _agree(codes: Tensor, step: Tensor, offset: Tensor, weights: Tensor, least: int, most: int) -> bool:
    within = bool((codes >= least).all() and (codes <= most).all())
    return within and torch.equal(step.float()[..., None] * codes + offset[..., None], weights)


def _by_group(values: Tensor) -> Tensor:
    """(panels, 16, groups) → (panels, groups, 16)."""
    return values.transpose(1, 2)


def _bytes(values: Tensor) -> Tensor:
    """(panels, groups, …) → (panels, groups, bytes)."""
    return values.contiguous().view(torch.uint8).flatten(2)
