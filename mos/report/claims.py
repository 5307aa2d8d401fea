"""The paper's claims, each with a verdict: held, not held, or undecided at n seeds.

A verdict rests on the difference between two rows, with a 95 % interval over seeds and, where the
runs kept their records, over examples (`statistics.combined_interval`). With one seed nothing is
known of the spread over seeds, so the verdict is undecided, whatever the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np

from mos.errors import DataError
from mos.report import paper
from mos.report.filled import Filled, Line
from mos.report.results import Problem, Result
from mos.report.statistics import (
    Bootstrap,
    Interval,
    Records,
    Strata,
    combined_interval,
    mcnemar,
    paired_bootstrap,
    paired_strata,
    read_records,
)

HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
# "Matches" means: not worse by this many points on average.
MATCH_MARGIN = 0.5

RowKey = tuple[str, str]

LORA_5M, LORA_20M, LORA_160M = ("LoRA", "2"), ("LoRA", "8"), ("LoRA", "64")
TIED, PROLORA = ("Tied LoRA", "280"), ("PRoLoRA", "4/8")
MOS_5M, MOS_20M = ("MoS", "4/8"), ("MoS", "16/32")
PURE, SCALED = ("Pure Sharing", "64"), ("+ Random Scaling", "64")
SUBSET = ("+ Subset Selection", "64")
NO_SP, NO_VS, NO_PD = (("MoS -sp", "16/32"), ("MoS -vs", "16/32"), ("MoS -pd", "16/32"))


@dataclass(frozen=True)
class Claim:
    """`first` exceeds each of `others` by over `threshold` points, on `column` or the average."""

    table: str
    text: str
    first: RowKey
    others: tuple[RowKey, ...]
    threshold: float = 0.0
    column: str | None = None


CLAIMS = (
    Claim("table1", "Pure sharing loses to LoRA at the same budget", LORA_5M, (PURE,)),
    Claim("table1", "Random scaling improves pure sharing", SCALED, (PURE,)),
    Claim("table1", "Subset selection improves pure sharing", SUBSET, (PURE,)),
    Claim("table1", "Subset selection beats LoRA at the same budget", SUBSET, (LORA_5M,)),
    Claim("table2", "MoS beats LoRA at 5.00M", MOS_5M, (LORA_5M,)),
    Claim("table2", "MoS beats every method at 5.00M", MOS_5M, (LORA_5M, TIED, PROLORA)),
    *(
        Claim("table2", f"MoS beats LoRA at 5.00M on {c.title}", MOS_5M, (LORA_5M,), 0.0, c.key)
        for c in paper.TABLE1.columns
    ),
    Claim("table2", "MoS beats LoRA at 19.99M", MOS_20M, (LORA_20M,)),
    Claim(
        "table2",
        f"MoS at 19.99M matches LoRA at 159.91M, 8x the parameters (within {MATCH_MARGIN} points)",
        MOS_20M,
        (LORA_160M,),
        -MATCH_MARGIN,
    ),
    Claim("table2", "Pair dissociation is worth more than one point", MOS_20M, (NO_PD,), 1.0),
    Claim("table2", "Shard privatization is worth more than one point", MOS_20M, (NO_SP,), 1.0),
    Claim("table2", "Vector sharding helps (0.41 points in the paper)", MOS_20M, (NO_VS,)),
    Claim("table3", "MoS beats LoRA at the same budget on 13B", MOS_5M, (LORA_5M,)),
    Claim("table3", "MoS beats PRoLoRA at the same budget on 13B", MOS_5M, (PROLORA,)),
    *(
        Claim(
            "table3", f"MoS beats LoRA and PRoLoRA on 13B on {c.title}",
            MOS_5M, (LORA_5M, PROLORA), 0.0, c.key,
        )
        for c in paper.TABLE3.columns
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """Two rows on the same columns: difference first - other, in points.

    Attributes:
        seeds: seeds that both rows have in all columns.
        interval: over seeds, and over examples where `examples`.
        examples: the paired bootstrap over examples, if records exist for all columns.
        mcnemar: "benchmark.metric seed k" -> exact p, for right/wrong metrics with records.
    """

    first: RowKey
    other: RowKey
    seeds: tuple[int, ...]
    interval: Interval
    examples: Bootstrap | None = None
    mcnemar: Mapping[str, float] = field(default_factory=dict)

    def verdict(self, threshold: float) -> str:
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return UNDECIDED
        if low > threshold:
            return HELD
        return NOT_HELD if high <= threshold else UNDECIDED


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it; `reason` explains "undecided"."""

    claim: Claim
    verdict: str
    seeds: int
    comparisons: tuple[Comparison, ...]
    reason: str = ""

    def __str__(self) -> str:
        at = f" at {self.seeds} seed{'s' * (self.seeds != 1)}" if self.seeds else ""
        shown = "; ".join(
            f"{_name(c.first)} - {_name(c.other)} {c.interval}" for c in self.comparisons
        )
        detail = "; ".join(part for part in (shown, self.reason) if part)
        return f"{self.claim.text}: {self.verdict}{at} ({detail})"


class Comparer:
    """Compares rows of a filled table; reads each run's records once."""

    def __init__(self, filled: Filled) -> None:
        self.lines = {line.row.key: line for line in filled.lines}
        self.runs: dict[Path, Result] = {
            run.path: run for line in filled.lines if line.group for run in line.group.runs
        }
        self.columns = filled.table.columns
        self.problems: list[Problem] = []
        self._records = cache(self._read_records)
        self.compare = cache(self._compare)

    def _compare(self, first: RowKey, other: RowKey, column: str | None = None) -> Comparison | str:
        """Compare two rows on the average, or on one column; a text where that is impossible."""
        columns = [c for c in self.columns if column in (None, c.key)]
        one, two = self.lines[first], self.lines[other]
        for line in (one, two):
            missing = [c.title for c in columns if line.cell(c) is None]
            if missing:
                whole = len(missing) == len(columns)
                return (
                    f"{_name(line.row.key)} {'not run' if whole else 'lacks ' + ', '.join(missing)}"
                )
        seeds = sorted(
            set.intersection(*(set(line[c].values) for line in (one, two) for c in columns))
        )
        if not seeds:
            return f"{_name(first)} and {_name(other)} share no seed"
        per_seed = [
            float(np.mean([one[c].values[s] - two[c].values[s] for c in columns])) for s in seeds
        ]
        strata, tests = self._paired(one, two, columns, seeds)
        examples = paired_bootstrap(strata) if strata else None
        interval = combined_interval(per_seed, examples.error if examples else None)
        return Comparison(first, other, tuple(seeds), interval, examples, tests)

    def _paired(
        self, one: Line, two: Line, columns: Sequence[paper.Column], seeds: Sequence[int]
    ) -> tuple[list[Strata], dict[str, float]]:
        """Differences per example of all benchmarks ([] if any lacks records), and McNemar's p."""
        strata, tests, complete = [], {}, True
        for benchmark in dict.fromkeys(c.benchmark for c in columns):
            metrics = tuple(c.metric for c in columns if c.benchmark == benchmark)
            key = next(c for c in columns if c.benchmark == benchmark)
            records = []
            for line in (one, two):
                runs = {run.seed: run for run in line[key].runs}
                found = [
                    self._records(runs[s].path, benchmark, metrics) for s in seeds if s in runs
                ]
                records.append([r for r in found if r is not None])
            first, second = records
            if len(first) < len(seeds) or len(second) < len(seeds):
                complete = False
                continue
            paired = paired_strata(first, second)
            if paired is None:
                where = f"{_name(one.row.key)} and {_name(two.row.key)}"
                reason = f"{benchmark} was asked in different prompts: no paired test"
                self.problems.append(Problem(where, reason))
                complete = False
                continue
            strata.append(paired)
            for index, metric in enumerate(metrics):
                for seed, a, b in zip(seeds, first, second, strict=True):
                    scores = [np.array([r.scores[i][index] for i in a.scores]) for r in (a, b)]
                    if all(np.isin(s, (0, 1)).all() for s in scores):
                        tests[f"{benchmark}.{metric} seed {seed}"] = mcnemar(*scores)
        return (strata if complete else []), tests

    def _read_records(
        self, folder: Path, benchmark: str, metrics: tuple[str, ...]
    ) -> Records | None:
        try:
            return read_records(folder, benchmark, metrics, self.runs[folder].metrics[benchmark])
        except DataError as error:
            self.problems.append(Problem(str(folder), str(error), "refused"))
            return None


def judge(filled: Sequence[Filled]) -> tuple[list[Verdict], list[Problem]]:
    """A verdict for every claim about the given tables, in the paper's order."""
    comparers = {table.table.name: Comparer(table) for table in filled}
    verdicts = [
        _judge(claim, comparers[claim.table]) for claim in CLAIMS if claim.table in comparers
    ]
    problems = [problem for comparer in comparers.values() for problem in comparer.problems]
    return verdicts, list(dict.fromkeys(problems))


def _judge(claim: Claim, comparer: Comparer) -> Verdict:
    found = [comparer.compare(claim.first, other, claim.column) for other in claim.others]
    comparisons = tuple(c for c in found if isinstance(c, Comparison))
    missing = [c for c in found if isinstance(c, str)]
    seeds = min((len(c.seeds) for c in comparisons), default=0)
    each = [c.verdict(claim.threshold) for c in comparisons]
    if NOT_HELD in each:
        return Verdict(claim, NOT_HELD, seeds, comparisons, "; ".join(missing))
    if missing or UNDECIDED in each:
        reasons = list(missing)
        if any(len(c.seeds) == 1 for c in comparisons):
            reasons.append("the spread over seeds is unknown")
        return Verdict(claim, UNDECIDED, seeds, comparisons, "; ".join(reasons))
    return Verdict(claim, HELD, seeds, comparisons)


def _name(key: RowKey) -> str:
    label, rank = key
    return label if rank == "-" else f"{label} {rank}"
