"""A run's results in the files of lm-evaluation-harness."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import BENCHMARKS, Benchmark, Request, build_benchmark
from eval.harness import PREFIX, VERSION, document, generation_kwargs, task_settings
from eval.results import Metrics, read_records
from mos.errors import UserError
from mos.files import output
from mos.modeling import tokenizer_of
from mos.run import Run


def write_lm_eval(
    run: Run, out_dir: str | Path, data_dir: str | Path, cache_dir: str | Path
) -> Path:
    """Write `<run>/results_<time>.json` and `<run>/samples_<task>_<time>.jsonl` below `out_dir`.

    As `lm_eval --log_samples` does after the tasks of `eval/lm_eval_tasks`: scores are in 0..1, a
    task is `mos_<benchmark>`. The loss on held-out examples, for which lm-eval has no task, is left
    out.

    Args:
        data_dir: holds the folders of the benchmarks, from which the prompts are built again.
        cache_dir: of base models.

    Raises:
        UserError: the run has no result of a benchmark, it was evaluated on other files, or lm-eval
            is not installed.
    """
    try:
        from lm_eval.loggers import EvaluationTracker
    except ImportError as error:
        raise UserError(
            f"as=lm_eval needs lm-eval's own writer ({error}): pip install 'mos-tuning[eval]'."
        ) from error
    found = {name: Metrics.whole(run.path / "eval" / name) for name in BENCHMARKS}
    results = {name: result for name, result in found.items() if result is not None}
    if not results:
        raise UserError(f"results={run.path} has no result of a benchmark: evaluate it first.")
    model, manifest = run.config.model.dump(), run.manifest
    tokenizer = tokenizer_of(model, cache_dir)
    model_args = {"pretrained": model["path"]}
    if run.adapter_dir.is_dir():
        model_args["peft"] = run.name  # by which lm-eval names the folder
    content: dict[str, Any] = {
        "config": {"model": "mos", "model_args": model_args},
        "git_hash": manifest.git,
        "date": (run.path / "results.json").stat().st_mtime,
        "transformers_version": manifest.versions["transformers"],
    }
    samples = {}
    for name, result in results.items():
        options = {**result.options, "data_dir": Path(data_dir) / name, "limit": None}
        benchmark = build_benchmark(name, tokenizer=tokenizer, **options)
        samples[PREFIX + name] = _samples(run, benchmark)
        for key, value in _about_task(result, benchmark).items():
            content.setdefault(key, {})[PREFIX + name] = value
    with output(out_dir, "export") as target:
        tracker = EvaluationTracker(output_path=str(target))
        tracker.general_config_tracker.log_experiment_args("mos", model_args, None, None, False)
        tracker.save_results_aggregated(content, samples)
        for task, of_task in samples.items():
            tracker.save_results_samples(task, of_task)
        written = len(list(target.glob("*/*.json*")))
        if written != 1 + len(samples):  # it logs what goes wrong, and returns
            raise UserError(f"lm-eval wrote {written} of {1 + len(samples)} files of {out_dir}.")
    return Path(out_dir)


def _about_task(result: Metrics, benchmark: Benchmark) -> dict[str, Any]:
    """What the results file says of one task, by section."""
    scores: dict[str, Any] = {}
    for metric, value in result.metrics.items():
        error = result.stderr.get(metric)
        scores[f"{metric},none"] = value / 100
        scores[f"{metric}_stderr,none"] = "N/A" if error is None else error / 100
    name = PREFIX + benchmark.name
    kept = ("prompts_sha256", "partial", "options", "weights", "engine")
    about = {"version": VERSION, **{key: getattr(result, key) for key in kept}}
    return {
        "results": {"name": name, "alias": name, "sample_len": result.n, **scores},
        "group_subtasks": [],
        "configs": {"task": name, **task_settings(benchmark), "metadata": about},
        "versions": VERSION,
        "n-shot": 0,
        "higher_is_better": dict.fromkeys(result.metrics, True),
        "n-samples": {"original": len(benchmark.requests), "effective": result.n},
    }


def _samples(run: Run, benchmark: Benchmark) -> list[dict[str, Any]]:
    """What lm-eval keeps of each example."""
    from lm_eval.utils import hash_string

    positions = {(r.id, r.prompt_sha256): i for i, r in enumerate(benchmark.requests)}
    samples = []
    for line in read_records(run.path / "eval" / benchmark.name):
        record = line.model_dump()
        position = positions.get((record["id"], record["prompt_sha256"]))
        if position is None:
            raise UserError(
                f"{run.path} was evaluated on other files of {benchmark.name}, or with another"
                f" tokenizer: the prompt of {record['id']} is not among those built now. Say where"
                " its files are with data_dir= (scale=paper: data/full)."
            )
        doc = document(benchmark, position)
        samples.append(
            {
                "doc_id": position,
                "doc": doc,
                "target": record["target"],
                **_exchange(benchmark.requests[position], record),
                "filter": "none",
                "metrics": list(record["scores"]),
                "doc_hash": hash_string(json.dumps(doc, indent=2, ensure_ascii=False)),
                "prompt_hash": record["prompt_sha256"],
                "target_hash": hash_string(str(record["target"])),
                **record["scores"],
            }
        )
    return samples


def _exchange(request: Request, record: Mapping[str, Any]) -> dict[str, Any]:
    """What was asked and answered: each choice with its likelihood, or the outputs."""
    if choices := request.decoding.choices:
        # whether a choice was the likeliest of all tokens is not known
        answers = [(likelihood, None) for likelihood in record["logprobs"]]
        return {
            "arguments": [(request.prompt, choice) for choice in choices],
            "resps": [[answer] for answer in answers],
            "filtered_resps": answers,
        }
    outputs = record["output"] if request.decoding.n > 1 else [record["output"]]
    return {
        "arguments": [(request.prompt, generation_kwargs(request.decoding))],
        "resps": [outputs],
        "filtered_resps": [record["parsed"]],
    }
