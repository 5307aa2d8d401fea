"""The paper's claims, each with a verdict: held, not held, or undecided at n seeds.

A verdict rests on the difference between two rows, with a 95 % interval over seeds and, where the
runs kept their records, over examples (`statistics.combined_interval`). With one seed nothing is
known of the spread over seeds, so the verdict is undecided, whatever the difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np

from mos.errors import DataError
from mos.report import paper
from mos.report.cells import Column, millions
from mos.report.results import REFUSED, Problem
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
from mos.report.tables import Filled, Line

HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
# "Matches" means: not worse by this many points on average, or by this many nats of a loss.
MATCH_MARGIN, MATCH_NATS = 0.5, 0.01

RowKey = tuple[str, str]

LORA_5M, LORA_20M, LORA_160M = ("LoRA", "2"), ("LoRA", "8"), ("LoRA", "64")
TIED, PROLORA = ("Tied LoRA", "280"), ("PRoLoRA", "4/8")
MOS_5M, MOS_20M = ("MoS", "4/8"), ("MoS", "16/32")
PURE, SCALED = ("Pure Sharing", "64"), ("+ Random Scaling", "64")
SUBSET = ("+ Subset Selection", "64")
NO_SP, NO_VS, NO_PD = (("MoS -sp", "16/32"), ("MoS -vs", "16/32"), ("MoS -pd", "16/32"))


@dataclass(frozen=True)
class Claim:
    """`first` exceeds each of `others` by over `threshold` points, on `column` or the average.

    `text` may name the rows' budgets, {first} and {other}, their {ratio}, and the {margin} of a
    match. On a loss, less is better and a gain of any size counts.
    """

    table: str
    text: str
    first: RowKey
    others: tuple[RowKey, ...]
    threshold: float = 0.0
    column: str | None = None

    def margin(self, loss: bool) -> float:
        """The threshold in points or, for a loss, in nats."""
        if not loss:
            return self.threshold
        return -MATCH_NATS if self.threshold < 0 else 0.0


CLAIMS = (
    Claim("table1", "Pure sharing loses to LoRA at the same budget", LORA_5M, (PURE,)),
    Claim("table1", "Random scaling improves pure sharing", SCALED, (PURE,)),
    Claim("table1", "Subset selection improves pure sharing", SUBSET, (PURE,)),
    Claim("table1", "Subset selection beats LoRA at the same budget", SUBSET, (LORA_5M,)),
    Claim("table2", "MoS beats LoRA at {first}", MOS_5M, (LORA_5M,)),
    Claim("table2", "MoS beats every method at {first}", MOS_5M, (LORA_5M, TIED, PROLORA)),
    *(
        Claim("table2", f"MoS beats LoRA at {{first}} on {c.title}", MOS_5M, (LORA_5M,), 0.0, c.key)
        for c in paper.TABLE1.columns
    ),
    Claim("table2", "MoS beats LoRA at {first}", MOS_20M, (LORA_20M,)),
    Claim(
        "table2",
        "MoS at {first} matches LoRA at {other}, {ratio}x the parameters (within {margin})",
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
    """A claim and what the runs say of it.

    Attributes:
        text: the claim with the budgets that were measured.
        reason: explains "undecided".
    """

    claim: Claim
    text: str
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
        return f"{self.text}: {self.verdict}{at} ({detail})"


class Comparer:
    """Compares rows of a filled table; reads each run's records once."""

    def __init__(self, filled: Filled, problems: list[Problem]) -> None:
        self.lines = {line.row.key: line for line in filled.lines}
        self.columns = filled.table.columns
        self.loss = any(column.lower_is_better for column in self.columns)
        self.problems = problems
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
        values = [
            {c: cell.per_seed for c in columns if (cell := line.cell(c))} for line in (one, two)
        ]
        seeds = sorted(set.intersection(*(set(v) for row in values for v in row.values())))
        if not seeds:
            return f"{_name(first)} and {_name(other)} share no seed"
        sign = -1 if self.loss else 1
        per_seed = [
            sign * float(np.mean([values[0][c][s] - values[1][c][s] for c in columns]))
            for s in seeds
        ]
        strata, tests = self._paired(one, two, columns, seeds)
        examples = paired_bootstrap(strata, sign=sign) if strata else None
        interval = combined_interval(per_seed, examples.error if examples else None)
        if self.loss:
            interval = replace(interval, decimals=4)
        return Comparison(first, other, tuple(seeds), interval, examples, tests)

    def _paired(
        self, one: Line, two: Line, columns: Sequence[Column], seeds: Sequence[int]
    ) -> tuple[list[Strata], dict[str, float]]:
        """Differences per example of all benchmarks ([] if any lacks records), and McNemar's p."""
        strata, tests, complete = [], {}, True
        parts: dict[tuple[str, str | None], list[Column]] = {}
        for c in columns:
            parts.setdefault((c.benchmark, c.experiment), []).append(c)
        for (benchmark, _), members in parts.items():
            first, second = (self._records_of(line, members, seeds) for line in (one, two))
            if not first or not second:
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
            for metric in first[0].metrics:
                for seed, a, b in zip(seeds, first, second, strict=True):
                    scores = a.table[[metric]].join(b.table[[metric]], rsuffix=" other") / 100
                    if not self.loss and scores.isin((0, 1)).all(axis=None):
                        tests[f"{benchmark}.{metric} seed {seed}"] = mcnemar(*scores.to_numpy().T)
        return (strata if complete else []), tests

    def _records_of(
        self, line: Line, columns: Sequence[Column], seeds: Sequence[int]
    ) -> list[Records]:
        """Each seed's records of one benchmark; [] if one of them has none."""
        if line.group is None:
            return []
        folders = line.group.folders_of(columns[0])
        cells = {c.metric: line.cell(c) for c in columns}
        found = []
        for seed in seeds:
            stored = tuple((m, cell.per_seed[seed]) for m, cell in cells.items() if cell)
            found.append(self._records(Path(folders[seed]), columns[0].benchmark, stored))
        whole = [records for records in found if records is not None]
        return whole if len(whole) == len(seeds) else []

    def _read_records(
        self, folder: Path, benchmark: str, stored: tuple[tuple[str, float], ...]
    ) -> Records | None:
        try:
            return read_records(folder, benchmark, dict(stored))
        except DataError as error:
            self.problems.append(Problem(str(folder), str(error), REFUSED))
            return None


def judge(filled: Sequence[Filled], problems: list[Problem]) -> list[Verdict]:
    """A verdict for every claim about the given tables, in the paper's order."""
    comparers = {table.table.name: Comparer(table, problems) for table in filled}
    verdicts = []
    for claim in CLAIMS:
        comparer = comparers.get(claim.table)
        known = {column.key for column in comparer.columns} if comparer else set()
        if comparer and (claim.column is None or claim.column in known):
            verdicts.append(_judge(claim, comparer))
    return verdicts


def _judge(claim: Claim, comparer: Comparer) -> Verdict:
    found = [comparer.compare(claim.first, other, claim.column) for other in claim.others]
    comparisons = tuple(c for c in found if isinstance(c, Comparison))
    missing = [c for c in found if isinstance(c, str)]
    seeds = min((len(c.seeds) for c in comparisons), default=0)
    each = [c.verdict(claim.margin(comparer.loss)) for c in comparisons]
    reasons = list(missing)
    if NOT_HELD in each:
        verdict = NOT_HELD
    elif missing or UNDECIDED in each:
        verdict = UNDECIDED
        if any(len(c.seeds) == 1 for c in comparisons):
            reasons.append("the spread over seeds is unknown")
    else:
        verdict = HELD
    text = _text(claim, comparer)
    return Verdict(claim, text, verdict, seeds, comparisons, "; ".join(reasons))


def _text(claim: Claim, comparer: Comparer) -> str:
    """The claim with the budgets of the rows that were measured, else those of the paper."""
    budgets = []
    for key in (claim.first, claim.others[0]):
        line = comparer.lines[key]
        measured = line.group.parameters if line.group else 0
        budgets.append(measured or round((line.row.millions or 0) * 1e6))
    text = claim.text.format(
        first=millions(budgets[0]),
        other=millions(budgets[1]),
        ratio=round(budgets[1] / budgets[0]),
        margin=f"{MATCH_NATS} nats" if comparer.loss else f"{MATCH_MARGIN} points",
    )
    return f"{text}, on {comparer.columns[0].short.lower()}" if comparer.loss else text


def _name(key: RowKey) -> str:
    label, rank = key
    return label if rank == "-" else f"{label} {rank}"
