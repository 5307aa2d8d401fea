"""The paper's tables from runs: which run stands in which cell.

The cells of all tables are one long frame: a line for each run behind a cell. Means, deviations,
claims and plots are made of it, and its columns `CELLS` are `cells.csv`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any, NamedTuple

import pandas as pd

from mos.report import paper
from mos.report.formats import Sheet
from mos.report.paper import AVERAGE, MISSING, Column, points
from mos.report.runs import Problem, Runs

CELLS = ["table", "row", "column", "seed", "value", "run"]
PARAMETER_TOLERANCE = 0.02
SMALL_BUDGET = "5.00M"


class Cell(NamedTuple):
    """Mean and sample standard deviation over seeds; NaN where there are too few."""

    mean: float = math.nan
    std: float = math.nan
    seeds: tuple[int, ...] = ()


@dataclass
class Cells:
    """Rows and columns with the runs behind them.

    Attributes:
        cells: with the columns `CELLS`, those of `Runs.long` besides.
        rows, columns: the names in `row` and `column`, in the order of the table.
    """

    cells: pd.DataFrame
    rows: Sequence[str]
    columns: Sequence[str]

    @cached_property
    def each(self) -> pd.DataFrame:
        """The values, (row, seed) x column, and the average of those that have all columns."""
        table = self.cells.pivot_table(index=["row", "seed"], columns="column", values="value")
        table = table.reindex(columns=[*self.columns])
        table[AVERAGE.key] = table.mean(axis=1, skipna=False)
        return table

    @cached_property
    def _found(self) -> dict[tuple[str, str], Cell]:
        found = {}
        for row, own in self.each.groupby("row"):
            for name, values in own.droplevel("row").items():
                there: Any = values.dropna()
                found[str(row), str(name)] = Cell(there.mean(), there.std(), tuple(there.index))
        return found

    @cached_property
    def bare(self) -> set[str]:
        """The rows of models that were not trained."""
        return set(self.cells.loc[self.cells["parameters"] == 0, "row"])

    @cached_property
    def common(self) -> dict[str, tuple[int, ...]]:
        """The seeds, by column, over which the most runs of trained rows can be compared."""
        common = {}
        for name in (*self.columns, AVERAGE.key):
            rows = {row: self._found.get((row, name), Cell()).seeds for row in self.rows}
            held = [seeds for row, seeds in rows.items() if row not in self.bare]
            sizes = {
                seeds: len(seeds) * sum(set(seeds).issubset(other) for other in held)
                for seeds in set(held or rows.values())
            }
            common[name] = max(sizes, key=lambda seeds: (sizes[seeds], len(seeds)), default=())
        return common

    def at(self, row: str, column: Column) -> Cell:
        return self._found.get((row, column.name), Cell())

    def odd(self, row: str, column: Column) -> str:
        """ "seed 0" for a trained row whose seeds are not those of the others, else ""."""
        seeds = self.at(row, column).seeds
        return "" if row in self.bare or seeds in ((), self.common[column.name]) else named(seeds)

    def text(self, row: str, column: Column) -> str:
        """ "46.09 ±0.12 (2)": mean, standard deviation, number of seeds; "–" for an empty cell."""
        mean, std, seeds = self.at(row, column)
        spread = f" ±{column.text(std)}" if len(seeds) > 1 else ""
        n = self.odd(row, column) or len(seeds)
        return f"{column.text(mean)}{spread} ({n})" if seeds else MISSING

    def marks(
        self, columns: Sequence[Column], texts: int, by_row: bool = False, small: Sequence[str] = ()
    ) -> dict[tuple[int, int], str]:
        """ "bold" where the best of each column (or row) stands, "underline" the best of `small`.

        Ties have none. `Sheet.marks` of these columns behind as many others as `texts` says.
        """
        marks: dict[tuple[int, int], str] = {}
        for mark, rows in (("bold", self.rows), (" underline", small)):
            groups: dict[int, list[tuple[float, tuple[int, int]]]] = {}
            for (y, row), (x, c) in product(enumerate(self.rows), enumerate(columns)):
                if row in rows and self.at(row, c).seeds and not self.odd(row, c):
                    gain = c.gain(self.at(row, c).mean), (y, texts + x)
                    groups.setdefault(y if by_row else x, []).append(gain)
            for gains in groups.values():
                best = [at for gain, at in gains if gain == max(gains)[0]]
                marks |= {at: marks.get(at, "") + mark for at in best if len(best) == 1}
        return marks


def named(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


def over_same_seeds(cells: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """The cells without the seeds that a trained row has beyond those of the others."""
    table = Cells(cells, list(cells["row"].unique()), list(cells["column"].unique()))
    extra = {
        (row, name, seed)
        for row, name in cells[["row", "column"]].drop_duplicates().itertuples(index=False)
        if row not in table.bare
        for seeds in [{*table.at(row, Column(0, name, name, name)).seeds}]
        if seeds > {*table.common[name]}
        for seed in seeds - {*table.common[name]}
    }
    is_extra = [
        at in extra for at in zip(cells["row"], cells["column"], cells["seed"], strict=True)
    ]
    rest = cells.loc[is_extra]
    for row, own in rest.groupby("row", sort=False):
        seeds = named(sorted(own["seed"].unique()))
        problems.append(Problem(str(row), f"{seeds} not in the means: other rows do not have it"))
    return cells.drop(rest.index)


class Line(NamedTuple):
    """A line of a table: a row of the paper, in one of the settings in which it was run.

    Attributes:
        keys: those settings.
        variant: in words, without the rank.
    """

    name: str
    row: paper.Row
    keys: Sequence[str] = ()
    variant: str = ""


@dataclass
class Filled(Cells):
    """A table of the paper filled with results of one scale and model.

    Attributes:
        lines: the rows; where the paper's figures stand beside them, those not run, too.
        about: a run of each row that has any: a line of `Runs.long`.
        comparable: whether the paper's figures belong beside them (same scale, model and columns,
            whole benchmarks).
        cut: why benchmarks are not whole.
    """

    lines: Sequence[Line]
    table: paper.Table
    about: pd.DataFrame
    scale: str
    model: str
    comparable: bool
    cut: str

    @property
    def number(self) -> str:
        return self.table.name.replace("table", "Table ")

    @property
    def title(self) -> str:
        return f"{self.number}: {self.table.title}{'' if self.comparable else f', {self.model}'}"

    def called(self, row: str) -> str:
        """A row with the rank that was run, which need not be the paper's: "Pure Sharing 60"."""
        about: Any = self.about.loc[row]
        rank = "" if pd.isna(about["rank"]) else f" {about['rank']}"
        variant = next(line.variant for line in self.lines if line.name == row)
        return f"{about['label']}{rank}" + f" ({variant})" * bool(variant)


def fill_table(
    table: paper.Table,
    runs: Runs,
    problems: list[Problem],
    model: str,
    name: str = "",
    yardstick: Sequence[Column] = (),
) -> Filled:
    """Fill one of the paper's tables with the runs of a model.

    A row that was run in several settings is as many lines: none is chosen.

    Args:
        name: in `cells`, where it is not the table's.
        yardstick: columns in place of the paper's.
    """
    shown = replace(table, columns=tuple(yardstick)) if yardstick else table
    names = [column.name for column in shown.columns]
    own = runs.long[(runs.long["model"] == model) & runs.long["column"].isin(names)]
    setups: Any = own.drop_duplicates("setup").to_dict("records")
    rows = {
        about["setup"]: row.name
        for about in setups
        for row in table.rows
        if matches(row, about, table.model)
    }
    cells = own.assign(table=name or table.name, row=own["setup"].map(rows)).dropna(subset="row")
    cells = _paired(cells, problems)
    comparable = (runs.scale, runs.cut, model) == (paper.SCALE, "", table.model) and not yardstick
    lines = []
    for row in table.rows:
        part = cells[cells["row"] == row.name]
        if part.empty:
            lines += [Line(row.name, row)] * comparable
            continue
        keys = splitting(part, ["column"], runs.settings)
        others = [key for key in keys if key != "method.rank"]
        rank = part["rank"].map(str) if "method.rank" in keys else row.rank
        part = part.assign(variant=part[others].apply(described, axis=1) if others else "")
        cells.loc[part.index, "row"] = (
            (f"{row.label} " + rank if row.millions is not None else row.label)
            + (", " + part["variant"] if others else "")
        )  # fmt: skip
        part = part.assign(row=cells["row"]).drop_duplicates("row").sort_values("row")
        lines += [Line(n, row, keys, v) for n, v in zip(part["row"], part["variant"], strict=True)]
    cells = over_same_seeds(cells, problems)
    problems += _different_prompts(cells, table)
    about = cells.drop_duplicates("row").set_index("row")
    order = [line.name for line in lines]
    rest = lines, shown, about, runs.scale, model, comparable, runs.cut
    return Filled(cells, order, names, *rest)


def matches(row: paper.Row, about: Mapping[str, Any], model: str) -> bool:
    """Whether a configuration can fill a row: label, rank, budget, and the paper's settings.

    The budget is the number of trainable parameters on the paper's own `model`, and the equivalent
    rank, where the method has one, on any other.
    """
    if about["label"] != row.label:
        return False
    if row.millions is None:
        return True
    settings = {f"method.config.{key}": value for key, value in row.settings.items()}
    settings |= paper.SETTINGS if about["scale"] == paper.SCALE else {}
    said = {key: about[key] for key in settings.keys() & about.keys() if not pd.isna(about[key])}
    if any(found != settings[key] for key, found in said.items()):
        return False
    if row.ranks and str(about["rank"]) not in row.ranks:
        return False
    if about["model"] == model:
        budget = row.millions * 1e6
        return bool(abs(about["parameters"] - budget) <= PARAMETER_TOLERANCE * budget)
    equivalent = about["equivalent_rank"]
    return pd.isna(equivalent) or row.equivalent_rank in (None, equivalent)


def _paired(scores: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Runs that trained on what the paper trains on for a benchmark, or that trained nothing.

    Where a row has none of these, runs of other experiments stand in.
    """
    pairs = {(e, benchmark) for e, those in paper.PAIRS.items() for benchmark in those}
    kept = [scores[~scores["benchmark"].isin({benchmark for _, benchmark in pairs})]]
    others = scores.drop(kept[0].index)
    for (_, benchmark), own in others.groupby(["row", "benchmark"], sort=False):
        right = {experiment for experiment, of in pairs if of == benchmark}
        is_pair = own["experiment"].isin(right) | (own["parameters"] == 0)
        known = own["experiment"].isin(paper.PAIRS) & ~is_pair
        used = "left out beside the paper's own" if is_pair.any() else "used, not the paper's"
        places = zip(own["run"], own["experiment"], is_pair, known, strict=True)
        for run, experiment, right_one, other_one in places:
            reason = f"experiment {experiment!r} is {used}"
            if other_one:
                reason = f"{benchmark} after training on {experiment} is not the paper's pair"
            problems += [] if right_one else [Problem(run, reason)]
        kept.append(own[is_pair] if is_pair.any() else own[~known])
    return pd.concat(kept)


def splitting(frame: pd.DataFrame, named: Sequence[str], settings: Sequence[str]) -> list[str]:
    """The settings, besides those `named`, that it takes to have one setup in each group."""
    added: list[str] = []
    for key in settings:
        groups = frame.groupby([*named, *added], dropna=False, sort=False)
        mixed = groups["setup"].transform("nunique") > 1
        if not mixed.any():
            break
        part = frame[mixed]
        values = part.groupby([*named, *added], dropna=False, sort=False)[key]
        if key not in named and (values.nunique(dropna=False) > 1).any():
            added.append(key)
    return added


def described(settings: pd.Series) -> str:
    """ "learning_rate=0.001, chat=false"."""
    return ", ".join(f"{str(k).rpartition('.')[2]}={shown_value(v)}" for k, v in settings.items())


def shown_value(value: object) -> str:
    if value is None or value != value:
        return MISSING
    if isinstance(value, float) and value.is_integer():  # a whole number beside empty cells
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _different_prompts(cells: pd.DataFrame, table: paper.Table) -> Iterable[Problem]:
    """Benchmarks whose trained rows did not all answer the same prompts."""
    asked = cells[(cells["parameters"] > 0) & (cells["prompts"] != "")]
    for benchmark, those in asked.groupby("benchmark", sort=False):
        rows = those.groupby("prompts")["row"].unique()
        if len(rows) > 1:
            parts = " / ".join(", ".join(sorted(names)) for names in rows)
            yield Problem(table.name, f"{benchmark} was asked in different prompts: {parts}")


def paper_sheets(filled: Filled) -> list[Sheet]:
    """Measured means in the paper's layout, their spread, and the paper's figures beside them."""

    def spread(line: Line, column: Column) -> str:
        _, std, seeds = filled.at(line.name, column)
        return f"{column.text(std)} ({len(seeds)})" if seeds else MISSING

    def beside(line: Line, column: Column) -> str:
        mean = filled.at(line.name, column).mean
        figure = line.row.shown[filled.table.shown.index(column)]
        delta = points(column.gain(mean) - figure, sign=True) if mean == mean else MISSING
        return f"{figure:.2f} ({delta})"

    sheets = [shown_means(filled), _sheet(filled, "Standard deviation over seeds (n)", spread)]
    if filled.comparable:
        sheets.append(_sheet(filled, "The paper's figures (measured minus paper)", beside))
    return sheets


def shown_means(filled: Filled) -> Sheet:
    """Means over seeds, rows, columns and marks as in the paper; the seeds where they differ."""

    def mean(line: Line, column: Column) -> str:
        odd = filled.odd(line.name, column)
        return column.text(filled.at(line.name, column).mean) + f" ({odd})" * bool(odd)

    sheet = _sheet(filled, filled.title, mean)
    small = [line.name for line in filled.lines if line.row.small_budget]
    small = small if filled.table.underline else []
    marks = filled.marks(filled.table.shown, sheet.texts, small=small)
    return replace(sheet, marks=marks, notes=_notes(filled))


def _sheet(filled: Filled, title: str, text: Callable[[Line, Column], str]) -> Sheet:
    """A sheet of the paper's layout with a text in each cell."""
    table = filled.table
    rows = [
        [*_fixed(filled, line), *(text(line, column) for column in table.shown)]
        for line in filled.lines
    ]
    fixed = ["Method", "Rank", "# Param."][: 2 + table.show_parameters]
    frame = pd.DataFrame(rows, columns=[*fixed, *(column.title for column in table.shown)])
    return Sheet(title, frame, texts=len(fixed))


def _fixed(filled: Filled, line: Line) -> list[str]:
    """The row's name; its rank, printed as in the paper beside the paper's figures; its size."""
    row = line.row
    rank, size = row.rank, "-" if row.millions is None else f"{row.millions:.2f}M"
    if line.name in filled.about.index:
        about: Any = filled.about.loc[line.name]
        size = millions(about["parameters"])
        is_papers = filled.comparable and row.ranks and line.name == row.name
        if not is_papers and row.millions is not None and not pd.isna(about["rank"]):
            rank = str(about["rank"])
    name = f"{row.label} †" if row.dagger and filled.comparable else row.label
    name += f", {line.variant}" * bool(line.variant)
    return [name, rank, size][: 2 + filled.table.show_parameters]


def millions(parameters: int) -> str:
    return f"{points(parameters / 1e6)}M" if parameters else "-"


def _notes(filled: Filled) -> list[str]:
    seeds = sorted(set(filled.common.values()) - {()}, key=len)
    means = f"means over {named(seeds[-1])}" if seeds else "means over seeds"
    notes = [f"{filled.model}, scale {filled.scale}: {means}; {MISSING} not run."]
    if filled.cut:
        notes.append(f"PARTIAL: benchmarks were cut ({filled.cut}).")
    marks = "Bold: best overall, where there is one."
    if filled.table.underline:
        marks += f" Underlined: best with {SMALL_BUDGET} trainable parameters"
        marks += "." if filled.comparable else " in the paper's setting."
    notes.append(marks)
    if not filled.comparable:
        setting = f"{filled.table.model}, scale {paper.SCALE}, whole benchmarks"
        notes.append(f"The paper's figures ({setting}) are not comparable and left out.")
    elif any(row.dagger for row in filled.table.rows):
        notes.append(f"† {paper.DAGGER}.")
    return notes


def paper_frame(sheets: Sequence[Sheet]) -> pd.DataFrame:
    """What the sheets of a table say, side by side, for a CSV file."""
    names = list(sheets[0].frame.columns[: sheets[0].texts])
    frames = [sheet.frame.set_index(names) for sheet in sheets]
    for frame, what in zip(frames[1:], (" std (n)", " paper (difference)"), strict=False):
        frame.columns = [f"{title}{what}" for title in frame.columns]
    return pd.concat(frames, axis=1).reset_index()
