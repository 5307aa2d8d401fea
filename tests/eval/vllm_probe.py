"""Answers the requests of test_engines through vLLM, in a process that it may keep for itself.

Usage: vllm_probe.py LOG MODEL MODEL ...: one engine, whose weights are exchanged for each model's.
The last line of its output is JSON: a list of completions for every model.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from test_engines import answer, probe_requests  # noqa: E402

from eval.engines import open_engine  # noqa: E402


def main(log: str, first: str, *others: str) -> None:
    options = {"dtype": "float32", "max_model_len": 512, "kv_cache_gib": 1, "log": log}
    with open_engine("vllm", first, **options) as engine:
        found = [ask(engine)]
        for model in others:
            engine.load_weights(model)
            found.append(ask(engine))
    print(json.dumps(found))


def ask(engine) -> list[dict]:
    return [asdict(c) for asked in probe_requests() for c in answer(engine, asked)]


if __name__ == "__main__":
    main(*sys.argv[1:])
