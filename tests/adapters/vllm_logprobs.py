"""Run by tests/test_export.py: next-token log-probabilities of a LoRA adapter served by vLLM.

usage: vllm_logprobs.py BASE LORA TOKEN_IDS; the last line printed is a JSON list, one per token.
"""

from __future__ import annotations

import json
import os
import sys

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="1")

from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest


def main(base: str, lora: str, token_ids: list[int]) -> None:
    llm = LLM(
        base, skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64,
        enable_lora=True, max_lora_rank=8, max_logprobs=-1, gpu_memory_utilization=0.5,
    )  # fmt: skip
    vocabulary = llm.model_config.get_vocab_size()
    parameters = SamplingParams(max_tokens=1, temperature=0, logprobs=vocabulary, detokenize=False)
    [output] = llm.generate(
        {"prompt_token_ids": token_ids}, parameters, lora_request=LoRARequest("exported", 1, lora)
    )
    found = output.outputs[0].logprobs[0]
    print()
    print(json.dumps([found[token].logprob for token in range(vocabulary)]))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
