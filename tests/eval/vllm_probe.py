"""Answers the requests of test_engines through vLLM, in a process that it may keep for itself.

Usage: vllm_probe.py LOG RANK MODEL STEP ...: one engine on MODEL, with room for LoRA adapters of
RANK. A step is `weights=DIR` (exchange the weights), `adapter=DIR` (a LoRA adapter), `none` (the
loaded weights), `sampled` (more prompts than one step takes, with seeds), or `broken=DIR` and
`stopped=DIR` (an adapter that does not fit; one whose answers are not waited for). The last line of
its output is JSON: what each step gave.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from test_engines import answer, probe_requests, sampled_requests  # noqa: E402

from eval.engines import open_engine  # noqa: E402
from mos.errors import UserError  # noqa: E402


def main(log: str, rank: str, model: str, *steps: str) -> None:
    options = {"dtype": "float32", "max_model_len": 512, "kv_cache_gib": 1, "log": log}
    with open_engine("vllm", model, max_lora_rank=int(rank), **options) as engine:
        found = [take(step.partition("="), engine) for step in steps]
    print(json.dumps(found))


def take(step: tuple[str, str, str], engine) -> list[dict] | str:
    kind, _, folder = step
    if kind == "weights":
        engine.load_weights(folder)
    if kind == "stopped":
        batches = engine.complete(engine.encode(probe_requests()[0]), folder)
        next(batches)
        batches.close()
        return "stopped"
    if kind == "sampled":
        return [asdict(completion) for completion in answer(engine, sampled_requests())]
    adapter = folder if kind in ("adapter", "broken") else None
    try:
        return [asdict(c) for asked in probe_requests() for c in answer(engine, asked, adapter)]
    except UserError as error:
        return str(error)


if __name__ == "__main__":
    main(*sys.argv[1:])
