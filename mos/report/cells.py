"""What stands in one cell of a table: a metric's mean over seeds, and how figures are written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

import pandas as pd

from eval import BENCHMARKS

MISSING = "–"


@dataclass(frozen=True)
class Column:
    """A metric as a column of tables.

    Attributes:
        title: what tables call it.
        lower_is_better: as for a loss.
        experiment: results of this one alone; None: of whatever trained for the benchmark.
    """

    benchmark: str
    metric: str
    title: str
    lower_is_better: bool = False
    experiment: str | None = None

    @property
    def key(self) -> str:
        """The name of the results' column, and what `value=` and `columns=` take."""
        return f"{self.benchmark}.{self.metric}"

    @property
    def short(self) -> str:
        """The title without what stands in parentheses."""
        return self.title.partition(" (")[0]


HELDOUT = Column("heldout", "loss", "Held-out loss", lower_is_better=True)
HELDOUT_EXACT = Column("heldout", "exact_match", "Held-out EM")


def column(benchmark: str, metric: str) -> Column:
    """The column of any metric, also of a benchmark that this installation does not know."""
    known = {c.key: c for c in (HELDOUT_EXACT, *benchmark_columns(benchmark))}
    unknown = Column(benchmark, metric, f"{benchmark} {metric}")
    return known.get(unknown.key, unknown)


def benchmark_columns(benchmark: str) -> list[Column]:
    """The columns without which results of a known benchmark are not whole."""
    if benchmark == HELDOUT.benchmark:
        return [HELDOUT]
    known = BENCHMARKS[benchmark].metrics if benchmark in BENCHMARKS else ()
    return [Column(benchmark, metric.name, metric.title) for metric in known]


@dataclass(frozen=True)
class Cell:
    """A mean over seeds.

    Attributes:
        std: sample standard deviation over seeds; None for a single one.
        n: number of seeds.
        per_seed: the value at each seed.
    """

    mean: float
    std: float | None
    n: int
    per_seed: Mapping[Any, float]

    @classmethod
    def of(cls, values: pd.Series) -> Cell | None:
        """From values indexed by seed; None if there are none."""
        values = values.dropna()
        if values.empty:
            return None
        std = float(values.std()) if len(values) > 1 else None
        return cls(float(values.mean()), std, len(values), values.to_dict())

    @classmethod
    def average(cls, scores: pd.DataFrame) -> Cell | None:
        """Unweighted mean over columns (seeds x columns), None while one of them is empty.

        `per_seed` and `std` are of the seeds that all columns share; `n` is the smallest count.
        """
        if scores.shape[1] == 0 or scores.isna().all().any():
            return None
        shared = scores.dropna().mean(axis=1)
        std = float(shared.std()) if len(shared) > 1 else None
        return cls(float(scores.mean().mean()), std, int(scores.count().min()), shared.to_dict())


def points(value: float, sign: bool = False) -> str:
    """Two decimals, halves rounded up, as the paper rounds its averages."""
    rounded = Decimal(repr(round(value, 9))).quantize(Decimal("0.01"), ROUND_HALF_UP)
    if not rounded:
        rounded = abs(rounded)
    return f"{rounded:+}" if sign else f"{rounded}"


def shown(value: float, column: Column | None = None) -> str:
    """A value of a column: points with two decimals, losses with four."""
    return f"{value:.4f}" if column and column.lower_is_better else points(value)


def millions(parameters: int) -> str:
    return f"{points(parameters / 1e6)}M" if parameters else "-"


def mean_and_spread(cell: Cell | None, column: Column | None = None) -> str:
    """ "46.09 ±0.12 (2)": mean, standard deviation and number of seeds; "–" for None."""
    if cell is None:
        return MISSING
    deviation = "" if cell.std is None else f" ±{shown(cell.std, column)}"
    return f"{shown(cell.mean, column)}{deviation} ({cell.n})"
