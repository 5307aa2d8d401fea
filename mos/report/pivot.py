"""Any other table: rows and columns by dotted keys of results.json or config.yaml."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mos.errors import UserError, did_you_mean
from mos.report.formats import Sheet
from mos.report.paper import HELDOUT, MISSING, Column, column
from mos.report.runs import Runs
from mos.report.tables import Cells


@dataclass
class Pivot:
    """A table by keys.

    Attributes:
        cells: `cells.cells` has a column for each of `keys`, too.
        keys: those of the columns, then those of the rows.
        shown: the columns of the table.
        columns: what is measured: `shown`, or the one metric where columns are values of keys.
    """

    name: str
    sheet: Sheet
    cells: Cells
    keys: list[str]
    shown: list[Column]
    columns: list[Column]


def pivot(
    runs: Runs,
    rows: Sequence[str],
    columns: Sequence[str] = (),
    value: str | None = None,
    name: str = "grouped",
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
        name: of the table in `cells`.

    Raises:
        UserError: a key that no run has, or a value that is no number.
    """
    frame = runs.wide
    metrics = {c.key: column(c.key, "", c.lower_is_better) for c in runs.columns}
    rows, columns = ([_key(frame, n) for n in names] for names in (rows or ["experiment"], columns))
    value = _key(frame, value) if value else None
    chosen = [metrics[key] for key in columns if key in metrics]
    across = [key for key in columns if key not in metrics]
    if not across:
        measured = chosen or list(metrics.values())
    elif len(chosen) > 1 or (chosen and value):
        raise UserError(f"columns={','.join(columns)}: one metric at most beside keys.")
    else:
        measured = [_measured(frame, metrics, chosen[0].key if chosen else value)]
        if measured[0] is AVERAGE:
            plain = [c.key for c in metrics.values() if c.benchmark != HELDOUT.benchmark]
            frame[AVERAGE.key] = frame[plain].mean(axis=1)
    keys = [c.key for c in measured]
    frame[keys] = frame[keys].apply(pd.to_numeric, errors="coerce")
    frame = frame[frame[keys].notna().any(axis=1)]
    added = splitting(frame, [*rows, *across], runs.settings)
    by = [*rows, *added]
    texts = frame[[*by, *across]].map(shown_value)
    lines = frame[[*dict.fromkeys([*across, *by, "seed"])]].assign(
        table=name, run=frame.index, row=texts[by].agg(", ".join, axis=1)
    )
    cells = pd.concat([lines.assign(column=c.key, value=frame[c.key]) for c in measured]).dropna(
        subset="value"
    )
    shown = measured
    if across:
        cells["column"] = texts[across].agg(", ".join, axis=1)
        headings = sorted(cells["column"].unique(), key=natural)
        lower = measured[0].lower_is_better
        shown = [Column(0, text, text, text, lower) for text in headings]
    named = texts[by].assign(row=lines["row"]).drop_duplicates("row").set_index("row")
    bare = set(lines["row"][frame["method.trainable_parameters"] == 0])
    order = sorted(
        named.index,
        key=lambda row: (row not in bare, [natural(str(text)) for text in named.loc[row]]),
    )
    table = Cells(cells, order, [column.key for column in shown])
    body = [[*named.loc[row], *(table.text(row, column) for column in shown)] for row in order]
    titles = [*by, *(column.title for column in shown)]
    notes = ["Cells: mean ±standard deviation over the seeds of one setup (number of seeds)."]
    if added:
        notes.append(f"They differ, so they are added to the rows: {', '.join(added)}.")
    what = f" x {', '.join(across)}: {measured[0].title}" if across else ""
    sheet = Sheet(
        f"{'Other rows, by' if name == 'others' else 'By'} {', '.join(by)}{what}",
        pd.DataFrame(body, columns=titles),
        _marks(table, shown, len(by), by_row=bool(across)),
        notes,
        texts=len(by),
    )
    return Pivot(name, sheet, table, [*across, *by], shown, measured)


AVERAGE = Column(0, "run.average", "run.average", "average of a run")


def _marks(cells: Cells, shown: Sequence[Column], texts: int, by_row: bool) -> pd.DataFrame:
    """Bold where the best of a row stands, or of a column."""
    means = cells.mean[[column.key for column in shown]]
    gains = means * [-1 if column.lower_is_better else 1 for column in shown]
    best = gains.eq(gains.max(axis=1), axis=0) if by_row else gains.eq(gains.max())
    marks = best.map({True: "bold", False: ""}.get).reset_index(drop=True)
    return pd.concat([pd.DataFrame("", marks.index, range(texts)), marks], axis=1)


def _key(frame: pd.DataFrame, name: str) -> str:
    key = next((key for key in (name, name.removeprefix("metrics.")) if key in frame), None)
    if key is None or frame[key].isna().all():
        raise UserError(
            f"{name}: none of the {len(frame)} runs has it.{did_you_mean(name, frame.columns)} "
            "Keys are those of results.json (method.label, method.rank, seed, mmlu.exact_match, "
            "...) or of config.yaml."
        )
    return key


def _measured(frame: pd.DataFrame, metrics: dict[str, Column], key: str | None) -> Column:
    """What `value=` names."""
    if key is None:
        return AVERAGE
    if pd.to_numeric(frame[key], errors="coerce").isna().all():
        raise UserError(f"value={key}: expected a metric or another number.")
    return metrics.get(key, Column(0, key, key, key, "loss" in key))


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
