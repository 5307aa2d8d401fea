"""Any other table: rows, columns and filters by dotted keys of results.json or config.yaml."""

from __future__ import annotations

import math
import operator
import re
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from mos.errors import UserError
from mos.report import paper
from mos.report.results import Result
from mos.report.sheets import MISSING, Sheet, Text, points

_OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "=": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
    "~": lambda value, part: str(part).lower() in str(value).lower(),
}
_CONDITION = re.compile(r"\s*([\w.@-]+)\s*(!=|<=|>=|=|<|>|~)\s*(.*?)\s*$")
_NEVER_MIXED = ("scale", "model", "experiment")


def parse_filter(given: str | Mapping[str, Any] | Sequence[str] | None) -> Callable[[Result], bool]:
    """A predicate from conditions that must all hold.

    Args:
        given: "method.rank>=16, method.label=MoS" (also !=, <, <=, >, ~ for "contains"), a list of
            such conditions, or a mapping from key to a value or a list of allowed values.

    Raises:
        UserError: a condition without operator.
    """
    if given is None:
        return lambda result: True
    conditions: list[Callable[[Result], bool]] = []
    if isinstance(given, Mapping):
        for key, value in given.items():
            allowed = {str(v) for v in (value if isinstance(value, (list, tuple)) else [value])}
            conditions.append(partial(_is_one_of, str(key), allowed))
    else:
        texts = given.split(",") if isinstance(given, str) else given
        conditions = [_condition(text) for text in texts if str(text).strip()]
    return lambda result: all(condition(result) for condition in conditions)


def _is_one_of(key: str, allowed: set[str], result: Result) -> bool:
    return str(result.lookup(key)) in allowed


def _condition(text: str) -> Callable[[Result], bool]:
    match = _CONDITION.match(text)
    if not match:
        raise UserError(
            f"filter: {text!r} is not a condition; expected key, operator and value, as in "
            "method.rank>=16 (operators: " + " ".join(_OPERATORS) + ")."
        )
    key, symbol, wanted = match.groups()

    def holds(result: Result) -> bool:
        value = result.lookup(key)
        number = _number(wanted)
        if isinstance(value, (int, float)) and not isinstance(value, bool) and number is not None:
            return _OPERATORS[symbol](value, number)
        if symbol in ("<", "<=", ">", ">="):
            return False
        return _OPERATORS[symbol](_shown(value), wanted)

    return holds


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(value: Any) -> str:
    if value is None:
        return MISSING
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_list(given: str | Sequence[str] | None) -> list[str]:
    """ "a,b" or a list as a list of keys."""
    if given is None:
        return []
    items = given.split(",") if isinstance(given, str) else given
    return [str(item).strip() for item in items if str(item).strip()]


def grouped_sheet(
    results: Sequence[Result],
    rows: Sequence[str],
    columns: Sequence[str] = (),
    value: str | None = None,
) -> Sheet:
    """Mean, standard deviation and n of runs, grouped by dotted keys.

    Scale, model and experiment are never mixed in a cell: where they vary and are not asked for,
    they are added to the rows.

    Args:
        rows: keys whose values make the rows.
        columns: keys whose values make the columns; none: one column a metric.
        value: what is averaged with `columns`: "benchmark.metric", a key such as train.train_loss,
            or None for the mean of a run's own metric columns.

    Raises:
        UserError: a key that no run has.
    """
    for key in (*rows, *columns):
        if all(result.lookup(key) is None for result in results):
            raise UserError(
                f"{key}: none of the {len(results)} runs has it. Keys are those of results.json "
                "(method.label, method.rank, method.config.r, seed, ...) or of config.yaml."
            )
    added = [
        key
        for key in _NEVER_MIXED
        if key not in (*rows, *columns) and len({result.lookup(key) for result in results}) > 1
    ]
    rows = [*added, *rows]
    cells: dict[tuple[str, ...], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for result in results:
        place = tuple(_shown(result.lookup(key)) for key in rows)
        if columns:
            found = _value(result, value)
            if found is not None:
                heading = ", ".join(_shown(result.lookup(key)) for key in columns)
                cells[place][heading].append(found)
        else:
            for column in paper.COLUMNS:
                if column.benchmark in result.metrics:
                    score = float(result.metrics[column.benchmark][column.metric])
                    cells[place][column.title.partition(" (")[0]].append(score)
    headings = sorted({h for row in cells.values() for h in row}, key=natural)
    if not columns:
        order = [column.title.partition(" (")[0] for column in paper.COLUMNS]
        headings = [h for h in order if h in headings]
    sheet_rows = [
        [*(Text(part) for part in place), *(Text(_summary(row.get(h, []))) for h in headings)]
        for place, row in sorted(cells.items(), key=lambda item: [natural(p) for p in item[0]])
    ]
    notes = ["Cells: mean ±standard deviation over runs (number of runs)."]
    if added:
        notes.append(f"Never mixed, so added to the rows: {', '.join(added)}.")
    by = f"{', '.join(rows)}{' x ' + ', '.join(columns) if columns else ''}"
    what = f": {value or 'average of a run'}" if columns else ""
    return Sheet(f"By {by}{what}", [*rows, *headings], sheet_rows, notes)


def run_average(result: Result) -> float | None:
    """Mean of a run's own metric columns, 0..100; None if it has none of the paper's."""
    values = [
        float(result.metrics[column.benchmark][column.metric])
        for column in paper.COLUMNS
        if column.benchmark in result.metrics
    ]
    return statistics.fmean(values) if values else None


def _value(result: Result, key: str | None) -> float | None:
    if key is None:
        return run_average(result)
    benchmark, _, metric = key.partition(".")
    found = result.metrics.get(benchmark, {}).get(metric)
    if found is None:
        found = result.lookup(key)
    return float(found) if isinstance(found, (int, float)) and math.isfinite(found) else None


def _summary(values: Sequence[float]) -> str:
    if not values:
        return MISSING
    deviation = f" ±{points(statistics.stdev(values))}" if len(values) > 1 else ""
    return f"{points(statistics.fmean(values))}{deviation} ({len(values)})"


def natural(text: str) -> tuple[int, float, str]:
    """Sort key: numbers by value before other texts."""
    number = _number(text)
    return (1, 0.0, text) if number is None else (0, number, text)
