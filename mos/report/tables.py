"""The paper's tables filled with measured cells: which configuration stands in which row."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from mos.report import paper
from mos.report.cells import Cell, Column
from mos.report.groups import Group
from mos.report.results import Problem
from mos.report.select import Selected

PARAMETER_TOLERANCE = 0.02


@dataclass
class Line:
    """A row of the paper's table with what fills it, if anything does."""

    row: paper.Row
    group: Group | None
    average: Cell | None

    def cell(self, column: Column) -> Cell | None:
        return self.group.cell(column) if self.group else None

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

    `comparable` tells whether the paper's figures belong beside them (same scale, model and
    columns, whole benchmarks); `cut` why benchmarks are not whole.
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
        counts = [
            int(line.group.scores.count().max())
            for line in self.lines
            if line.group and not line.group.scores.empty
        ]
        return max(counts, default=0)

    def cells(self, line: Line) -> list[Cell | None]:
        """The cells of a row in the order of the header, the average last if there is one."""
        average = [line.average] if len(self.table.columns) > 1 else []
        return [*(line.cell(column) for column in self.table.columns), *average]

    @property
    def columns(self) -> list[Column | None]:
        """The columns of `cells`; None for the average."""
        return [*self.table.columns, *([None] if len(self.table.columns) > 1 else [])]

    def figures(self, line: Line) -> list[float | None]:
        """The paper's figures beside `cells`; None where they are not comparable."""
        if not self.comparable:
            return [None] * len(self.columns)
        return [*line.row.figures, line.row.average]


def fill_table(
    table: paper.Table,
    groups: Sequence[Group],
    selected: Selected,
    problems: list[Problem],
    *,
    model: str = "auto",
    yardstick: Sequence[Column] = (),
) -> Filled:
    """Fill one of the paper's tables from groups of one scale.

    Args:
        selected: what the groups were made from.
        model: "auto" takes the paper's model, or, for the 7B tables where it has no runs, the one
            with the most; anything else is taken as it is.
        yardstick: columns in place of the paper's.
    """
    counts = Counter({group.model: 0 for group in groups})
    for group in groups:
        counts[group.model] += group.runs
    if model != "auto":
        model = paper.model_key(model)
    elif table.model in counts or not counts or table is paper.TABLE3:
        model = table.model
    else:
        model = counts.most_common(1)[0][0]
    comparable = (
        selected.scale == paper.SCALE
        and model == table.model
        and selected.cut is None
        and not yardstick
    )
    shown = replace(table, columns=tuple(yardstick)) if yardstick else table
    candidates = [group for group in groups if group.model == model]
    lines = []
    for row in table.rows:
        matching = [group for group in candidates if matches(row, group, table.model)]
        matching.sort(key=lambda group: _completeness(group, shown.columns))
        matching = [g for g in matching if any(g.cell(column) for column in shown.columns)]
        chosen = matching.pop() if matching else None
        for other in matching:
            reason = (
                f"rank {other.rank} is among the other rows: {table.name} shows the fuller or "
                f"better of {len(matching) + 1} configurations"
            )
            problems.append(Problem(f"{row.label} {row.rank}", reason))
        lines.append(Line(row, chosen, chosen.average(shown.columns) if chosen else None))
    filled = Filled(shown, selected.scale, model, comparable, lines, selected.cut)
    problems += _different_prompts(filled, selected)
    return filled


def _different_prompts(filled: Filled, selected: Selected) -> Iterable[Problem]:
    """Benchmarks whose trained rows did not all answer the same prompts."""
    for column in {column.benchmark: column for column in filled.table.columns}.values():
        rows: dict[str, list[str]] = defaultdict(list)
        for line in filled.lines:
            if not line.trained or line.group is None or not line.cell(column):
                continue
            folders = list(line.group.folders_of(column).values())
            for asked in selected.frame.loc[folders, f"{column.benchmark}.prompts"].dropna():
                name = f"{line.row.label} {line.row.rank}"
                if name not in rows[asked]:
                    rows[asked].append(name)
        if len(rows) > 1:
            parts = " / ".join(", ".join(names) for names in rows.values())
            reason = f"{column.benchmark} was asked in different prompts: {parts}"
            yield Problem(filled.table.name, reason)


def _completeness(group: Group, columns: Sequence[Column]) -> tuple[float, ...]:
    cells = [cell for column in columns if (cell := group.cell(column))]
    sign = -1 if any(column.lower_is_better for column in columns) else 1
    mean = sum(cell.mean for cell in cells) / len(cells) if cells else 0.0
    return (len(cells), sum(cell.n for cell in cells), sign * mean)


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


def other_groups(groups: Iterable[Group], filled: Iterable[Filled]) -> list[Group]:
    """Groups that fill no row of the tables: by model, bare models first, label and size."""
    used = {id(line.group) for table in filled for line in table.lines if line.group}
    rest = [group for group in groups if id(group) not in used]
    return sorted(
        rest, key=lambda g: (g.model, g.parameters > 0, g.label, g.parameters, str(g.rank))
    )
