"""Contenders of `benchmarks/serving.py` that run on our own packages: `python -m benchmarks.serving_workers NAME LORA`.

A line of JSON in, a line out, so that contenders take turns and the waiting ones cost nothing.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.reference import CACHE
from serve.engine import CandidateRequest
from serve.engine.local import LocalEngine
from serve.policy.base import load_backbone, resolve_model
from serve.records import Sampling

Work = Callable[..., float]

ROWS = 32
"""The most that are asked for."""


def ours(adapter: Path) -> Work:
    """The engine as the server builds it, without an EOS so that all answers are equally long."""
    backbone = replace(load_backbone(resolve_model("default", CACHE)), eos_token_ids=frozenset())

    @functools.cache
    def engine_of(turn_tokens: int | None) -> LocalEngine:
        engine = LocalEngine(backbone, batch_rows=ROWS, turn_tokens=turn_tokens)
        for version in range(1, ROWS // 2 + 1):
            engine.load(version, adapter)
        return engine

    def decode(rows: int, prompt: int, tokens: int, versions: int = 1, turn_tokens: int | None = None) -> float:
        """Pairs of candidates, as chatters ask for them; `versions` answer in turn."""
        engine = engine_of(turn_tokens)
        sampling = Sampling(max_tokens=tokens, temperature=0.8)
        start = time.perf_counter()
        generations = [
            engine.submit(
                [100 + first + i for i in range(prompt)],
                [CandidateRequest(1 + row % versions, row) for row in range(first, min(first + 2, rows))],
                sampling,
            )
            for first in range(0, rows, 2)
        ]
        count = sum(len(output.token_ids) for generation in generations for output in generation.result())
        seconds = time.perf_counter() - start
        assert count == rows * tokens, count
        return seconds

    engine_of(None)
    return decode


def transformers(adapter: Path) -> Work:
    """`generate` with PEFT's model of the same adapter, a static batch, in the precision that is faster at its size."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = resolve_model("default", CACHE).path

    def open_model(dtype: torch.dtype) -> Any:
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        return PeftModel.from_pretrained(model, str(adapter)).eval()

    models = [open_model(dtype) for dtype in (torch.bfloat16, torch.float32)]
    fastest: dict[int, Any] = {}

    def generate(model: Any, rows: int, prompt: int, tokens: int) -> float:
        ids = (100 + torch.arange(rows)[:, None] // 2 * 2 + torch.arange(prompt)).contiguous()
        start = time.perf_counter()
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                do_sample=True,
                temperature=0.8,
                top_k=0,
                min_new_tokens=tokens,
                max_new_tokens=tokens,
            )
        assert out.shape == (rows, prompt + tokens)
        return time.perf_counter() - start

    def decode(rows: int, prompt: int, tokens: int) -> float:
        if rows not in fastest:
            fastest[rows] = min(models, key=lambda model: min(generate(model, rows, 16, 12) for _ in range(3)))
        return generate(fastest[rows], rows, prompt, tokens)

    return decode


def memory_ceiling(adapter: Path) -> Work:
    """Bytes of a decode step over the speed at which this machine reads memory: `seconds` of a step that only reads."""
    packed = max((CACHE / "packed").glob("*.safetensors"), key=lambda file: file.stat().st_mtime)
    size = packed.stat().st_size
    buffer = torch.ones(512 * 2**20 // 8, dtype=torch.int64)

    def read(rows: int, prompt: int, tokens: int) -> float:
        start = time.perf_counter()
        buffer.sum()
        return (time.perf_counter() - start) * size / (8 * len(buffer)) * tokens

    return read


CONTENDERS = {"hustings": ours, "transformers": transformers, "memory ceiling": memory_ceiling}

if __name__ == "__main__":
    work = CONTENDERS[sys.argv[1]](Path(sys.argv[2]))
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"seconds": work(**json.loads(line))}), flush=True)
