"""The paper's tables from runs: which run stands in which cell.

The cells of all tables are one long frame, `CELLS`: a line for each run behind a cell. Means,
deviations, claims and plots are made of it, and `cells.csv` is it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import pandas as pd

from mos.report import paper
from mos.report.formats import Sheet
from mos.report.paper import AVERAGE, MISSING, Column, points
from mos.report.runs import Problem, Runs

CELLS = ["table", "row", "column", "seed", "value", "run"]
PARAMETER_TOLERANCE = 0.02
SMALL_BUDGET = "5.00M"


@dataclass
class Cells:
    """Rows and columns with the runs behind them.

    Attributes:
        cells: with the columns `CELLS`.
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
    def mean(self) -> pd.DataFrame:
        """Means over seeds, row x column; NaN for an empty cell."""
        return self.each.groupby("row").mean().reindex([*self.rows])

    @cached_property
    def std(self) -> pd.DataFrame:
        """Sample standard deviations over seeds, row x column; NaN for a single one."""
        return self.each.groupby("row").std().reindex([*self.rows])

    @cached_property
    def n(self) -> pd.DataFrame:
        """Numbers of seeds, row x column."""
        return self.each.groupby("row").count().reindex([*self.rows], fill_value=0)

    def at(self, row: str, column: Column) -> tuple[float, float, int]:
        """Mean, standard deviation and number of seeds of a cell."""
        tables: list[Any] = [self.mean, self.std, self.n]
        mean, std, n = (table.at[row, column.name] for table in tables)
        return float(mean), float(std), int(n)

    def text(self, row: str, column: Column) -> str:
        """ "46.09 ±0.12 (2)": mean, standard deviation, number of seeds; "–" for an empty cell."""
        mean, std, n = self.at(row, column)
        if not n:
            return MISSING
        return f"{column.text(mean)}{'' if std != std else f' ±{column.text(std)}'} ({n})"


@dataclass
class Filled(Cells):
    """A table of the paper filled with results of one scale and model.

    Attributes:
        about: a run of each row that has any: a line of `Runs.long`.
        comparable: whether the paper's figures belong beside them (same scale, model and columns,
            whole benchmarks).
        cut: why benchmarks are not whole.
    """

    table: paper.Table
    about: pd.DataFrame
    scale: str
    model: str
    comparable: bool
    cut: str

    @property
    def seeds(self) -> int:
        """The largest number of seeds in any cell."""
        return max((int(n) for n in self.n.max()), default=0)

    def figures(self, row: paper.Row) -> list[float | None]:
        """The paper's figures beside the columns of `table.shown`; None where not comparable."""
        own = [*row.figures, row.average][: len(self.table.shown)]
        return list(own) if self.comparable else [None] * len(self.table.shown)


def fill_table(
    table: paper.Table,
    runs: Runs,
    problems: list[Problem],
    *,
    model: str = "auto",
    yardstick: Sequence[Column] = (),
) -> Filled:
    """Fill one of the paper's tables.

    Args:
        model: "auto" takes the paper's model, or, for the 7B tables where it has no runs, the one
            with the most; anything else is taken as it is.
        yardstick: columns in place of the paper's.
    """
    counts = runs.long.groupby("model")["run"].nunique()
    if model != "auto":
        model = paper.model_key(model)
    elif table.model in counts or counts.empty or table is paper.TABLE3:
        model = table.model
    else:
        model = str(counts.idxmax())
    shown = replace(table, columns=tuple(yardstick)) if yardstick else table
    names = [column.name for column in shown.columns]
    own = runs.long[(runs.long["model"] == model) & runs.long["column"].isin(names)]
    configs: Any = own.drop_duplicates("config").to_dict("records")
    rows = {
        about["config"]: row.name
        for about in configs
        for row in table.rows
        if matches(row, about, table.model)
    }
    own = own.assign(table=table.name, row=own["config"].map(rows)).dropna(subset="row")
    cells = arranged(own, problems)
    problems += _different_prompts(cells, table)
    about = cells.drop_duplicates("row").set_index("row")
    comparable = (runs.scale, runs.cut, model) == (paper.SCALE, "", table.model) and not yardstick
    order = [row.name for row in table.rows]
    return Filled(cells, order, names, shown, about, runs.scale, model, comparable, runs.cut)


def matches(row: paper.Row, about: Mapping[str, Any], model: str) -> bool:
    """Whether a configuration can fill a row: its label, one of the row's ranks, and its budget.

    The budget is the number of trainable parameters on the paper's own `model`, and the equivalent
    rank, where the method has one, on any other.
    """
    if about["label"] != row.label:
        return False
    if row.millions is None:
        return True
    rank = str(about["rank"])
    if row.ranks and rank != row.rank and rank not in map(str, row.ranks):
        return False
    if about["model"] == model:
        budget = row.millions * 1e6
        return bool(abs(about["parameters"] - budget) <= PARAMETER_TOLERANCE * budget)
    equivalent = about["equivalent_rank"]
    return pd.isna(equivalent) or row.equivalent_rank in (None, equivalent)


def arranged(scores: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """Lines of `Runs.long` with a `row`: of one configuration a row, of one setup a cell."""
    scores = _paired(scores, problems)
    return _one(_one(scores, ["row"], "config", problems), ["row", "column"], "setup", problems)


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
        for run, experiment in own.loc[known, ["run", "experiment"]].itertuples(index=False):
            reason = f"{benchmark} after training on {experiment} is not the paper's pair"
            problems.append(Problem(run, f"{reason}; not in the tables"))
        own_ones = own[~is_pair & ~known]
        used = "left out beside the paper's own" if is_pair.any() else "used, not the paper's"
        for run, experiment in own_ones[["run", "experiment"]].itertuples(index=False):
            problems.append(Problem(run, f"experiment {experiment!r} is {used}"))
        kept.append(own[is_pair] if is_pair.any() else own_ones)
    return pd.concat(kept)


def _one(scores: pd.DataFrame, by: list[str], what: str, problems: list[Problem]) -> pd.DataFrame:
    """One configuration (or setup) in each group: that with the most columns and runs.

    Among equals that with the lowest validation loss, then the newest.
    """
    loss = pd.to_numeric(scores["eval_loss"], errors="coerce").fillna(float("inf"))
    found = scores.assign(gain=-loss).groupby([*by, what]).agg(
        full=("column", "nunique"), n=("run", "size"), gain=("gain", "mean"),
        newest=("modified", "max"),
    )  # fmt: skip
    order = found.sort_values(["full", "n", "gain", "newest"], kind="stable").reset_index()
    chosen = order.drop_duplicates(by, keep="last")[[*by, what]]
    keys = pd.MultiIndex.from_frame(scores[[*by, what]])
    is_chosen = keys.isin(pd.MultiIndex.from_frame(chosen))
    for row, rest in scores[~is_chosen].groupby("row", sort=False):
        reason = (
            f"{rest['run'].nunique()} run(s) of {rest[what].nunique()} other {what}(s) are among"
            " the other rows; choose with filter="
        )
        problems.append(Problem(str(row), reason))
    return scores[is_chosen]


def _different_prompts(cells: pd.DataFrame, table: paper.Table) -> Iterable[Problem]:
    """Benchmarks whose trained rows did not all answer the same prompts."""
    asked = cells[(cells["parameters"] > 0) & (cells["prompts"] != "")]
    for benchmark, those in asked.groupby("benchmark", sort=False):
        rows = those.groupby("prompts")["row"].unique()
        if len(rows) > 1:
            parts = " / ".join(", ".join(sorted(names)) for names in rows)
            yield Problem(table.name, f"{benchmark} was asked in different prompts: {parts}")


class Value(NamedTuple):
    """A cell as sheets show it: `figure` is the paper's."""

    column: Column
    mean: float
    std: float
    n: int
    figure: float | None

    @property
    def spread(self) -> str:
        return f"{self.column.text(self.std)} ({self.n})" if self.n else MISSING

    @property
    def beside(self) -> str:
        """The paper's figure, and the displayed mean minus it."""
        figure = self.figure or 0.0
        delta = points(float(points(self.mean)) - figure, sign=True) if self.n else MISSING
        return f"{figure:.2f} ({delta})"


def values(filled: Filled, row: paper.Row) -> list[Value]:
    """The cells of a row of the paper, in the order of `table.shown`."""
    return [
        Value(column, *filled.at(row.name, column), figure)
        for column, figure in zip(filled.table.shown, filled.figures(row), strict=True)
    ]


def paper_sheets(filled: Filled) -> list[Sheet]:
    """Measured means in the paper's layout, their spread, and the paper's figures beside them."""
    sheets = [
        shown_means(filled),
        _sheet(filled, "Standard deviation over seeds (n)", lambda row, value: value.spread),
    ]
    if filled.comparable:
        title = "The paper's figures (measured minus paper)"
        sheets.append(_sheet(filled, title, lambda row, value: value.beside))
    return sheets


def shown_means(filled: Filled) -> Sheet:
    """Means over seeds, rows, columns and marks as in the paper; (n=) where seeds are missing."""

    def with_n(row: paper.Row, value: Value) -> str:
        few = value.n not in (0, filled.seeds) and row.millions is not None
        return value.column.text(value.mean) + f" (n={value.n})" * few

    title = f"{filled.table.name.replace('table', 'Table ')}: {filled.table.title}"
    sheet = _sheet(filled, title, with_n)
    names = [column.name for column in filled.table.shown]
    gains = filled.mean[names].map(lambda mean: float(points(mean)) if mean == mean else mean)
    gains *= [-1 if column.lower_is_better else 1 for column in filled.table.shown]
    small = pd.Series([row.small_budget for row in filled.table.rows], gains.index)
    second = gains.eq(gains[small].max()).mul(small & filled.table.underline, axis=0)
    marks = gains.eq(gains.max()).map({True: "bold", False: ""}.get)
    marks += second.map({True: " underline", False: ""}.get)
    fixed = pd.DataFrame("", range(len(marks)), range(sheet.frame.shape[1] - len(names)))
    marks = pd.concat([fixed, marks.reset_index(drop=True)], axis=1)
    return replace(sheet, marks=marks, notes=_notes(filled))


def _sheet(filled: Filled, title: str, text: Callable[[paper.Row, Value], str]) -> Sheet:
    """A sheet of the paper's layout with a text in each cell."""
    table = filled.table
    rows = [
        [*_fixed(filled, row), *(text(row, value) for value in values(filled, row))]
        for row in table.rows
    ]
    families = [_family(row) for row in table.rows]
    rules = frozenset(i for i in range(1, len(families)) if families[i] != families[i - 1])
    fixed = ["Method", "Rank", "# Param."][: 2 + table.show_parameters]
    frame = pd.DataFrame(rows, columns=[*fixed, *(column.title for column in table.shown)])
    return Sheet(title, frame, rules=rules, texts=len(fixed))


def _fixed(filled: Filled, row: paper.Row) -> list[str]:
    """The row's name, its rank as printed (that of the runs where the row leaves it open), size."""
    rank, size = row.rank, "-" if row.millions is None else f"{row.millions:.2f}M"
    if row.name in filled.about.index:
        about: Any = filled.about.loc[row.name]
        size = millions(about["parameters"])
        if not row.ranks and row.millions is not None and isinstance(about["rank"], int):
            rank = str(about["rank"])
    elif not filled.comparable and row.millions is not None:
        size = MISSING
    name = f"{row.label} †" if row.dagger and filled.comparable else row.label
    return [name, rank, size][: 2 + filled.table.show_parameters]


def _family(row: paper.Row) -> str:
    return "vanilla" if row.millions is None else "mos" if row.label.startswith("MoS") else "other"


def millions(parameters: int) -> str:
    return f"{points(parameters / 1e6)}M" if parameters else "-"


def _notes(filled: Filled) -> list[str]:
    seeds = f"{filled.seeds} seed{'s' * (filled.seeds != 1)}"
    notes = [f"{filled.model}, scale {filled.scale}: means over {seeds}; {MISSING} not run."]
    if filled.cells.empty:
        notes = [f"No runs of {filled.model} at scale {filled.scale or '(none)'}."]
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
