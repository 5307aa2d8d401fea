"""The benchmarks of an `eval` config group: built, and their options as results record them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eval import BENCHMARKS, Benchmark, build_benchmark
from mos.files import source_hash

# What the caller says of programs that are run; a run's config may lack the second.
_CALLERS = ("allow_code_execution", "sandbox")


def build_benchmarks(evaluation: Mapping[str, Any], tokenizer: Any) -> dict[str, Benchmark]:
    """The benchmarks of an `eval` config group, by name.

    Args:
        evaluation: the group: `chat`, `limit`, `allow_code_execution`, `sandbox`,
            `benchmarks.<name>.*`.
        tokenizer: of the model that is evaluated.
    """
    return {
        name: build_benchmark(name, tokenizer=tokenizer, **build_options(evaluation, name))
        for name in evaluation["benchmarks"]
    }


def build_options(evaluation: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The keyword arguments of `build_benchmark` that an `eval` config group gives."""
    options = {
        "chat": evaluation["chat"],
        "limit": evaluation["limit"],
        **evaluation["benchmarks"][name],
    }
    if BENCHMARKS[name].runs_code:  # how, is not for a benchmark's own settings to say
        options |= {key: evaluation[key] for key in _CALLERS if key in evaluation}
    return options


def recorded_options(
    evaluation: Mapping[str, Any], name: str, cache_dir: str | Path
) -> dict[str, Any]:
    """What shapes a benchmark, its files by content: targets are not in the prompts' hash."""
    options = build_options(evaluation, name)
    options.pop("sandbox", None)  # the result's `scoring` says it
    options.setdefault("shard", None)
    return {**options, "data_dir": source_hash(options["data_dir"], cache_dir)}


def has_all(evaluated: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a run has the results that its config asks for, and not just parts of them."""

    def options(of: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in of.items() if k not in ("data_dir", *_CALLERS) and v is not None}

    return all(
        name in evaluated
        and options(evaluated[name]["options"]) == options(build_options(wanted, name))
        for name in wanted["benchmarks"]
    )
