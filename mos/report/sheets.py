"""Tables as sheets of text, before any file format: what is bold, underlined, missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal

import pandas as pd

from mos.report import paper
from mos.report.cells import MISSING, Cell, Column, mean_and_spread, millions, points, shown
from mos.report.groups import Group, place
from mos.report.tables import Filled, Line

SMALL_BUDGET = "5.00M"


@dataclass
class Sheet:
    """A titled table of texts.

    Attributes:
        frame: the texts.
        marks: of the same shape: "", "bold", "underline" or "bold underline".
        rules: numbers of the rows before which a line is drawn.
        texts: how many columns from the left are names, not figures.
    """

    title: str
    frame: pd.DataFrame
    marks: pd.DataFrame | None = None
    notes: list[str] = field(default_factory=list)
    rules: frozenset[int] = frozenset()
    texts: int = 1

    def mark(self, row: int, column: int) -> str:
        return "" if self.marks is None else str(self.marks.iat[row, column])


def paper_sheets(filled: Filled) -> list[Sheet]:
    """Measured means in the paper's layout, their spread, and the paper's figures beside them."""
    sheets = [
        measured(filled),
        _sheet(filled, "Standard deviation over seeds (n)", lambda cell, column, _: (
            MISSING if cell is None
            else f"{MISSING if cell.std is None else shown(cell.std, column)} ({cell.n})"
        )),
    ]  # fmt: skip
    if filled.comparable:
        title = "The paper's figures (measured minus paper)"
        sheets.append(
            _sheet(filled, title, lambda cell, _, paper: f"{paper:.2f} ({difference(cell, paper)})")
        )
    return sheets


def measured(filled: Filled) -> Sheet:
    """Means over seeds, rows, columns and marks as in the paper."""
    sheet = _sheet(
        filled, "", lambda cell, column, _: shown(cell.mean, column) if cell else MISSING
    )
    values = sheet.frame.iloc[:, -len(filled.columns) :].copy()
    lower = [bool(column and column.lower_is_better) for column in filled.columns]
    bold = _best(values, lower)
    small = pd.Series([line.row.small_budget for line in filled.lines])
    underline = _best(values.where(small, MISSING), lower) & filled.table.underline
    marks = pd.DataFrame("", sheet.frame.index, sheet.frame.columns)
    marks[values.columns] = bold.map({True: "bold", False: ""}.get) + underline.map(
        {True: " underline", False: ""}.get
    )
    few = [
        [f" (n={c.n})" if c and c.n != filled.seeds and line.trained else "" for c in cells]
        for line, cells in zip(filled.lines, map(filled.cells, filled.lines), strict=True)
    ]
    sheet.frame[values.columns] = values + pd.DataFrame(few, columns=values.columns)
    number = filled.table.name.replace("table", "Table ")
    title = f"{number}: {filled.table.title}"
    return Sheet(title, sheet.frame, marks, _notes(filled), sheet.rules, sheet.texts)


def _sheet(
    filled: Filled,
    title: str,
    text: Callable[[Cell | None, Column | None, float | None], str],
) -> Sheet:
    """A sheet of the paper's layout with `text(cell, column, paper's figure)` in each cell."""
    rows = [
        [
            *_fixed(filled, line),
            *map(text, filled.cells(line), filled.columns, filled.figures(line)),
        ]
        for line in filled.lines
    ]
    families = [_family(line.row) for line in filled.lines]
    rules = frozenset(i for i in range(1, len(families)) if families[i] != families[i - 1])
    return Sheet(title, pd.DataFrame(rows, columns=filled.table.header), rules=rules, texts=2)


def difference(cell: Cell | None, figure: float | None) -> str:
    """Signed difference of a displayed value and the paper's figure."""
    if cell is None or figure is None:
        return MISSING
    return f"{Decimal(points(cell.mean)) - Decimal(f'{figure:.2f}'):+}"


def other_rows(groups: Sequence[Group], columns: Sequence[Column]) -> Sheet:
    """Configurations that fill no row of the paper's tables, with every metric that they have."""
    present = [c for c in columns if any(group.cell(c) for group in groups)]
    known = {place(c) for c in paper.COLUMNS}
    average = [c for c in present if place(c) in known]
    rows = []
    for group in groups:
        siblings = [g.config for g in groups if (g.label, g.model) == (group.label, group.model)]
        settings = [
            f"{key}={value}"
            for key, value in group.config.items()
            if key != "r" and any(other.get(key) != value for other in siblings)
        ]
        rows.append(
            [
                *(group.model, group.label, "-" if group.rank is None else str(group.rank)),
                *(millions(group.parameters), ", ".join(settings)),
                *(mean_and_spread(group.cell(column), column) for column in present),
                mean_and_spread(group.average(average)),
            ]
        )
    header = [
        "Model",
        "Method",
        "Rank",
        "# Param.",
        "Settings",
        *(c.title for c in present),
        "Avg.",
    ]
    frame = pd.DataFrame(rows, columns=header)
    if not average:
        frame = frame.drop(columns="Avg.")
    notes = ["Cells: mean ±standard deviation over seeds (number of seeds)."]
    return Sheet("Other rows", frame, notes=notes, texts=5)


def _best(values: pd.DataFrame, lower: Sequence[bool]) -> pd.DataFrame:
    """Where the best displayed value of each column stands."""
    numbers = values.apply(pd.to_numeric, errors="coerce")
    best = numbers.min().where(pd.Series(lower, values.columns), numbers.max())
    return numbers.eq(best) & numbers.notna()


def _fixed(filled: Filled, line: Line) -> list[str]:
    parameters = line.row.parameters
    if line.group is not None:
        parameters = millions(line.group.parameters)
    elif not filled.comparable and line.trained:
        parameters = MISSING
    fixed = [line.row.name if filled.comparable else line.row.label, line.rank]
    return [*fixed, *([parameters] if filled.table.show_parameters else [])]


def _notes(filled: Filled) -> list[str]:
    notes = []
    if filled.empty:
        notes.append(f"No runs of {filled.model} at scale {filled.scale or '(none)'}.")
    else:
        seeds = f"{filled.seeds} seed{'s' * (filled.seeds != 1)}"
        notes.append(
            f"{filled.model}, scale {filled.scale}: means over {seeds}; {MISSING} not run."
        )
    if filled.cut:
        notes.append(f"PARTIAL: benchmarks were cut ({filled.cut}).")
    marks = "Bold: best overall."
    if filled.table.underline:
        marks += f" Underlined: best with {SMALL_BUDGET} trainable parameters"
        marks += "." if filled.comparable else " in the paper's setting."
    notes.append(marks)
    if not filled.comparable:
        setting = f"{filled.table.model}, scale {paper.SCALE}, whole benchmarks"
        notes.append(f"The paper's figures ({setting}) are not comparable and left out.")
    elif any(line.row.dagger for line in filled.lines):
        notes.append(f"† {paper.DAGGER}.")
    return notes


def _family(row: paper.Row) -> str:
    return "vanilla" if row.millions is None else "mos" if row.label.startswith("MoS") else "other"
