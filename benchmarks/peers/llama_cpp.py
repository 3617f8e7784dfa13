"""llama.cpp as a contender of `benchmarks/serving.py`: the same GGUF through `llama_decode`, no LoRA, no sampling.

Run by .peers/llama (llama-cpp-python), which has none of our packages: a line of JSON in, a line out.
"""

from __future__ import annotations

import json
import sys
import time

import llama_cpp as llama  # type: ignore[import-not-found]


def main(gguf: str, threads: int) -> None:
    """Answer {rows, prompt, tokens} with {seconds} until the input ends."""
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(gguf.encode(), llama.llama_model_default_params())
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        print(json.dumps({"seconds": decode(model, threads, **work)}), flush=True)


def decode(model: object, threads: int, rows: int, prompt: int, tokens: int) -> float:
    """Seconds for one prompt and so many tokens in each of so many sequences that share it."""
    settings = llama.llama_context_default_params()
    settings.n_ctx = (prompt + tokens + 32) * rows
    settings.n_batch = max(512, prompt)
    settings.n_seq_max = rows
    settings.n_threads = settings.n_threads_batch = threads
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(settings.n_batch, 0, 1)

    def step(entries: list[tuple[int, int, int]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, sequence) in enumerate(entries):
            batch.token[i], batch.pos[i] = token, position
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            batch.logits[i] = len(entries) <= rows or i == len(entries) - 1
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(context)

    start = time.perf_counter()
    step([(100 + i, i, 0) for i in range(prompt)])
    memory = llama.llama_get_memory(context)
    for row in range(1, rows):
        llama.llama_memory_seq_cp(memory, 0, row, -1, -1)
    for i in range(tokens - 1):
        step([(1000 + 7 * i + row, prompt + i, row) for row in range(rows)])
    seconds = time.perf_counter() - start
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
