"""vLLM's CPU build as a contender of `benchmarks/serving.py`: the canonical weights in bfloat16 and the same LoRA.

Run by .peers/vllm, which has none of our packages: a line of JSON in, a line out.
"""

from __future__ import annotations

import json
import os
import sys
import time

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",  # all cores decode
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
}


def main(model: str, adapter: str) -> None:
    """Answer {rows, prompt, tokens} with {seconds} until the input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # its log belongs elsewhere
    from vllm import LLM, SamplingParams  # type: ignore[import-not-found]
    from vllm.lora.request import LoRARequest  # type: ignore[import-not-found]

    engine = LLM(
        model=model, dtype="bfloat16", max_model_len=1024, max_num_seqs=32, enforce_eager=True,
        enable_lora=True, max_lora_rank=16, max_loras=1, disable_log_stats=True,
    )  # fmt: skip
    lora = LoRARequest("policy-1", 1, adapter)
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        work = json.loads(line)
        rows, tokens = work["rows"], work["tokens"]
        prompts = [{"prompt_token_ids": [100 + row + i for i in range(work["prompt"])]} for row in range(0, rows, 2)]
        sampling = SamplingParams(n=min(2, rows), temperature=0.8, max_tokens=tokens, ignore_eos=True)
        start = time.perf_counter()
        outputs = engine.generate(prompts, sampling, lora_request=lora, use_tqdm=False)
        seconds = time.perf_counter() - start
        count = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        if count != rows * tokens:
            raise RuntimeError(f"{count} tokens, not {rows * tokens}")
        print(json.dumps({"seconds": seconds}), file=answers, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
