"""Which results may stand in one table: of one scale, and all whole or all cut in the same way."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from mos.errors import UserError
from mos.report import paper
from mos.report.results import Problem, Result


def select(
    results: Iterable[Result],
    *,
    scale: str = "auto",
    partial: bool = False,
    where: Callable[[Result], bool] | None = None,
) -> tuple[list[Result], str, list[Problem]]:
    """Results of one scale, all whole (or, with `partial`, all cut in the same way).

    Returns:
        The results (with unusable benchmarks dropped), the scale, and what was left out.

    Raises:
        UserError: no result at a scale that was asked for.
    """
    problems: list[Problem] = []
    results = [result for result in results if where is None or where(result)]
    scales = Counter(result.scale for result in results)
    if scale == "auto":
        scale = (
            paper.SCALE
            if paper.SCALE in scales
            else max(scales, key=lambda name: scales[name], default="")
        )
    elif results and scale not in scales:
        raise UserError(f"select.scale={scale}: no such results; there are {_counted(scales)}.")
    for other, count in scales.items():
        if other != scale:
            reason = f"{count} run(s) at this scale; the tables hold scale {scale} only"
            problems.append(Problem(f"scale {other}", reason, "skipped"))
    chosen = [result for result in results if result.scale == scale]
    return _whole(chosen, partial, problems), scale, problems


def _whole(results: list[Result], partial: bool, problems: list[Problem]) -> list[Result]:
    """Results with only those benchmarks that were scored on the same, whole set of examples."""
    evaluated = [values for result in results for values in result.metrics.values()]
    cuts = Counter(cut for values in evaluated if (cut := cut_of(values)))
    wanted = max(cuts, key=lambda cut: cuts[cut], default=None) if partial else None
    largest: dict[str, int] = defaultdict(int)
    for result in results:
        for benchmark, values in result.metrics.items():
            if cut_of(values) == wanted:
                largest[benchmark] = max(largest[benchmark], values.get("n") or 0)
    kept = []
    for result in results:
        metrics = {}
        for benchmark, values in result.metrics.items():
            cut, count = cut_of(values), values.get("n")
            if cut != wanted:
                state = f"partial ({cut})" if cut else "whole, and these tables are of partial ones"
                reason = f"{benchmark} is {state}"
            elif count is not None and count != largest[benchmark]:
                reason = (
                    f"{benchmark} was scored on {count} examples, others on {largest[benchmark]}: "
                    "not the whole benchmark"
                )
            else:
                metrics[benchmark] = values
                continue
            problems.append(Problem(str(result.path), reason, "skipped"))
        if metrics:
            kept.append(replace(result, metrics=metrics))
    return kept


def cut_of(values: Mapping[str, Any]) -> str | None:
    """Why the metrics of a benchmark are not of all of it, or None."""
    return str(values["partial"]) if values.get("partial") else None


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none"
