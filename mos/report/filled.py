"""Cells -> the paper's tables: which configuration fills which row."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mos.report import paper
from mos.report.aggregate import Average, Cell, Group
from mos.report.results import Problem
from mos.report.selection import cut_of

PARAMETER_TOLERANCE = 0.02


@dataclass
class Line:
    """A row of the paper's table with what fills it, if anything does."""

    row: paper.Row
    group: Group | None = None
    average: Average | None = None

    def cell(self, column: paper.Column) -> Cell | None:
        return self.group.cells.get(column.key) if self.group else None

    def __getitem__(self, column: paper.Column) -> Cell:
        """The cell of a column that is known to be filled; KeyError otherwise."""
        if (cell := self.cell(column)) is None:
            raise KeyError(column.key)
        return cell

    @property
    def rank(self) -> str:
        if self.group is None or self.row.ranks or not isinstance(self.group.rank, int):
            return self.row.rank
        return self.row.rank if self.row.millions is None else str(self.group.rank)

    @property
    def trained(self) -> bool:
        return self.row.millions is not None


@dataclass
class Filled:
    """A table of the paper filled with results of one scale and model.

    `comparable` tells whether the paper's figures belong beside them (same scale and model, whole
    benchmarks); `cut` why benchmarks are not whole.
    """

    table: paper.Table
    scale: str
    model: str
    comparable: bool
    lines: list[Line]
    cut: str | None = None

    @property
    def empty(self) -> bool:
        return all(line.group is None for line in self.lines)

    @property
    def seeds(self) -> int:
        """The largest number of seeds in any cell."""
        return max(
            (cell.n for line in self.lines if line.group for cell in line.group.cells.values()),
            default=0,
        )


def fill_table(
    table: paper.Table, groups: Sequence[Group], scale: str, model: str = "auto"
) -> tuple[Filled, list[Problem]]:
    """Fill one of the paper's tables from groups of one scale.

    Args:
        model: "auto" takes the paper's model, or, for the 7B tables where it has no runs, the one
            with the most; anything else is taken as it is.
    """
    problems: list[Problem] = []
    counts = Counter(group.model for group in groups for _ in group.runs)
    if model != "auto":
        model = paper.model_key(model)
    elif table.model in counts or not counts or table is paper.TABLE3:
        model = table.model
    else:
        model = counts.most_common(1)[0][0]
    candidates = [group for group in groups if group.model == model]
    lines = []
    for row in table.rows:
        matching = [group for group in candidates if matches(row, group, table.model)]
        matching.sort(key=lambda group: _completeness(group, table.columns))
        group = matching.pop() if matching else None
        shown = group.rank if group else None
        for other in matching:
            reason = (
                f"{table.name} shows rank {shown}, the fuller or better of "
                f"{len(matching) + 1} configurations; rank {other.rank} is among the other rows"
            )
            problems.append(Problem(f"{row.label} {row.rank}", reason))
        lines.append(Line(row, group, group.average(table.columns) if group else None))
    problems += _different_prompts(table, lines)
    evaluated = (v for group in groups for run in group.runs for v in run.metrics.values())
    cut = next((cut for values in evaluated if (cut := cut_of(values))), None)
    comparable = scale == paper.SCALE and model == table.model and cut is None
    return Filled(table, scale, model, comparable, lines, cut), problems


def _different_prompts(table: paper.Table, lines: Iterable[Line]) -> list[Problem]:
    """Benchmarks whose trained rows did not all answer the same prompts."""
    problems = []
    trained = [line for line in lines if line.trained]
    for column in {column.benchmark: column for column in table.columns}.values():
        rows: dict[str, list[str]] = defaultdict(list)
        for line in trained:
            cell = line.cell(column)
            for asked in {run.prompts.get(column.benchmark) for run in cell.runs} if cell else ():
                if asked:
                    rows[asked].append(f"{line.row.label} {line.row.rank}")
        if len(rows) > 1:
            parts = " / ".join(", ".join(names) for names in rows.values())
            reason = f"{column.benchmark} was asked in different prompts: {parts}"
            problems.append(Problem(table.name, reason))
    return problems


def _completeness(group: Group, columns: Sequence[paper.Column]) -> tuple[float, ...]:
    cells = [group.cells[c.key] for c in columns if c.key in group.cells]
    mean = statistics.fmean(cell.mean for cell in cells) if cells else 0.0
    return (len(cells), sum(cell.n for cell in cells), mean)


def matches(row: paper.Row, group: Group, model: str) -> bool:
    """Whether a group can fill a row: its label, one of the row's ranks, and the row's budget.

    The budget is the number of trainable parameters on the paper's own `model`, and the equivalent
    rank, where the method has one, on any other.
    """
    if group.label != row.label:
        return False
    if row.millions is None:
        return True
    rank = str(group.rank)
    if row.ranks and rank != row.rank and rank not in map(str, row.ranks):
        return False
    if group.model == model:
        budget = row.millions * 1e6
        return abs(group.parameters - budget) <= PARAMETER_TOLERANCE * budget
    equivalent = group.config.get("equivalent_rank")
    return equivalent is None or row.equivalent_rank is None or equivalent == row.equivalent_rank


def unknown_labels(groups: Iterable[Group]) -> list[Problem]:
    """Rows whose label no method of the paper or of this project carries."""
    return [
        Problem(
            str(group.runs[0].path),
            f"unknown row {group.label!r} ({len(group.runs)} run(s)): in no table of the paper, "
            "listed among the other rows",
        )
        for group in groups
        if not paper.known_label(group.label)
    ]


def other_groups(groups: Iterable[Group], filled: Iterable[Filled]) -> list[Group]:
    """Groups that fill no row of the tables, by model, label and size."""
    used = {id(line.group) for table in filled for line in table.lines if line.group}
    rest = [group for group in groups if id(group) not in used]
    return sorted(rest, key=lambda g: (g.model, g.label, g.parameters, str(g.rank)))
