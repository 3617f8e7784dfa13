"""The C files beside this one, compiled for this machine when they are first needed, and their structs.

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

FOLDER = Path(__file__).parent
SOURCES = ("llama.c", "draw.c", "panels.c", "team.c")
FLAGS = ("-O3", "-ffp-contract=fast", "-pthread", "-shared", "-fPIC", "-D_GNU_SOURCE")
NARROW = frozenset({"avx2", "fma", "f16c"})
WIDE = frozenset({"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"})
"""What vectors of 8 and of 16 floats need, as /proc/cpuinfo names it."""
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
        *((name, c_int32) for name in ("rows", "outputs", "first", "trunk", "width")),
        *((name, c_void_p) for name in ("tokens", "positions", "sequences", "places", "blocks", "logits", "scratch")),
    ]


class Draw(Structure):
    """One token for each row; draw.c says how long each array is."""

    _fields_ = [
        *((name, c_int32) for name in ("rows", "vocabulary")),
        *(
            (name, c_void_p)
            for name in (
                "logits",
                "temperatures",
                "top_p",
                "top_k",
                "uniforms",
                "tokens",
                "logprobs",
                "scratch",
            )
        ),
    ]


@functools.cache
def load_library(cache_dir: Path) -> ctypes.CDLL | None:
    """The compiled step; None, with a line in the log, where it cannot be had."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        logger.info("answers take the slower path: no kernel for %s on %s", platform.system(), platform.machine())
        return None
    processor = set(Path("/proc/cpuinfo").read_text(encoding="utf-8").split())
    if missing := sorted(NARROW - processor):
        logger.info("answers take the slower path: this processor has no %s", ", ".join(missing))
        return None
    wide = ("-march=x86-64-v4", "-mavx512vnni") if processor >= WIDE else ("-march=x86-64-v3",)
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        logger.warning(
            "answers take the slower path: there is no C compiler (on Debian: apt-get install gcc libc6-dev)"
        )
        return None
    files = [file.read_bytes() for file in sorted(FOLDER.glob("*.[ch]"))]
    key = hashlib.sha256(repr((files, FLAGS, wide, compiler, Path(compiler).stat().st_mtime_ns)).encode())
    target = cache_dir / "native" / f"llama-{key.hexdigest()[:16]}.so"
    try:
        if not target.is_file():
            _compile([compiler, *FLAGS, *wide], target)
        library = ctypes.CDLL(str(target))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("answers take the slower path: the C files could not be compiled (%s)", _last_line(error))
        return None
    library.hustings_team.argtypes = [c_int32]
    library.hustings_team.restype = c_void_p
    library.hustings_disband.argtypes = [c_void_p]
    library.hustings_disband.restype = None
    library.hustings_scratch.argtypes = [c_void_p, POINTER(Model), c_int32]
    library.hustings_scratch.restype = c_int64
    library.hustings_block.argtypes = [POINTER(Model)]
    library.hustings_block.restype = c_int64
    library.hustings_step.argtypes = [c_void_p, POINTER(Model), POINTER(Step)]
    library.hustings_step.restype = None
    library.hustings_draw.argtypes = [c_void_p, POINTER(Draw)]
    library.hustings_draw.restype = None
    library.hustings_lay_out.argtypes = [c_void_p, c_int32, c_int32, c_int32, c_int32, c_int32, c_void_p]
    library.hustings_lay_out.restype = None
    return library


def _compile(command: list[str], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".compiling-", dir=target.parent) as folder:
        partial = Path(folder) / target.name
        whole = [*command, *(str(FOLDER / source) for source in SOURCES), "-lm", "-o", str(partial)]
        subprocess.run(whole, check=True, capture_output=True, text=True, timeout=COMPILE_TIMEOUT)
        partial.replace(target)


def _last_line(error: Exception) -> str:
    output = getattr(error, "stderr", None) or str(error)
    return str(output).strip().splitlines()[-1]
