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
        print(json.dumps({"seconds": decode(model, threads, work["rows"], work["prompt"], work["tokens"])}), flush=True)


def decode(model: object, threads: int, rows: int, prompt: int, tokens: int) -> float:
    """Seconds for a prompt for every two sequences, and so many tokens in each sequence."""
    settings = llama.llama_context_default_params()
    settings.n_ctx = -(-(prompt + tokens) // 256) * 256 * rows
    settings.n_batch = 512
    settings.n_seq_max = rows
    settings.n_threads = settings.n_threads_batch = threads
    context = llama.llama_init_from_model(model, settings)
    batch = llama.llama_batch_init(settings.n_batch, 0, 1)

    def step(entries: list[tuple[int, int, int, bool]]) -> None:
        batch.n_tokens = len(entries)
        for i, (token, position, sequence, wanted) in enumerate(entries):
            batch.token[i], batch.pos[i], batch.logits[i] = token, position, wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
        if llama.llama_decode(context, batch) != 0:
            raise RuntimeError("llama_decode failed")
        llama.llama_synchronize(context)

    start = time.perf_counter()
    memory = llama.llama_get_memory(context)
    for row in range(0, rows, 2):
        entries = [(100 + row + i, i, row, i == prompt - 1) for i in range(prompt)]
        for first in range(0, prompt, settings.n_batch):
            step(entries[first : first + settings.n_batch])
        if row + 1 < rows:
            llama.llama_memory_seq_cp(memory, row, row + 1, -1, -1)
    for i in range(tokens - 1):
        step([(1000 + 7 * i + row, prompt + i, row, True) for row in range(rows)])
    seconds = time.perf_counter() - start
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    return seconds


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
