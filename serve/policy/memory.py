"""Does it fit? Asked before weights are read, so that neither swapping nor the kernel's OOM killer gives the answer."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from serve.errors import ModelError

if TYPE_CHECKING:
    import torch

BESIDE = 2**29
"""Bytes for what is not weights: libraries, activations, the first keys and values."""


def require_memory(name: str, weights: int, device: torch.device) -> None:
    """Raises ModelError, naming the fix, when so many bytes of weights do not fit into what is free on the device."""
    needed, free = weights + BESIDE, available_memory(device)
    if needed > free:
        processor = "" if device.type == "cpu" else ", or start with CUDA_VISIBLE_DEVICES= to use the processor"
        raise ModelError(
            f"{name} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; "
            f"choose a smaller --model or free memory{processor}"
        )


def available_memory(device: torch.device, root: Path = Path("/")) -> int:
    """Free bytes: of a GPU, else what Linux can give without swapping, or less where a cgroup's limit comes first.

    Where neither tells (not Linux), there is no bound.
    """
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    found = [sys.maxsize]
    meminfo, membership = root / "proc/meminfo", root / "proc/self/cgroup"
    if meminfo.is_file():
        found += [1024 * int(kilobytes) for kilobytes in re.findall(r"MemAvailable:\s+(\d+)", meminfo.read_text())]
    for path in re.findall(r"^0::/(.*)$", membership.read_text(), re.MULTILINE) if membership.is_file() else ():
        group = root / "sys/fs/cgroup" / path
        for place in (group, *group.parents):  # a limit above holds, too, and a container may see its group as the top
            limit = place / "memory.max"
            if limit.is_file() and (bytes_allowed := limit.read_text().strip()).isdigit():
                used = re.findall(r"^anon (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
                found.append(int(bytes_allowed) - sum(map(int, used)))  # files in memory can go
    return max(0, min(found))
