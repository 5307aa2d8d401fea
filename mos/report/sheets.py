"""Tables as sheets of text cells, before any file format: what is bold, underlined, missing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from decimal import ROUND_HALF_UP, Decimal

from mos.report import paper
from mos.report.aggregate import Average, Cell, Group
from mos.report.filled import Filled, Line

MISSING = "–"
SMALL_BUDGET = "5.00M"


@dataclass(frozen=True)
class Text:
    text: str
    bold: bool = False
    underline: bool = False


@dataclass
class Sheet:
    """A titled grid of cells; `rules` are the rows before which a line is drawn."""

    title: str
    header: list[str]
    rows: list[list[Text]]
    notes: list[str] = field(default_factory=list)
    rules: frozenset[int] = frozenset()


def points(value: float, sign: bool = False) -> str:
    """Two decimals, halves rounded up, as the paper rounds its averages."""
    exact = Decimal(repr(round(value, 9)))
    rounded = exact.quantize(Decimal("0.01"), ROUND_HALF_UP)
    if not rounded:
        rounded = abs(rounded)
    return f"{rounded:+}" if sign else f"{rounded}"


def millions(parameters: int) -> str:
    return f"{points(parameters / 1e6)}M" if parameters else "-"


def sheets(filled: Filled) -> list[Sheet]:
    """Measured means in the paper's layout, their spread, and the paper's figures beside them."""
    return [measured(filled), spread(filled), *([comparison(filled)] if filled.comparable else [])]


def measured(filled: Filled) -> Sheet:
    """Means over seeds, rows, columns and marks as in the paper."""
    table = filled.table
    values = [_values(filled, line) for line in filled.lines]
    best = _best(values)
    small = [
        v if line.row.small_budget else [None] * len(v)
        for line, v in zip(filled.lines, values, strict=True)
    ]
    best_small = _best(small) if table.underline else [set() for _ in values[0]]
    rows = []
    for index, line in enumerate(filled.lines):
        cells = [
            Text(
                _with_count(filled, line, value, count),
                bold=index in best[column],
                underline=index in best_small[column],
            )
            for column, (value, count) in enumerate(
                zip(values[index], _counts(filled, line), strict=True)
            )
        ]
        rows.append([*_fixed(filled, line), *cells])
    return Sheet(
        f"{_number(table)}: {table.title}",
        table.header,
        rows,
        _notes(filled),
        _rules(filled),
    )


def spread(filled: Filled) -> Sheet:
    """Standard deviation over seeds, with n."""
    rows = [
        [
            *_fixed(filled, line),
            *(Text(_deviation(line.cell(column))) for column in filled.table.columns),
            Text(_deviation(line.average)),
        ]
        for line in filled.lines
    ]
    return Sheet(
        "Standard deviation over seeds (n)", filled.table.header, rows, rules=_rules(filled)
    )


def comparison(filled: Filled) -> Sheet:
    """The paper's figures, and measured minus paper."""
    rows = []
    for line in filled.lines:
        figures = [*line.row.figures, line.row.average]
        rows.append(
            [
                *_fixed(filled, line),
                *(
                    Text(f"{figure:.2f} ({difference(value, figure)})")
                    for value, figure in zip(_values(filled, line), figures, strict=True)
                ),
            ]
        )
    return Sheet(
        "The paper's figures (measured minus paper)",
        filled.table.header,
        rows,
        rules=_rules(filled),
    )


def difference(value: str | None, figure: float) -> str:
    """Signed difference of a displayed value and the paper's figure."""
    return MISSING if value is None else f"{Decimal(value) - Decimal(f'{figure:.2f}'):+}"


def other_rows(groups: Sequence[Group]) -> Sheet:
    """Configurations that fill no row of the paper's tables, in the columns of Table 2."""
    rows = []
    for group in groups:
        average = group.average(paper.COLUMNS)
        cells = [group.cells.get(column.key) for column in paper.COLUMNS]
        rows.append(
            [
                Text(group.model),
                Text(group.label),
                Text("-" if group.rank is None else str(group.rank)),
                Text(millions(group.parameters)),
                Text(_settings(group, [g for g in groups if g.label == group.label])),
                *(Text(mean_and_spread(cell)) for cell in (*cells, average)),
            ]
        )
    header = ["Model", "Method", "Rank", "# Param.", "Settings", *paper.TABLE1.header[3:]]
    return Sheet("Other rows", header, rows)


def _settings(group: Group, siblings: Sequence[Group]) -> str:
    """The adapter's settings in which configurations of one label differ, the rank aside."""
    return ", ".join(
        f"{key}={value}"
        for key, value in group.config.items()
        if key != "r" and any(sibling.config.get(key) != value for sibling in siblings)
    )


def mean_and_spread(cell: Cell | Average | None) -> str:
    """ "46.09 ±0.12 (2)": mean, standard deviation and n; "–" where there is nothing."""
    if cell is None:
        return MISSING
    deviation = "" if cell.std is None else f" ±{points(cell.std)}"
    return f"{points(cell.mean)}{deviation} ({cell.n})"


def _number(table: paper.Table) -> str:
    return table.name.replace("table", "Table ")


def _values(filled: Filled, line: Line) -> list[str | None]:
    """Displayed means of a row's columns and of their average."""
    cells = [*(line.cell(column) for column in filled.table.columns), line.average]
    return [None if cell is None else points(cell.mean) for cell in cells]


def _counts(filled: Filled, line: Line) -> list[int | None]:
    cells = [*(line.cell(column) for column in filled.table.columns), line.average]
    return [None if cell is None else cell.n for cell in cells]


def _with_count(filled: Filled, line: Line, value: str | None, count: int | None) -> str:
    if value is None:
        return MISSING
    return value if count == filled.seeds or not line.trained else f"{value} (n={count})"


def _best(values: Sequence[Sequence[str | None]]) -> list[set[int]]:
    """Per column the rows with the largest displayed value."""
    best = []
    for column in zip(*values, strict=True):
        present = [Decimal(value) for value in column if value is not None]
        top = max(present, default=None)
        best.append(
            {row for row, value in enumerate(column) if value is not None and Decimal(value) == top}
        )
    return best


def _fixed(filled: Filled, line: Line) -> list[Text]:
    parameters = line.row.parameters
    if line.group is not None:
        parameters = millions(line.group.parameters)
    elif not filled.comparable and line.trained:
        parameters = MISSING
    fixed = [line.row.name if filled.comparable else line.row.label, line.rank]
    return [Text(t) for t in [*fixed, *([parameters] if filled.table.show_parameters else [])]]


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


def _rules(filled: Filled) -> frozenset[int]:
    families = [_family(line.row) for line in filled.lines]
    return frozenset(i for i in range(1, len(families)) if families[i] != families[i - 1])


def _family(row: paper.Row) -> str:
    return "vanilla" if row.millions is None else "mos" if row.label.startswith("MoS") else "other"


def _deviation(cell: Cell | Average | None) -> str:
    if cell is None:
        return MISSING
    return f"{MISSING if cell.std is None else points(cell.std)} ({cell.n})"


def flatten(texts: Iterable[Text]) -> list[str]:
    return [text.text for text in texts]
