"""Tables besides the paper's: sweeps as they come, and rows and columns by dotted keys."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd
from rich.table import Table

from mos.errors import UserError, did_you_mean
from mos.report.formats import Sheet, terminal
from mos.report.paper import AVERAGE, HELDOUT, MISSING, Column, column
from mos.report.runs import Problem, Runs, read_runs, select
from mos.report.tables import Cells, named, over_same_seeds, shown_value, splitting
from mos.run import Run
from mos.runs import show_table


@dataclass
class Pivot:
    """A table by keys.

    Attributes:
        cells: `cells.cells` has a column for each key, too.
        maps: what a heat map draws, by the title of its panels: means, with named axes.
        column: what the maps are of.
    """

    sheet: Sheet
    cells: Cells
    column: Column
    maps: dict[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def printed(self) -> Table:
        """A sweep in 80 columns: its settings and its yardstick."""
        frame = self.sheet.frame.iloc[:, : self.sheet.texts + 4]
        return terminal(replace(self.sheet, frame=frame))


def sweeps(runs: Runs, problems: list[Problem], key: str | None = None) -> Iterator[Pivot]:
    """For each model and experiment with several settings, a line a setting, the best first.

    A line has the settings that tell it from the others, and its mean minus that of the best:
    what is compared is over the same seeds.

    Args:
        key: the yardstick: a metric or another number; None: the held-out loss where all runs have
            it, else the average of the metrics.
    """
    trained = runs.long[runs.long["parameters"] > 0]
    for (model, experiment), part in trained.groupby(["model", "experiment"], sort=False):
        settings = part.groupby("key")["setup"].nunique().max()
        own = _with(part, key) if settings > 1 else None
        if own is not None:
            yield _sweep(own, f"{experiment} on {model}", runs, problems, key)


def show_sweeps(runs: Sequence[Run]) -> None:
    """Print the tables of the sweeps that runs with results belong to."""
    found = read_runs([run.path for run in runs], []) if runs else None
    for pivot in sweeps(select(found, []), []) if found else ():
        show_table(pivot.printed)


def _with(own: pd.DataFrame, key: str | None) -> pd.DataFrame | None:
    """With a line a run for the yardstick, if that is no metric; None where no run has it."""
    if key is None or (own["key"] == key).any():
        return own
    values = pd.to_numeric(own[key], errors="coerce") if key in own else pd.Series(dtype=float)
    if values.isna().all():
        return None
    about: dict[str, Any] = {"key": key, "column": key, "benchmark": "", "lower": "loss" in key}
    extra = own.assign(value=values, **about).drop_duplicates("run").dropna(subset="value")
    return pd.concat([own, extra])


def _sweep(
    own: pd.DataFrame, name: str, runs: Runs, problems: list[Problem], key: str | None
) -> Pivot:
    own = own.assign(column=own["key"])
    measured = _columns(own)
    has_loss = own["run"].isin(own.loc[own["key"] == HELDOUT.key, "run"]).all()
    key = key or (HELDOUT.key if has_loss else None)
    plain = [c for c in measured if not c.lower_is_better]
    usual = AVERAGE if len(plain) > 1 else [*plain, *measured][0]
    yardstick = next((c for c in measured if c.key == key), usual)
    keys = _telling(own, runs.settings)
    texts = own[keys].map(shown_value)
    own = own.assign(table="sweep", row=texts.agg(", ".join, axis=1) + f" ({name})")
    own = over_same_seeds(own, problems)
    shown = plain if yardstick is AVERAGE else measured
    order = list(dict.fromkeys(own["row"]))
    cells = Cells(own, order, [c.key for c in shown])
    gains = {row: yardstick.gain(cells.at(row, yardstick).mean) for row in order}
    odd = {row: cells.odd(row, yardstick) for row in order}
    order.sort(key=lambda row: (gains[row] != gains[row], bool(odd[row]), -gains[row]))
    best = order[0]
    others = [c for c in shown if c is not yardstick]
    texts = texts.loc[own.index].assign(row=own["row"]).drop_duplicates("row").set_index("row")
    body = []
    for row in order:
        mean, std, seeds = cells.at(row, yardstick)
        means = [c.text(cells.at(row, c).mean) for c in others]
        minus = "best" if row == best else _minus(cells, row, best, yardstick)
        spread = [yardstick.text(std), odd[row] or str(len(seeds))]
        body.append([*texts.loc[row], yardstick.text(mean), *spread, minus, *means])
    titles = ["mean", "sd", "n", "minus best", *(c.title for c in others)]
    over = cells.common[yardstick.key]
    better = "lower is better" if yardstick.lower_is_better else "higher is better"
    frame = pd.DataFrame(body, columns=[*_short_names(keys), *titles])
    notes = [
        f"{yardstick.title} in {yardstick.unit}, {better}, over {named(over)}.",
        "sd and ±: standard deviation over seeds; minus best: over the same seeds.",
    ]
    sheet = Sheet(f"Sweep {name}", frame, notes=notes, texts=len(keys))
    return Pivot(sheet, cells, yardstick, _maps(texts, keys, cells, yardstick))


def _minus(cells: Cells, row: str, best: str, yardstick: Column) -> str:
    """Mean and deviation of the differences to the best row at the seeds that both have."""
    values: Any = cells.each[yardstick.key]
    differences = (values.loc[row] - values.loc[best]).dropna()
    if differences.empty or cells.odd(row, yardstick):
        return MISSING
    spread = f" ±{yardstick.text(differences.std())}" if len(differences) > 1 else ""
    return yardstick.text(differences.mean(), sign=True) + spread


def _telling(own: pd.DataFrame, settings: Sequence[str]) -> list[str]:
    """The fewest settings that tell the setups of a sweep apart, in their order."""
    is_one = own["method"].nunique() == 1
    last = ["method.rank", "method.label"] if is_one else []
    keys = splitting(own, ["column"], [*(key for key in settings if key not in last), *last])
    for key in [k for k in keys if k != "method.label"]:
        fewer = [other for other in keys if other != key]
        alike = own.groupby(["column", *fewer], dropna=False)["setup"].nunique()
        keys = fewer if (alike <= 1).all() else keys
    return keys


def _short_names(keys: Sequence[str]) -> list[str]:
    """The last names of keys, or the keys where these are not enough."""
    names = [key.rpartition(".")[2] for key in keys]
    return [name if names.count(name) == 1 else key for name, key in zip(names, keys, strict=True)]


def _maps(
    texts: pd.DataFrame, keys: Sequence[str], cells: Cells, yardstick: Column
) -> dict[str, pd.DataFrame]:
    """The means over the two keys with the most values, a panel for each value of the others.

    {} where more places would be empty than not: these settings are no grid.
    """
    table = texts.set_axis(_short_names(keys), axis=1)
    across: list[Any] = sorted(table, key=lambda key: -table[key].nunique())[:2]
    rest = [key for key in table if key not in across]
    panel = table[rest].apply(lambda row: ", ".join(f"{k}={v}" for k, v in row.items()), axis=1)
    table["panel"] = panel if rest else ""
    table["mean"] = [cells.at(row, yardstick).mean for row in table.index]
    maps: dict[str, pd.DataFrame] = {}
    for title, own in table.groupby("panel"):
        own = own.assign(**{"": yardstick.title}) if len(across) == 1 else own
        matrix: Any = own.pivot(index=[*across, ""][1], columns=across[0], values="mean")
        maps[str(title)] = matrix.sort_index(key=_natural).sort_index(key=_natural, axis=1)
    return maps if 2 * len(table) >= sum(matrix.size for matrix in maps.values()) else {}


def _natural(names: pd.Index) -> pd.Index:
    return names.map(lambda name: natural(str(name)))


def pivot(
    runs: Runs,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    value: str | None = None,
) -> Pivot:
    """Mean, standard deviation and n over the seeds of one setup, by dotted keys.

    A cell never mixes setups: every setting in which the runs of one cell differ, and that is not
    asked for, is added to the rows.

    Args:
        rows: keys whose values make the rows; none: the experiment.
        columns: keys whose values make the columns, or metrics (`heldout.loss`), which are columns
            themselves; none: one column a metric.
        value: what is averaged where `columns` are keys: a metric, a number such as
            train.train_loss, or None for the mean of a run's own metrics (losses aside).

    Raises:
        UserError: a key that no run has, or a value that is no number.
    """
    frame = runs.long
    known = {c.key: c for c in _columns(frame)}
    rows, columns = ([_key(frame, known, n) for n in those] for those in (rows, columns))
    rows = list(rows) or ["experiment"]
    chosen = [key for key in columns if key in known]
    chosen += [_key(frame, known, value)] if value else []
    across = [key for key in columns if key not in known]
    if across and len(chosen) > 1:
        raise UserError(f"columns={','.join(columns)}: one metric at most beside keys.")
    plain = [key for key in known if not known[key].lower_is_better]
    chosen = chosen or (plain if across else [])
    for key in [key for key in chosen if key not in known]:
        if (more := _with(frame, key)) is None:
            raise UserError(f"value={key}: expected a metric or another number.")
        frame, known[key] = more, Column(0, key, key, key, "loss" in key)
    measured = [known[key] for key in chosen or known]
    frame = frame[frame["key"].isin([c.key for c in measured])]
    added = splitting(frame, [*rows, *across, "key"], runs.settings)
    by = [*rows, *added]
    texts = frame[[*by, *across]].map(shown_value)
    cells = frame.assign(
        table="grouped",
        row=texts[by].agg(", ".join, axis=1),
        column=texts[across].agg(", ".join, axis=1) if across else frame["key"],
    )
    shown = measured
    if across and len(measured) > 1:
        measured = [Column(0, "average", "average", "average of a run")]
        cells["value"] = cells.groupby("run")["value"].transform("mean")
        cells = cells.drop_duplicates("run")
    if across:
        headings = sorted(cells["column"].unique(), key=natural)
        lower = measured[0].lower_is_better
        shown = [Column(0, text, text, text, lower) for text in headings]
    lines = texts[by].assign(row=cells["row"]).drop_duplicates("row").set_index("row")
    bare = set(cells.loc[cells["parameters"] == 0, "row"])
    order = sorted(
        lines.index,
        key=lambda row: (row not in bare, [natural(str(text)) for text in lines.loc[row]]),
    )
    table = Cells(cells, order, [column.name for column in shown])
    body = [[*lines.loc[row], *(table.text(row, column) for column in shown)] for row in order]
    titles = [*by, *(column.title for column in shown)]
    notes = ["Cells: mean ±standard deviation over the seeds of one setup (number of seeds)."]
    if added:
        notes.append(f"They differ, so they are added to the rows: {', '.join(added)}.")
    what = f" x {', '.join(across)}: {measured[0].title}" if across else ""
    sheet = Sheet(
        f"By {', '.join(by)}{what}",
        pd.DataFrame(body, columns=titles),
        table.marks(shown, len(by), by_row=bool(across)),
        notes,
        texts=len(by),
    )
    means = pd.DataFrame(
        [[table.at(row, column).mean for column in shown] for row in order],
        pd.Index(order, name=", ".join(by)),
        pd.Index([column.title for column in shown], name=", ".join(across)),
    )
    return Pivot(sheet, table, measured[0], {"": means} if across else {})


def _columns(long: pd.DataFrame) -> list[Column]:
    """The metrics, whichever experiment they are of."""
    there = long.drop_duplicates("key")[["key", "lower"]].itertuples(index=False, name=None)
    return sorted(column(key, "", lower) for key, lower in there)


def _key(frame: pd.DataFrame, metrics: dict[str, Column], name: str) -> str:
    key = name.removeprefix("metrics.")
    if key in metrics or (key in frame and not frame[key].isna().all()):
        return key
    raise UserError(
        f"{name}: none of the {frame['run'].nunique()} runs has it."
        f"{did_you_mean(name, [*metrics, *frame.columns])} Keys are those of results.json"
        " (method.label, method.rank, seed, mmlu.exact_match, ...) or of config.yaml."
    )


def natural(text: str) -> tuple[int, float, str]:
    """Sort key: numbers by value before other texts."""
    is_number = re.fullmatch(r"[+-]?\d+(\.\d+)?(e[+-]?\d+)?", text)
    return (0, float(text), text) if is_number else (1, 0.0, text)
