"""The benchmarks as tasks of lm-evaluation-harness: prompts, settings and scores are `eval`'s own.

lm-eval reads this folder with `--include_path`; `--metadata` says where the benchmarks' files are.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from datasets import Dataset
from lm_eval.api.metrics import mean
from lm_eval.api.task import ConfigurableTask
from transformers import AutoTokenizer

from eval import BENCHMARKS, Benchmark, build_benchmark
from mos.errors import UserError

PREFIX = "mos_"  # of task names
VERSION = 1.0  # of the tasks: raise it when prompts or scores change


class Scored(float):
    """A score in 0..1 that knows the group of its example."""

    group: str


class BenchmarkTask(ConfigurableTask):
    """A task `mos_<benchmark>`, with the options of the paper.

    Args:
        config: of a YAML file beside this one. Its `metadata` are lm-eval's model arguments, of
            which the tokenizer is taken, and what `--metadata` gives: `data_dir`, the folder of the
            benchmarks' folders.

    Raises:
        UserError: no `data_dir`, or what `build_benchmark` raises.
    """

    VERSION = VERSION

    def __init__(self, config: dict[str, Any]) -> None:
        name = config["task"].removeprefix(PREFIX)
        self.benchmark = _build(name, config["metadata"])
        self.decoding = self.benchmark.requests[0].decoding
        super().__init__(
            config={
                **_settings(self.benchmark),
                "task": config["task"],
                "doc_to_target": config["doc_to_target"],
                "process_results": type(self).process_results,
                "unsafe_code": self.benchmark.runs_code,
                "metadata": {"version": VERSION, **config["metadata"]},
            }
        )

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        rows = [_document(self.benchmark, i) for i in range(len(self.benchmark.requests))]
        self.dataset = {"test": Dataset.from_list(rows)}

    def doc_to_text(self, doc: Mapping[str, Any], doc_to_text: Any = None) -> str:
        return self.benchmark.requests[doc["position"]].prompt

    def fewshot_context(self, doc: Mapping[str, Any], *args: Any, **kwargs: Any) -> str:
        """The prompt has its shots and its chat format already."""
        return self.doc_to_text(doc)

    def process_results(self, doc: Mapping[str, Any], results: Sequence[Any]) -> dict[str, Scored]:
        if self.decoding.choices:
            likelihoods = [likelihood for likelihood, _ in results]
            best = likelihoods.index(max(likelihoods))
            output = self.decoding.choices[best].strip()
        else:
            output = results[0]
        [record] = self.benchmark.only(doc["position"]).score([output]).records
        scores = {name: Scored(score) for name, score in record["scores"].items()}
        for score in scores.values():
            score.group = self.benchmark.group_of(record["id"])
        return scores

    def aggregation(self) -> dict[str, Any]:
        """Of every metric: the mean of the groups' means where the benchmark has groups."""
        grouped = type(self.benchmark).group_of is not Benchmark.group_of
        return defaultdict(lambda: mean_of_groups if grouped else mean)


def mean_of_groups(scores: Sequence[Scored]) -> float:
    """Unweighted mean of the means over the groups."""
    groups: dict[str, list[float]] = defaultdict(list)
    for score in scores:
        groups[score.group].append(score)
    return statistics.fmean(map(statistics.fmean, groups.values()))


def _build(name: str, metadata: Mapping[str, Any]) -> Benchmark:
    if "data_dir" not in metadata:
        raise UserError(
            f"{PREFIX}{name} has no data: name the folder that holds {name}/, such as"
            """ --metadata '{"data_dir": "data/full"}'."""
        )
    source = metadata.get("tokenizer") or metadata.get("pretrained")
    # lm-eval asks for the user's consent, --confirm_run_unsafe_code.
    options: dict[str, Any] = {"allow_code_execution": True} if BENCHMARKS[name].runs_code else {}
    return build_benchmark(
        name,
        Path(metadata["data_dir"]) / name,
        AutoTokenizer.from_pretrained(source) if source else None,
        **options,
    )


def _document(benchmark: Benchmark, position: int) -> dict[str, Any]:
    """An example as a row of a data set; `position` is its place in the benchmark."""
    example = asdict(benchmark.examples[position])
    return {**example, "id": benchmark.requests[position].id, "position": position}


def _settings(benchmark: Benchmark) -> dict[str, Any]:
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
    sampled = {"top_p": decoding.top_p} if decoding.temperature else {}
    settings |= {
        "output_type": "generate_until",
        "generation_kwargs": {
            "until": list(decoding.stop),
            "max_gen_toks": decoding.max_tokens,
            "do_sample": decoding.temperature > 0,
            "temperature": decoding.temperature,
            **sampled,
        },
    }
    if decoding.n > 1:
        keep_all = {"function": "take_first_k", "k": decoding.n}
        settings["repeats"] = decoding.n
        settings["filter_list"] = [{"name": "none", "filter": [keep_all]}]
    return settings
