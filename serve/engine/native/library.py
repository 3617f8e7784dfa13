"""llama.c, compiled for this machine when it is first needed, and its structs.

The object is cached by its source, its flags and its compiler: a start finds it, an update makes a new one.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

SOURCE = Path(__file__).with_name("llama.c")
FLAGS = ("-O3", "-march=x86-64-v3", "-mf16c", "-ffp-contract=fast", "-fopenmp", "-shared", "-fPIC")
COMPILE_TIMEOUT = 120.0

logger = logging.getLogger(__name__)


class Matrix(Structure):
    """A packed matrix; `data` points at (panels, groups, bytes)."""

    _fields_ = [("data", c_void_p), ("kind", c_int32), ("panels", c_int32), ("groups", c_int32)]


class Lora(Structure):
    """One version's A and B at one linear."""

    _fields_ = [("a", Matrix), ("b", c_void_p), ("rank", c_int32)]


class Layer(Structure):
    """Norms, the four linears (qkv, out, gate and up, down) and the LoRA table of each, by place."""

    _fields_ = [
        ("attention_norm", c_void_p),
        ("mlp_norm", c_void_p),
        ("linear", Matrix * 4),
        ("lora", c_void_p * 4),
    ]


class Model(Structure):
    """A whole model."""

    _fields_ = [
        *(
            (name, c_int32)
            for name in ("layers", "dim", "heads", "kv_heads", "head_dim", "vocabulary", "context", "max_rank")
        ),
        ("norm_eps", c_float),
        ("layer", POINTER(Layer)),
        ("norm", c_void_p),
        ("angles", c_void_p),
        ("embedding", Matrix),
        ("head", Matrix),
    ]


class Step(Structure):
    """What one call computes; llama.c says how long each array is."""

    _fields_ = [
        *((name, c_int32) for name in ("threads", "rows", "outputs", "width")),
        *((name, c_void_p) for name in ("tokens", "positions", "sequences", "places", "blocks", "logits", "scratch")),
    ]


@functools.cache
def load_library(cache_dir: Path) -> ctypes.CDLL | None:
    """The compiled step; None, with a line in the log, where it cannot be had."""
    if (reason := _unfit_cpu()) is not None:
        logger.info("answers take the slower path: %s", reason)
        return None
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        logger.warning(
            "answers take the slower path: there is no C compiler (on Debian: apt-get install gcc libc6-dev)"
        )
        return None
    key = hashlib.sha256(repr((SOURCE.read_bytes(), FLAGS, compiler, Path(compiler).stat().st_mtime_ns)).encode())
    target = cache_dir / "native" / f"llama-{key.hexdigest()[:16]}.so"
    try:
        if not target.is_file():
            _compile(compiler, target)
        import torch  # noqa: F401  # its OpenMP comes first, so that both share one pool of threads

        library = ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("answers take the slower path: llama.c could not be compiled (%s)", _last_line(error))
        return None
    library.hustings_scratch.argtypes = [POINTER(Model), c_int32, c_int32]
    library.hustings_scratch.restype = c_int64
    library.hustings_block.argtypes = [POINTER(Model)]
    library.hustings_block.restype = c_int64
    library.hustings_step.argtypes = [POINTER(Model), POINTER(Step)]
    library.hustings_step.restype = None
    return library


def _unfit_cpu() -> str | None:
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return f"there is no kernel for {platform.system()} on {platform.machine()}"
    flags = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    missing = sorted({"avx2", "fma", "f16c"} - flags)
    return f"this processor has no {', '.join(missing)}" if missing else None


def _compile(compiler: str, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        command = [compiler, *FLAGS, str(SOURCE), "-lm", "-o", str(partial)]
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT)
        partial.replace(target)


def _last_line(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return str(output).strip().splitlines()[-1]
