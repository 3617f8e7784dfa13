"""What every benchmark writes down: the machine, the commit, and rows of one shape."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Row:
    """One measure. `ratio` above 1 is in our favour; what has no peer leaves `peer`, `theirs` and `ratio` empty."""

    what: str
    unit: str
    ours: float
    peer: str | None = None
    theirs: float | None = None
    ratio: float | None = None
    runs: int = 1
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        between = "" if self.low is None or self.high is None else f" ({self.low:.4g} to {self.high:.4g})"
        versus = "" if self.peer is None else f", {self.peer}: {self.theirs:.4g}"
        times = "" if self.ratio is None else f", {self.ratio:.2f}×"
        return f"{self.what}: {self.ours:.4g}{between} {self.unit}{versus}{times}"


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, memory, and the versions that matter."""
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "peft")},
    }


def peak_memory() -> int:
    """Bytes that this process held at most (`ru_maxrss` would count what its parent did before)."""
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) * 1024


def commit() -> str:
    """The checkout's commit, with `+` behind it where files differ from it."""
    head = _git("rev-parse", "--short=12", "HEAD") or "unknown"
    return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")


def sources(*benchmarks: str, packages: Sequence[str] = ("serve", "training")) -> str:
    """A digest of what a figure depends on: our own code, and these files of benchmarks."""
    kinds = (".py", ".c", ".h", ".jsonl")
    files = [file for name in packages for file in (ROOT / name).rglob("*") if file.suffix in kinds]
    digest = hashlib.sha256()
    for file in sorted([*files, *(ROOT / "benchmarks" / name for name in benchmarks)]):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def document(name: str, settings: Mapping[str, Any], rows: list[Row], **details: Any) -> dict[str, Any]:
    """A benchmark's whole result, ready for `write_json`."""
    return {
        "name": name,
        "machine": machine(),
        "commit": commit(),
        "settings": dict(settings),
        "rows": [asdict(row) for row in rows],
        **details,
    }


def write_json(path: Path, value: Any) -> None:
    """Write whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    partial.replace(path)


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()


def _cpuinfo(field: str) -> str:
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(field)), "")
