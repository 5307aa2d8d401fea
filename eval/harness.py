"""What lm-evaluation-harness calls a benchmark of ours: its task, documents and settings.

Shared by the tasks that it runs (`lm_eval_tasks/`) and the results that are written in its format.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from eval.benchmark import Benchmark, Decoding

PREFIX = "mos_"  # of task names
VERSION = 1.0  # of the tasks: raise it when prompts or scores change


def document(benchmark: Benchmark, position: int) -> dict[str, Any]:
    """An example as a row of a data set; `position` is its place in the benchmark."""
    example = asdict(benchmark.examples[position])
    return {**example, "id": benchmark.requests[position].id, "position": position}


def task_settings(benchmark: Benchmark) -> dict[str, Any]:
    """The fields of a task's config that follow from how its prompts are answered."""
    decoding = benchmark.requests[0].decoding
    metrics = [
        {"metric": metric.name, "aggregation": "mean", "higher_is_better": True}
        for metric in benchmark.metrics
    ]
    settings: dict[str, Any] = {
        "test_split": "test",
        "num_fewshot": 0,  # the prompts have their shots; lm-eval then takes no other number
        "target_delimiter": "",
        "metric_list": metrics,
    }
    if decoding.choices:
        return {
            **settings,
            "output_type": "multiple_choice",
            "doc_to_choice": list(decoding.choices),
        }
    settings |= {
        "output_type": "generate_until",
        "generation_kwargs": generation_kwargs(decoding),
    }
    if decoding.n > 1:
        keep_all = {"function": "take_first_k", "k": decoding.n}
        settings["repeats"] = decoding.n
        settings["filter_list"] = [{"name": "none", "filter": [keep_all]}]
    return settings


def generation_kwargs(decoding: Decoding) -> dict[str, Any]:
    """How a prompt is answered that has no choices."""
    sampled = {"top_p": decoding.top_p} if decoding.temperature else {}
    return {
        "until": list(decoding.stop),
        "max_gen_toks": decoding.max_tokens,
        "do_sample": decoding.temperature > 0,
        "temperature": decoding.temperature,
        **sampled,
    }
