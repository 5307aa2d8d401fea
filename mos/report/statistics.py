"""Paired differences on the same examples, and intervals over seeds and examples together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from eval import BENCHMARKS
from mos.errors import UserError
from mos.records import read_records
from mos.report.paper import HELDOUT, Column

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """An estimate in points (or nats) with its 95 % interval.

    `low` and `high` are None where unknown; `decimals` are shown.
    """

    estimate: float
    low: float | None = None
    high: float | None = None
    decimals: int = 2

    def __str__(self) -> str:
        estimate, low, high = (
            None if value is None else f"{value:+.{self.decimals}f}"
            for value in (self.estimate, self.low, self.high)
        )
        return f"{estimate}" if low is None else f"{estimate} [{low}, {high}]"


def combined_interval(per_seed: Sequence[float], example_error: float | None = None) -> Interval:
    """Interval for a mean that varies over seeds and over the drawn examples; none for one seed.

    The variances of the two add up; the t quantile has Satterthwaite's degrees of freedom, with the
    examples' variance taken as known (n is in the hundreds and above). Of seeds alone, this is
    Student's t interval.

    Args:
        per_seed: the value at each seed, in points.
        example_error: standard error that comes from the choice of examples, in points; None leaves
            it out.
    """
    mean = float(np.mean(per_seed))
    n = len(per_seed)
    if n < 2:
        return Interval(mean)
    of_seeds = float(np.var(per_seed, ddof=1)) / n
    total = of_seeds + (example_error or 0.0) ** 2
    freedom = (n - 1) * (total / of_seeds) ** 2 if of_seeds else math.inf
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)


# Per-example differences of one benchmark: an array of shape (examples, metrics + 1) for each group
# that its metric averages. They are in the unit of the metric times the example's weight, which
# stands in the last column.
Strata = Sequence[np.ndarray]


def example_error(strata: Sequence[Strata]) -> float:
    """Standard error that comes from the choice of examples: of the mean over all metrics of all
    benchmarks.

    Examples are drawn within groups; the metrics of one benchmark (TyDiQA's F1 and EM) share
    theirs. To first order in the weights, whose sum is drawn too.
    """
    metrics = sum(own[0].shape[1] - 1 for own in strata)
    variance = 0.0
    for own in strata:
        for group in own:
            values, weight = group[:, :-1], group[:, -1:]
            mean = values.sum(axis=0) / weight.sum()
            moved = (values - mean * weight).sum(axis=1) / weight.sum()
            variance += float((moved**2).sum()) / (len(own) * metrics) ** 2
    return math.sqrt(variance)


def scores_of(folder: str | Path, columns: Sequence[Column]) -> pd.DataFrame | None:
    """The examples of a run's benchmark; None where it kept no records.

    Args:
        columns: metrics of one benchmark.

    Returns:
        By id: a column a metric, in its unit and times `weight`; `weight`, the number of trained
        tokens of a loss, else 1; `group`, in which examples are averaged first; `prompt`, its hash.

    Raises:
        UserError: damaged records, or a record without one of the metrics.
    """
    benchmark = columns[0].benchmark
    place = Path(folder) / "eval" / benchmark
    if not (place / "records.jsonl").is_file():
        return None
    loss = HELDOUT.key in [column.key for column in columns]
    names = ["nll"] if loss else [column.metric for column in columns]
    known = BENCHMARKS.get(benchmark)
    rows = {}
    for record in read_records(place):
        try:
            values = [record.scores[name] * (1 if loss else 100) for name in names]
            weight = record.scores["tokens"] if loss else 1.0
        except KeyError as error:
            raise UserError(f"{place}: the record of {record.id} has no {error}.") from None
        group = known.group_of(record.id) if known else ""
        rows[record.id] = (*values, weight, group, record.prompt_sha256 or "")
    header = [*(column.name for column in columns), "weight", "group", "prompt"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=header)


def paired_strata(first: Sequence[pd.DataFrame], second: Sequence[pd.DataFrame]) -> Strata | None:
    """Differences first - second per example, averaged over seeds.

    Args:
        first, second: what `scores_of` gives, one a seed, in the same order of seeds.

    Returns:
        None where the two were not asked the same prompts.
    """
    asked = ["weight", "group", "prompt"]
    reference = first[0][asked].sort_index()
    if not all(table[asked].sort_index().equals(reference) for table in (*first, *second)):
        return None
    one, two = (
        pd.concat([table.drop(columns=asked) for table in tables]).groupby(level=0).mean()
        for tables in (first, second)
    )
    weighted = (one - two).join(reference[["weight", "group"]])
    groups = weighted.groupby("group", sort=False)
    return [group.drop(columns="group").to_numpy(dtype=float) for _, group in groups]
