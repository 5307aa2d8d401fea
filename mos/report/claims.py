"""The paper's claims about rows that were run: held, not held, or undecided at n seeds.

A verdict rests on the difference between two rows, with a 95 % interval over seeds and, where the
runs kept their records, over examples (`statistics.combined_interval`). With one seed nothing is
known of the spread over seeds, so the verdict is undecided, whatever the difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd

from mos.errors import UserError
from mos.report import paper
from mos.report.paper import Column
from mos.report.runs import REFUSED, Problem
from mos.report.statistics import (
    Interval,
    Strata,
    combined_interval,
    example_error,
    paired_strata,
    scores_of,
)
from mos.report.tables import Filled, Line, millions

HELD, NOT_HELD, UNDECIDED = "held", "not held", "undecided"
# "Matches" means: not worse by this many points on average, or by this many nats of a loss.
MATCH_MARGIN, MATCH_NATS = 0.5, 0.01

LORA_5M, LORA_20M, LORA_160M = "LoRA 2", "LoRA 8", "LoRA 64"
TIED, PROLORA = "Tied LoRA 280", "PRoLoRA 4/8"
MOS_5M, MOS_20M = "MoS 4/8", "MoS 16/32"
PURE, SCALED, SUBSET = "Pure Sharing 64", "+ Random Scaling 64", "+ Subset Selection 64"
NO_SP, NO_VS, NO_PD = "MoS -sp 16/32", "MoS -vs 16/32", "MoS -pd 16/32"


@dataclass(frozen=True)
class Claim:
    """`first` exceeds each of `others` by over `threshold` points, on `column` or the average.

    Rows are named as `paper.Row.name` has it. `text` may name their budgets, {first} and {other},
    their {ratio}, and the {margin} of a match. On a loss, less is better and a gain of any size
    counts.
    """

    table: str
    text: str
    first: str
    others: tuple[str, ...]
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
    """Two rows on the same columns: how much better the first is, in points or nats.

    Attributes:
        seeds: seeds that both rows have in all columns.
        interval: over seeds, and over examples where `examples` says that records exist for all
            columns.
        loss: whether less is better.
    """

    first: str
    other: str
    seeds: tuple[int, ...]
    interval: Interval
    examples: bool = False
    loss: bool = False

    def verdict(self, threshold: float) -> str:
        low, high = self.interval.low, self.interval.high
        if low is None or high is None:
            return UNDECIDED
        if low > threshold:
            return HELD
        return NOT_HELD if high <= threshold else UNDECIDED

    def __str__(self) -> str:
        """The difference of the values as tables show them."""
        shown, unit = self.interval, "points"
        if self.loss:
            unit = "nats, less is better"
            low, high = (x if x is None else -x for x in (shown.high, shown.low))
            shown = replace(shown, estimate=-shown.estimate, low=low, high=high)
        return f"{self.first} − {self.other}: {shown} {unit}"


@dataclass(frozen=True)
class Verdict:
    """A claim and what the runs say of it.

    Attributes:
        table: the name and model of the table that it is about.
        text: the claim with the budgets that were measured.
        reason: explains "undecided".
    """

    claim: Claim
    table: str
    text: str
    verdict: str
    seeds: int
    comparisons: tuple[Comparison, ...]
    reason: str = ""

    def __str__(self) -> str:
        at = f" at {self.seeds} seed{'s' * (self.seeds != 1)}" if self.seeds else ""
        detail = "; ".join([*map(str, self.comparisons), *filter(None, [self.reason])])
        return f"{self.text}: {self.verdict}{at} ({detail})"


class Comparer:
    """Compares rows of a filled table; reads each run's records once."""

    def __init__(self, filled: Filled, problems: list[Problem]) -> None:
        self.filled, self.problems = filled, problems
        self.columns = filled.table.columns
        self.loss = any(column.lower_is_better for column in self.columns)
        self.runs = filled.cells.set_index(["row", "column", "seed"])["run"].to_dict()
        self.records = cache(self._records)

    def compare(self, first: str, other: str, column: str | None = None) -> Comparison | str:
        """Compare two rows on the average, or on one column; a text where that is impossible."""
        columns = [c for c in self.columns if column in (None, c.key)]
        one_name, other_name = map(self.filled.called, (first, other))
        for row, name in ((first, one_name), (other, other_name)):
            if missing := [c.title for c in columns if not self.filled.at(row, c).seeds]:
                return f"{name} lacks {', '.join(missing)}"
        each: Any = self.filled.each[[c.name for c in columns]]
        one, two = each.loc[first], each.loc[other]
        gains: Any = (two - one if self.loss else one - two).dropna().mean(axis=1)
        if gains.empty:
            return f"{one_name} and {other_name} share no seed"
        strata = self._paired(first, other, columns, list(gains.index))
        interval = combined_interval(list(gains), example_error(strata) if strata else None)
        interval = replace(interval, decimals=4 if self.loss else 2)
        seeds = tuple(gains.index)
        return Comparison(one_name, other_name, seeds, interval, bool(strata), self.loss)

    def _paired(
        self, first: str, other: str, columns: Sequence[Column], seeds: Sequence[int]
    ) -> list[Strata]:
        """Differences per example of all benchmarks; [] if any lacks records."""
        strata = []
        parts: dict[tuple[str, str], list[Column]] = {}
        for c in columns:  # each experiment's held-out examples are their own
            parts.setdefault((c.benchmark, c.name.removeprefix(c.key)), []).append(c)
        for (benchmark, _), members in parts.items():
            one, two = (
                [self.records(self.runs[row, members[0].name, s], tuple(members)) for s in seeds]
                for row in (first, other)
            )
            there = [[table for table in tables if table is not None] for tables in (one, two)]
            if not len(there[0]) == len(there[1]) == len(seeds):
                return []
            paired = paired_strata(*there)
            if paired is None:
                reason = f"{benchmark} was asked in different prompts: examples are not paired"
                self.problems.append(Problem(f"{first} and {other}", reason))
                return []
            strata.append(paired)
        return strata

    def _records(self, run: str, columns: tuple[Column, ...]) -> pd.DataFrame | None:
        try:
            return scores_of(run, columns)
        except UserError as error:
            self.problems.append(Problem(run, str(error), REFUSED))
            return None


def judge(filled: Filled, problems: list[Problem]) -> Iterator[Verdict]:
    """A verdict for every claim about rows of a table that were all run, in the paper's order.

    Of a row that was run in several settings, each is judged, beside the others in that setting.
    """
    comparer = Comparer(filled, problems)
    known = {None, *(column.key for column in comparer.columns)}
    there = [line for line in filled.lines if line.name in filled.about.index]
    for claim in CLAIMS:
        if claim.table != filled.table.name or claim.column not in known:
            continue
        for first in (line for line in there if line.row.name == claim.first):
            others = [
                [line for line in there if line.row.name == row and _alike(filled, first, line)]
                for row in claim.others
            ]
            if all(others):
                names = [line.name for lines in others for line in lines]
                yield _judge(claim, comparer, first.name, names)


def _alike(filled: Filled, first: Line, other: Line) -> bool:
    """Whether two lines agree in what each was run in several settings of; ranks, if both were."""
    keys = {*first.keys, *other.keys} - ({"method.rank"} - ({*first.keys} & {*other.keys}))
    one, two = filled.about.loc[first.name], filled.about.loc[other.name]
    return all(one[key] == two[key] or (pd.isna(one[key]) and pd.isna(two[key])) for key in keys)


def _judge(claim: Claim, comparer: Comparer, first: str, others: Sequence[str]) -> Verdict:
    found = [comparer.compare(first, other, claim.column) for other in others]
    comparisons = tuple(c for c in found if isinstance(c, Comparison))
    reasons = missing = [c for c in found if isinstance(c, str)]
    each = [c.verdict(claim.margin(comparer.loss)) for c in comparisons]
    if NOT_HELD in each:
        verdict = NOT_HELD
    elif missing or UNDECIDED in each:
        verdict = UNDECIDED
        if any(len(c.seeds) == 1 for c in comparisons):
            reasons = [*missing, "the spread over seeds is unknown"]
    else:
        verdict = HELD
    seeds = min((len(c.seeds) for c in comparisons), default=0)
    table = f"{comparer.filled.number}, {comparer.filled.model}"
    text, reason = _text(claim, comparer, first, others[0]), "; ".join(reasons)
    return Verdict(claim, table, text, verdict, seeds, comparisons, reason)


def _text(claim: Claim, comparer: Comparer, first: str, other: str) -> str:
    """The claim with the budgets that were measured."""
    budgets = [int(comparer.filled.about["parameters"][name]) for name in (first, other)]
    text = claim.text.format(
        first=millions(budgets[0]),
        other=millions(budgets[1]),
        ratio=round(budgets[1] / budgets[0]),
        margin=f"{MATCH_NATS} nats" if comparer.loss else f"{MATCH_MARGIN} points",
    )
    title = comparer.columns[0].title.partition(" (")[0]
    return f"{text}, on {title.lower()}" if comparer.loss else text
