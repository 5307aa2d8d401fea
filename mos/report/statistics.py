"""Paired tests on the same examples, and intervals over seeds and examples together."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import bdtr, stdtrit  # scipy.stats takes half a second to import

from eval import BENCHMARKS
from mos.errors import DataError
from mos.files import read_json
from mos.report.cells import HELDOUT

RESAMPLES = 2000
LEVEL = 0.95
# A recomputed metric may differ from the stored one by its rounding to two decimals.
AGREEMENT, AGREEMENT_NATS = 0.011, 1e-4


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


def combined_interval(
    per_seed: Sequence[float], example_error: float | None = None, level: float = LEVEL
) -> Interval:
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
    half = float(stdtrit(freedom, (1 + level) / 2)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided McNemar p-value for paired right/wrong answers (arrays of 0 and 1)."""
    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return min(1.0, 2 * float(bdtr(min(only_first, only_second), discordant, 0.5)))


@dataclass(frozen=True)
class Strata:
    """Per-example differences of one benchmark, grouped as its metric averages them.

    Attributes:
        differences: one array of shape (examples, metrics + 1) per group: differences, in the unit
            of the metric times the example's weight, and the weight in the last column.
    """

    differences: tuple[np.ndarray, ...]

    @property
    def mean(self) -> np.ndarray:
        """Unweighted mean over groups of the group means, (metrics,)."""
        sums = [group.sum(axis=0) for group in self.differences]
        return np.mean([total[:-1] / total[-1] for total in sums], axis=0)

    def resample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` bootstrap replicates of `mean`, (count, metrics)."""
        return np.mean([_bootstrap(group, count, rng) for group in self.differences], axis=0)


def _bootstrap(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Weighted means of `count` samples with replacement of the rows of `values`.

    Differences take few distinct values, so counts of these are drawn instead of rows: the same
    distribution for a fraction of the work.
    """
    distinct, frequency = np.unique(values, axis=0, return_counts=True)
    draws = rng.multinomial(len(values), frequency / len(values), size=count)
    sums = draws @ distinct
    return sums[:, :-1] / sums[:, -1:]


@dataclass(frozen=True)
class Bootstrap:
    """Paired bootstrap of an averaged difference: its interval, standard error and two-sided p."""

    interval: Interval
    error: float
    p: float


def paired_bootstrap(
    strata: Sequence[Strata],
    count: int = RESAMPLES,
    seed: int = 0,
    level: float = LEVEL,
    sign: int = 1,
) -> Bootstrap:
    """Bootstrap the mean over all metrics of all benchmarks, resampling examples within groups.

    The metrics of one benchmark (TyDiQA's F1 and EM) are resampled together. p is twice the share
    of replicates on the other side of zero, at least 1/count. With `sign` -1 (losses) the
    differences are second - first, so that more is better.
    """
    rng = np.random.default_rng(seed)
    drawn = np.concatenate([s.resample(count, rng) for s in strata], axis=1)
    replicates = sign * drawn.mean(axis=1)
    estimate = sign * float(np.concatenate([s.mean for s in strata]).mean())
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    other_side = min(np.mean(replicates <= 0), np.mean(replicates >= 0))
    return Bootstrap(
        Interval(estimate, float(low), float(high)),
        float(np.std(replicates, ddof=1)),
        float(min(1.0, max(2 * other_side, 1 / count))),
    )


@dataclass(frozen=True)
class Records:
    """Scores of one run's examples of one benchmark.

    Attributes:
        table: indexed by id: a column a metric (times the weight), `weight`, `group` and `prompt`
            (a hash of it).
        metrics: in the order of the columns.
    """

    table: pd.DataFrame
    metrics: tuple[str, ...]

    @property
    def asked(self) -> pd.DataFrame:
        """What has to be equal for two runs to be compared."""
        return self.table[["weight", "group", "prompt"]]


def read_records(folder: Path, benchmark: str, stored: Mapping[str, float]) -> Records | None:
    """Read `eval/<benchmark>/records.jsonl` of a run; None where there is none.

    A record has an `id` and `scores` of 0..1 by metric; for the held-out loss it has the summed
    negative log-likelihood `nll` and the trained `tokens`, which are its weight.

    Args:
        stored: the metrics to read with their values in results.json.

    Raises:
        DataError: a broken line, a missing score, other records than were evaluated, or such that
            do not give the stored metrics.
    """
    file = folder / "eval" / benchmark / "records.jsonl"
    if not file.is_file():
        return None
    loss = benchmark == HELDOUT.benchmark and HELDOUT.metric in stored
    names = {HELDOUT.metric: "nll"} if loss else {metric: metric for metric in stored}
    content = file.read_bytes()
    _check_hash(file, content)
    rows: dict[str, tuple[Any, ...]] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            record = json.loads(line)
            scores, identity = record["scores"], str(record["id"])
            values = tuple(float(scores[name]) for name in names.values())
            weight = float(scores["tokens"]) if loss else 1.0
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(file, number, f"not a whole record ({error!r}).") from None
        prompt = zlib.crc32(str(record.get("prompt_sha256", "")).encode())
        rows[identity] = (*values, weight, prompt)
    metrics = tuple(stored)
    table = pd.DataFrame.from_dict(rows, orient="index", columns=[*metrics, "weight", "prompt"])
    if not loss:
        table[list(metrics)] *= 100
    known = BENCHMARKS.get(benchmark)
    table["group"] = [known.group_of(identity) if known else "" for identity in table.index]
    records = Records(table, metrics)
    mean = _strata(table, metrics).mean if rows else np.array([])
    wanted = np.array(list(stored.values()))
    tolerance = AGREEMENT_NATS if loss else AGREEMENT
    if len(mean) != len(wanted) or np.any(np.abs(mean - wanted) > tolerance):
        shown = ", ".join(f"{metric} {value:.2f}" for metric, value in stored.items())
        raise DataError(file, None, f"its scores do not give the stored {shown}: edited or cut.")
    return records


def _check_hash(file: Path, content: bytes) -> None:
    """Refuse records that are not those that the metrics beside them were made of."""
    try:
        expected = read_json(file.with_name("metrics.json")).get("records_sha256")
    except (FileNotFoundError, AttributeError):
        return
    if expected is not None and hashlib.sha256(content).hexdigest() != expected:
        raise DataError(file, None, "not the records that metrics.json was made of: edited or cut.")


def _strata(table: pd.DataFrame, metrics: Sequence[str]) -> Strata:
    groups = table.groupby("group", sort=False)[[*metrics, "weight"]]
    return Strata(tuple(group.to_numpy(dtype=float) for _, group in groups))


def paired_strata(first: Sequence[Records], second: Sequence[Records]) -> Strata | None:
    """Differences first - second per example, averaged over seeds.

    Args:
        first, second: one entry per seed, in the same order of seeds.

    Returns:
        None where the two were not asked the same prompts.
    """
    reference = first[0].asked.sort_index()
    if not all(r.asked.sort_index().equals(reference) for r in (*first, *second)):
        return None
    metrics = list(first[0].metrics)
    tables = [pd.concat([r.table[metrics] for r in records]) for records in (first, second)]
    one, two = (table.groupby(level=0).mean() for table in tables)
    return _strata((one - two).join(reference), metrics)
