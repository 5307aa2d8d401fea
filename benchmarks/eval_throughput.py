"""What evaluation costs: over a bare `LLM.generate`, and against the reference's way.

    python benchmarks/eval_throughput.py overhead     # one process, paired and alternating
    python benchmarks/eval_throughput.py sweep        # adapters x benchmarks, from start to results

`overhead` gives the same prompts and sampling settings to `LLM.generate` and to
`eval.runner.run_benchmark` (which encodes, keeps, scores and writes), in turn, with the prefix
cache emptied before each, and reports the median of the paired ratios.

`sweep` evaluates random MoS adapters on SmolLM2: with `mos.evaluate`, and as the reference does
it, merging each adapter into a folder and starting an engine (and a Python process) for every
adapter and benchmark. Both run vLLM with the same settings, the reference's engines too start the
fast way.

Results are printed and written to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from machine import machine  # noqa: E402

from eval import build_benchmark  # noqa: E402
from eval.engines import engine_settings, start  # noqa: E402
from eval.runner import Weights, run_benchmark  # noqa: E402
from mos.config import Adapter, TrainConfig, compose_config, validate  # noqa: E402
from mos.files import SMOLLM2  # noqa: E402
from mos.models.loading import load_tokenizer  # noqa: E402
from mos.models.sources import resolve_model  # noqa: E402

RESULTS = REPO / "benchmarks" / "results"
ADAPTER = {
    "method": "mos",
    "r": 32,
    "equivalent_rank": 8,
    "shards_per_vector": 4,
    "private_rank": 3,
    "mos_alpha": 16,
    "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("part", choices=["overhead", "sweep", "one-engine"])
    parser.add_argument("--benchmarks", nargs="+", default=["mmlu", "tydiqa"])
    parser.add_argument("--limit", type=int, default=32, help="examples of each benchmark")
    parser.add_argument("--adapters", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data-dir", type=Path, default=REPO / "data" / "samples")
    parser.add_argument("--cache-dir", type=Path, default=REPO / "data" / "cache")
    parser.add_argument("--model", default=SMOLLM2)
    parser.add_argument("--no-write", action="store_true", help="print the results only")
    arguments = parser.parse_args()
    if arguments.part == "one-engine":
        one_engine(arguments)
        return
    found = overhead(arguments) if arguments.part == "overhead" else sweep(arguments)
    found["machine"] = machine()
    found["command"] = " ".join(["python", "benchmarks/eval_throughput.py", *sys.argv[1:]])
    print(json.dumps(found, indent=2))
    if not arguments.no_write:
        file = RESULTS / f"eval_{arguments.part}.json"
        file.write_text(json.dumps(found, indent=2) + "\n")


def overhead(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ratio of our time to that of a bare generate, for each benchmark."""
    folder = resolve_model(arguments.model, arguments.cache_dir)
    tokenizer = load_tokenizer(folder)
    found: dict[str, Any] = {"limit": arguments.limit, "repeats": arguments.repeats}
    settings = engine_settings("vllm", folder, max_model_len=4096)
    with (
        tempfile.TemporaryDirectory() as scratch,
        start(settings, folder, tokenizer, f"{scratch}/log") as engine,
    ):
        for name in arguments.benchmarks:
            benchmark = build_benchmark(
                name, arguments.data_dir / name, tokenizer, limit=arguments.limit
            )
            pairs = []
            for repeat in range(arguments.repeats + 1):
                pair = {}
                for way in ("bare", "ours") if repeat % 2 else ("ours", "bare"):
                    engine._llm.reset_prefix_cache()
                    started = time.perf_counter()
                    if way == "bare":
                        prompts = [request.prompt for request in benchmark.requests]
                        sampling = [engine._sampling(p) for p in engine.encode(benchmark.requests)]
                        started = time.perf_counter()
                        engine._llm.generate(prompts, sampling, use_tqdm=False)
                    else:
                        run_benchmark(
                            benchmark,
                            Path(scratch) / name / str(repeat),
                            weights=Weights("bench", str(repeat)),
                            numerics=settings.numerics(),
                            engine=lambda: (engine, None),
                            cache_dir=scratch,
                        )
                    pair[way] = time.perf_counter() - started
                if repeat:  # the first pair warms up
                    pairs.append(pair)
            found[name] = {
                "ratio": statistics.median(p["ours"] / p["bare"] for p in pairs),
                "ours_seconds": [round(p["ours"], 3) for p in pairs],
                "bare_seconds": [round(p["bare"], 3) for p in pairs],
            }
    return found


def sweep(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds from start to results, ours and the reference's way."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = make_runs(arguments, Path(scratch))
        started = time.perf_counter()
        command = [
            "-m",
            "mos.evaluate",
            f"runs={scratch}/outputs/**",
            f"paths.cache_dir={arguments.cache_dir}",
        ]
        subprocess.run([sys.executable, *command], check=True, cwd=REPO)
        ours = time.perf_counter() - started
        started = time.perf_counter()
        for run in runs:
            merged = f"{scratch}/merged"
            script = (
                "import sys; from mos.export import merge;"
                "from pathlib import Path; merge(*map(Path, sys.argv[1:]))"
            )
            base = dequantised(arguments)
            paths = [str(base), str(run / "adapter"), merged]
            subprocess.run([sys.executable, "-c", script, *paths], check=True, cwd=REPO)
            for name in arguments.benchmarks:
                command = [str(Path(__file__)), "one-engine", "--model", merged]
                command += ["--benchmarks", name, "--limit", str(arguments.limit)]
                command += ["--data-dir", str(arguments.data_dir)]
                subprocess.run([sys.executable, *command], check=True, cwd=REPO)
            subprocess.run(["rm", "-r", merged], check=True)
        reference = time.perf_counter() - started
    return {
        "adapters": arguments.adapters,
        "benchmarks": arguments.benchmarks,
        "limit": arguments.limit,
        "ours_seconds": round(ours, 1),
        "reference_seconds": round(reference, 1),
        "speedup": round(reference / ours, 2),
    }


def one_engine(arguments: argparse.Namespace) -> None:
    """The reference's step: a process and an engine for one merged model and one benchmark."""
    tokenizer = load_tokenizer(arguments.model)
    (name,) = arguments.benchmarks
    benchmark = build_benchmark(name, arguments.data_dir / name, tokenizer, limit=arguments.limit)
    log = f"{tempfile.gettempdir()}/eval_throughput.log"
    settings = engine_settings("vllm", arguments.model, max_model_len=4096)
    with start(settings, arguments.model, tokenizer, log) as e:
        prompts = e.encode(benchmark.requests)
        outputs = e._llm.generate(
            [{"prompt_token_ids": p.ids} for p in prompts],
            [e._sampling(p) for p in prompts],
            use_tqdm=False,
        )
        answers = [e._completion(p, o).texts for p, o in zip(prompts, outputs, strict=True)]
    benchmark.score([texts[0] if len(texts) == 1 else list(texts) for texts in answers])


def dequantised(arguments: argparse.Namespace) -> Path:
    from mos.models.loading import dequantized_base

    folder = resolve_model(arguments.model, arguments.cache_dir)
    return dequantized_base(folder, config_of(arguments, "")["quantization"], arguments.cache_dir)


def config_of(arguments: argparse.Namespace, scratch: str | Path) -> TrainConfig:
    overrides = [
        f"eval=[base,{','.join(arguments.benchmarks)}]",
        f"eval.limit={arguments.limit}",
        f"paths.data_dir={arguments.data_dir}",
        f"paths.cache_dir={arguments.cache_dir}",
        f"paths.output_dir={scratch}/outputs",
        "eval.engine=vllm",
    ]
    return validate(compose_config(overrides)).but(adapter=Adapter(**ADAPTER))


def make_runs(arguments: argparse.Namespace, scratch: Path) -> list[Path]:
    """Run folders as training leaves them, with random adapters."""
    import torch
    from transformers import AutoModelForCausalLM

    from mos.adapters import attach
    from mos.run import Run

    folders = []
    for seed in range(arguments.adapters):
        run = Run(scratch / "outputs" / "throughput" / "mos-00000000" / f"seed{seed}")
        run.path.mkdir(parents=True)
        run.write_config(config_of(arguments, scratch) | {"seed": seed})
        model = AutoModelForCausalLM.from_pretrained(dequantised(arguments))
        torch.manual_seed(seed)
        model = attach(model, ADAPTER)
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.01)
        model.save_pretrained(run.adapter_dir)
        run.update_manifest(method={"name": "mos", "label": "MoS", "rank": 32}, train=None)
        run.set_status("trained")
        folders.append(run.path)
    return folders


if __name__ == "__main__":
    main()
