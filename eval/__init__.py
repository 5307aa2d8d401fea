"""Benchmarks of the Tulu protocol: `build_benchmark` makes prompts and scores outputs.

A benchmark is one file with its class, one line in `_CLASSES`, and one config
(docs/add_a_benchmark.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, get_type_hints

from pydantic import BaseModel, create_model

from eval.benchmark import Benchmark, Completion, Decoding, Metric, Request
from eval.files import require
from eval.scoring import Score
from eval.selection import Selection
from mos.errors import Number, Strict, UserError, check, unknown

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "Completion",
    "Decoding",
    "Metric",
    "Request",
    "Score",
    "build_benchmark",
    "options_model",
]

# In the order in which tables show them.
_CLASSES = (
    "eval.mmlu:MMLU",
    "eval.bbh:BBH",
    "eval.gsm8k:GSM8K",
    "eval.tydiqa:TyDiQA",
    "eval.humaneval:HumanEval",
)
BENCHMARKS: dict[str, type[Benchmark]] = {cls.name: cls for cls in map(resolve_name, _CLASSES)}


def build_benchmark(
    name: str,
    data_dir: str | Path,
    tokenizer: Any = None,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    **options: Any,
) -> Benchmark:
    """Read a benchmark and build its prompts.

    Args:
        name: one of `BENCHMARKS`.
        data_dir: the benchmark's own folder, with the files of its publishers.
        tokenizer: the model's; needed where a length in tokens shapes the prompts.
        tasks, limit: see `eval.selection.Selection`; the benchmark's `partial` then says so.
        options: of the benchmark's class, by default the paper's values.

    Raises:
        UserError: an unknown benchmark, option or task, or a wrong value.
        MissingFileError, DataError: benchmark files that are missing or malformed.
    """
    check(options, options_model(name), f"{name}.")
    if isinstance(tasks, str):
        raise UserError(f"tasks={tasks!r}: expected a list of names, [{tasks}].")
    selection = Selection(None if tasks is None else tuple(tasks), limit)
    folder = require(Path(data_dir), f"the folder of {name}")
    benchmark_class: Any = BENCHMARKS[name]  # each has its own options
    benchmark = benchmark_class(folder, tokenizer, selection, **options)
    twice = [i for i, n in Counter(r.id for r in benchmark.requests).items() if n > 1]
    if twice:
        raise UserError(f"{folder}: {name} has examples with the same id: {', '.join(twice[:5])}.")
    return benchmark


@cache
def options_model(name: str) -> type[BaseModel]:
    """The options of a benchmark as a pydantic model: the keyword-only fields of its class.

    Raises:
        UserError: an unknown benchmark.
    """
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    hints = get_type_hints(BENCHMARKS[name], include_extras=True)
    own = [f for f in fields(BENCHMARKS[name]) if f.init and f.kw_only]
    options: Any = {
        f.name: (Number if hints[f.name] is float else hints[f.name], f.default) for f in own
    }
    return create_model(name, __base__=Strict, **options)
