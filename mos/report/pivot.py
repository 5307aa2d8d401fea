"""Any other table: rows and columns by dotted keys of results.json or config.yaml."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from mos.errors import UserError, did_you_mean
from mos.report.cells import HELDOUT, MISSING, Cell, Column, mean_and_spread
from mos.report.runs import Runs, find_key
from mos.report.sheets import Sheet


def pivot(
    runs: Runs, rows: Sequence[str], columns: Sequence[str] = (), value: str | None = None
) -> Sheet:
    """Mean, standard deviation and n over the seeds of one setup, by dotted keys.

    A cell never mixes setups: every setting in which the runs of one cell differ, and that is not
    asked for, is added to the rows.

    Args:
        rows: keys whose values make the rows.
        columns: keys whose values make the columns, or metrics (`heldout.loss`), which are columns
            themselves; none: one column a metric.
        value: what is averaged where `columns` are keys: a metric, a number such as
            train.train_loss, or None for the mean of a run's own metrics (losses aside).

    Raises:
        UserError: a key that no run has, or a value that is no number.
    """
    frame = runs.frame
    metrics = {c.key: c for c in runs.columns}
    rows, columns = ([_key(frame, name) for name in names] for names in (rows, columns))
    value = _key(frame, value) if value else None
    chosen = [metrics[key] for key in columns if key in metrics]
    across = [key for key in columns if key not in metrics]
    if not across:
        shown = chosen or runs.columns
    elif len(chosen) > 1 or (chosen and value):
        raise UserError(f"columns={','.join(columns)}: one metric at most beside keys.")
    else:
        shown, values = _measured(runs, chosen[0].key if chosen else value)
        frame = frame.assign(**{shown[0].key: values})
    frame = frame[frame[[c.key for c in shown]].notna().any(axis=1)]
    added = splitting(frame, [*rows, *across], runs.settings)
    by = [*rows, *added]
    cells: dict[tuple[str, ...], dict[str, str]] = {}
    for place, members in frame.groupby([*by, *across], dropna=False, sort=False):
        row = cells.setdefault(tuple(map(shown_value, place[: len(by)])), {})
        heading = ", ".join(map(shown_value, place[len(by) :]))
        for column in shown:
            cell = Cell.of(pd.to_numeric(members.set_index("seed")[column.key]))
            row[heading or column.title] = mean_and_spread(cell, column)
    bare = frame.loc[frame["method.trainable_parameters"] == 0, by].map(shown_value)
    first = set(bare.itertuples(index=False, name=None))
    order = sorted(cells, key=lambda row: (row not in first, [natural(text) for text in row]))
    headings = [c.title for c in shown]
    if across:
        headings = sorted({h for row in cells.values() for h in row}, key=natural)
    table = pd.DataFrame(
        [[*row, *(cells[row].get(h, MISSING) for h in headings)] for row in order],
        columns=[*by, *headings],
    )
    notes = ["Cells: mean ±standard deviation over the seeds of one setup (number of seeds)."]
    if added:
        notes.append(f"They differ, so they are added to the rows: {', '.join(added)}.")
    what = f" x {', '.join(across)}: {shown[0].title}" if across else ""
    return Sheet(f"By {', '.join(by)}{what}", table, notes=notes, texts=len(by))


def _key(frame: pd.DataFrame, name: str) -> str:
    key = find_key(frame, name)
    if key is None or frame[key].isna().all():
        raise UserError(
            f"{name}: none of the {len(frame)} runs has it.{did_you_mean(name, frame.columns)} "
            "Keys are those of results.json (method.label, method.rank, seed, mmlu.exact_match, "
            "...) or of config.yaml."
        )
    return key


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


def run_average(runs: Runs) -> pd.Series:
    """The mean of each run's benchmark metrics in 0..100; NaN for a run that has none."""
    benchmarks = (c for c in runs.columns if c.benchmark != HELDOUT.benchmark)
    return runs.frame[[c.key for c in benchmarks if not c.lower_is_better]].mean(axis=1)


def _measured(runs: Runs, key: str | None) -> tuple[list[Column], pd.Series]:
    """The column and the values of what `value=` names."""
    if key is None:
        return [Column("run", "average", "average of a run")], run_average(runs)
    values = pd.to_numeric(runs.frame[key], errors="coerce")
    if values.isna().all():
        raise UserError(f"value={key}: expected a metric or another number.")
    known = [c for c in runs.columns if c.key == key]
    benchmark, _, metric = key.partition(".")
    return known or [Column(benchmark, metric, key, "loss" in metric)], values


def shown_value(value: object) -> str:
    if value is None or value != value:
        return MISSING
    if isinstance(value, float) and value.is_integer():  # a whole number beside empty cells
        return f"{value:.0f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def natural(text: str) -> tuple[int, float, str]:
    """Sort key: numbers by value before other texts."""
    try:
        return (0, float(text), text)
    except ValueError:
        return (1, 0.0, text)
