"""Answers the requests of test_engines through vLLM, in a process that it may keep for itself.

Usage: vllm_probe.py LOG RANK MODEL STEP ...: one engine on MODEL, with room for LoRA adapters of
RANK. A step is `weights=DIR` (exchange the weights), `adapter=DIR` (a LoRA adapter), `none` (the
loaded weights), `sampled` (more prompts than one step takes, with seeds), or `broken=DIR` and
`stopped=DIR` (an adapter that does not fit; one whose answers are not waited for). The last line of
its output is JSON: what each step gave. With the one step `gpu`, no engine starts: see there.
"""

import json
import os
import sys
from dataclasses import asdict, replace
from inspect import signature
from pathlib import Path
from unittest.mock import MagicMock

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parent)]

from test_engines import answer, probe_requests, sampled_requests  # noqa: E402

from eval.engines import EngineSettings, engine_settings, start  # noqa: E402
from mos.errors import UserError  # noqa: E402


def main(log: str, rank: str, model: str, *steps: str) -> None:
    if steps == ("gpu",):
        print(json.dumps(of_gpu_build(model)))
        return
    options = {"dtype": "float32", "max_model_len": 512}
    settings = engine_settings("vllm", model, max_lora_rank=int(rank), **options)
    with start(settings, model, log=log) as engine:
        found = [take(step.partition("="), engine) for step in steps]
    print(json.dumps(found))


def of_gpu_build(model: str) -> dict:
    """What an engine on a GPU is started with, and what vLLM has no place for.

    vLLM's build for CPUs has the classes of that for GPUs, with the second model runner, which a
    CPU never takes.
    """
    import vllm
    from vllm.engine.arg_utils import EngineArgs
    from vllm.lora.worker_manager import LRUCacheWorkerLoRAManager, WorkerLoRAManager
    from vllm.v1.worker import gpu_model_runner
    from vllm.v1.worker.gpu import model_runner
    from vllm.v1.worker.lora_model_runner_mixin import LoRAModelRunnerMixin

    from eval.engines import vllm as engines
    from mos.serving.plugin import register

    known = {*signature(vllm.LLM).parameters, *signature(EngineArgs).parameters}
    vllm.LLM, engines.free_memory = MagicMock(), lambda gpus: (36 << 30, 40 << 30)
    settings = EngineSettings("vllm", "cuda", "bfloat16", 512, enforce_eager=False)
    engines.VllmEngine(model, replace(settings, tensor_parallel=2, max_lora_rank=5))
    options = vllm.LLM.call_args.kwargs
    lacking = sorted(options.keys() - known)
    register()
    load = LRUCacheWorkerLoRAManager._load_adapter
    if load is not WorkerLoRAManager._load_adapter or not hasattr(load, "of_mos"):
        lacking.append("MoS adapters")
    for runner in (gpu_model_runner.GPUModelRunner, model_runner.GPUModelRunner):
        for name in ("load_lora_model", "add_lora", "reset_lora_state"):
            if getattr(runner, name) is not getattr(LoRAModelRunnerMixin, name):
                lacking.append(f"{runner.__module__}.{name}, of the two runners' common class")
        if "weights_path" not in signature(runner.reload_weights).parameters:
            lacking.append(f"{runner.__module__}.reload_weights, from a path")
    environment = {name: os.environ[name] for name in os.environ if name.startswith("VLLM_")}
    return {"options": options, "lacking": lacking, "environment": environment}


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
