"""Paired tests on the same examples, and intervals over seeds and examples together."""

from __future__ import annotations

import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from mos.errors import DataError

RESAMPLES = 2000
LEVEL = 0.95
# A recomputed metric may differ from the stored one by its rounding to two decimals.
AGREEMENT = 0.011

# Metrics that are means of groups' means: the group of an example, from its id.
GROUP_OF: Mapping[str, Callable[[str], str]] = {
    "bbh": lambda identity: identity.rsplit("/", 1)[0],
    "tydiqa": lambda identity: identity.split("-", 1)[0],
}


@dataclass(frozen=True)
class Interval:
    """An estimate in points with its 95 % interval; `low` and `high` are None where unknown."""

    estimate: float
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.estimate:+.2f}"
        return f"{self.estimate:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def seed_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """Mean of per-seed values with Student's t interval; no interval for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Interval(mean)
    half = float(
        stats.t.ppf((1 + level) / 2, len(values) - 1)
        * np.std(values, ddof=1)
        / math.sqrt(len(values))
    )
    return Interval(mean, mean - half, mean + half)


def combined_interval(
    per_seed: Sequence[float], example_error: float | None, level: float = LEVEL
) -> Interval:
    """Interval for a mean that varies over seeds and over the drawn examples.

    The variances of the two add up; the t quantile has Satterthwaite's degrees of freedom, with the
    examples' variance taken as known (n is in the hundreds and above).

    Args:
        per_seed: the value at each seed, in points.
        example_error: standard error that comes from the choice of examples, in points; None leaves
            it out (then this is `seed_interval`).
    """
    mean = float(np.mean(per_seed))
    n = len(per_seed)
    if n < 2 or example_error is None:
        return seed_interval(per_seed, level)
    of_seeds = float(np.var(per_seed, ddof=1)) / n
    total = of_seeds + example_error**2
    freedom = (n - 1) * (total / of_seeds) ** 2 if of_seeds else math.inf
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * math.sqrt(total)
    return Interval(mean, mean - half, mean + half)


def mcnemar(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided McNemar p-value for paired right/wrong answers (arrays of 0 and 1)."""
    only_first = int(np.sum((first == 1) & (second == 0)))
    only_second = int(np.sum((first == 0) & (second == 1)))
    discordant = only_first + only_second
    if not discordant:
        return 1.0
    return float(stats.binomtest(only_first, discordant, 0.5).pvalue)


@dataclass(frozen=True)
class Strata:
    """Per-example differences of one benchmark, grouped as its metric averages them.

    Attributes:
        differences: one array of shape (examples, metrics) per group, in points.
    """

    differences: tuple[np.ndarray, ...]

    @property
    def mean(self) -> np.ndarray:
        """Unweighted mean over groups of the group means, (metrics,)."""
        return np.mean([group.mean(axis=0) for group in self.differences], axis=0)

    def resample(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """`count` bootstrap replicates of `mean`, (count, metrics)."""
        total = np.zeros((count, self.differences[0].shape[1]))
        for group in self.differences:
            total += _bootstrap_means(group, count, rng)
        return total / len(self.differences)


def _bootstrap_means(values: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Means of `count` samples with replacement of the rows of `values`, (count, metrics).

    Differences take few distinct values, so counts of these are drawn instead of rows: the same
    distribution for a fraction of the work.
    """
    distinct, frequency = np.unique(values, axis=0, return_counts=True)
    draws = rng.multinomial(len(values), frequency / len(values), size=count)
    return draws @ distinct / len(values)


@dataclass(frozen=True)
class Bootstrap:
    """Paired bootstrap of an averaged difference: its interval, standard error and two-sided p."""

    interval: Interval
    error: float
    p: float


def paired_bootstrap(
    strata: Sequence[Strata], count: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> Bootstrap:
    """Bootstrap the mean over all metrics of all benchmarks, resampling examples within groups.

    The metrics of one benchmark (TyDiQA's F1 and EM) are resampled together. p is twice the share
    of replicates on the other side of zero, at least 1/count.
    """
    rng = np.random.default_rng(seed)
    replicates = np.concatenate([s.resample(count, rng) for s in strata], axis=1).mean(axis=1)
    estimate = float(np.concatenate([s.mean for s in strata]).mean())
    low, high = np.quantile(replicates, [(1 - level) / 2, (1 + level) / 2])
    other_side = min(np.mean(replicates <= 0), np.mean(replicates >= 0))
    return Bootstrap(
        Interval(estimate, float(low), float(high)),
        float(np.std(replicates, ddof=1)),
        float(min(1.0, max(2 * other_side, 1 / count))),
    )


@dataclass(frozen=True)
class Records:
    """Scores of one run's examples of one benchmark: id -> (prompt checksum, scores 0..1)."""

    benchmark: str
    prompts: Mapping[str, int]
    scores: Mapping[str, tuple[float, ...]]
    groups: Mapping[str, str]


def read_records(
    folder: Path, benchmark: str, metrics: Sequence[str], stored: Mapping[str, float]
) -> Records | None:
    """Read `eval/<benchmark>/records.jsonl` of a run; None where there is none.

    Raises:
        DataError: a broken line, a missing score, or records that do not give the stored metric.
    """
    file = folder / "eval" / benchmark / "records.jsonl"
    if not file.is_file():
        return None
    prompts: dict[str, int] = {}
    scores: dict[str, tuple[float, ...]] = {}
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                identity = str(record["id"])
                scores[identity] = tuple(float(record["scores"][metric]) for metric in metrics)
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(file, number, f"not a whole record ({error!r}).") from None
            prompts[identity] = zlib.crc32(str(record.get("prompt_sha256", "")).encode())
    group_of = GROUP_OF.get(benchmark, lambda identity: "")
    records = Records(
        benchmark, prompts, scores, {identity: group_of(identity) for identity in scores}
    )
    mean = _strata(records, scores).mean if scores else ()
    if len(mean) != len(metrics) or any(
        abs(value - stored[metric]) > AGREEMENT for value, metric in zip(mean, metrics, strict=True)
    ):
        shown = ", ".join(f"{m} {stored[m]:.2f}" for m in metrics)
        raise DataError(file, None, f"its scores do not give the stored {shown}: edited or cut.")
    return records


def _strata(records: Records, values: Mapping[str, Sequence[float]]) -> Strata:
    grouped: dict[str, list[Sequence[float]]] = defaultdict(list)
    for identity, value in values.items():
        grouped[records.groups[identity]].append(value)
    return Strata(tuple(100 * np.asarray(group, dtype=float) for group in grouped.values()))


def paired_strata(first: Sequence[Records], second: Sequence[Records]) -> Strata | None:
    """Differences first - second per example, averaged over seeds.

    Args:
        first, second: one entry per seed, in the same order of seeds.

    Returns:
        None where the two were not asked the same prompts.
    """
    reference = first[0]
    if any(records.prompts != reference.prompts for records in (*first, *second)):
        return None
    differences = {
        identity: tuple(
            np.mean([r.scores[identity] for r in first], axis=0)
            - np.mean([r.scores[identity] for r in second], axis=0)
        )
        for identity in reference.scores
    }
    return _strata(reference, differences)
