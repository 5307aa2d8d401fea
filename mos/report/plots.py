"""Plots as SVG and PDF: scores over size, the ablations, and a table by keys.

matplotlib is imported when one is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import pandas as pd

from mos.adapters import METHODS
from mos.report.paper import AVERAGE, Column
from mos.report.pivot import Pivot, natural, shown_value
from mos.report.runs import Runs
from mos.report.statistics import combined_interval
from mos.report.tables import Cells, Filled, arranged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
UNKNOWN = "#6b7280"  # a method that this installation does not have
MARKERS = "osD^vP*Xh<>p"
MAX_PANELS, MAX_LINES = 6, 12
ABLATIONS = ("MoS 16/32", "MoS -sp 16/32", "MoS -vs 16/32", "MoS -pd 16/32")
STYLE: Any = {
    "svg.fonttype": "path", "svg.hashsalt": "mos", "pdf.fonttype": 42, "font.size": 9.5,
    "axes.edgecolor": MUTED, "axes.labelcolor": INK, "xtick.color": MUTED, "ytick.color": MUTED,
    "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True, "grid.color": GRID,
    "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "figure.constrained_layout.use": True,
}  # fmt: skip


@dataclass(frozen=True)
class Plot:
    """A drawn plot.

    Attributes:
        name: of its files.
        title, caption: for the report.
    """

    name: str
    title: str
    caption: str
    svg: str
    pdf: bytes


def available() -> bool:
    """Whether matplotlib is installed (the `report` extra)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def drawn(name: str, title: str, caption: str, draw: Callable[[], Figure | None]) -> list[Plot]:
    """What a function draws in the report's style; [] where it has nothing to draw."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = draw()
        if figure is None:
            return []
        svg, pdf = io.StringIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None})
    return [Plot(name, title, caption, svg.getvalue(), pdf.getvalue())]


def panels(count: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's global state, and the axes of its panels, two beside each other.

    Args:
        width, height: of one panel, in inches.
    """
    from matplotlib.figure import Figure

    columns = min(2, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(width * columns, height * rows))
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def with_legend(figure: Figure, entries: dict[str, Any]) -> Figure:
    """Put the legend beside the panels, in room of its own."""
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.068 * max(map(len, entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside right upper")
    return figure


def colour(about: Any) -> str:
    """The colour of a row of the method of the first run in `about`."""
    method, label = about[["method", "label"]].iloc[0]
    return METHODS[method].colour_of(label) if method in METHODS else UNKNOWN


def _shared(filled: Filled, rows: Sequence[str]) -> list[Column]:
    """The columns that all of the rows have."""
    n = filled.n.loc[list(rows)]
    return [c for c in filled.table.columns if len(n) and (n[c.name] > 0).all()]


def _score_label(filled: Filled, columns: Sequence[Column]) -> str:
    if len(columns) == 1:
        return columns[0].title
    if len(columns) == len(filled.table.columns):
        return "average score"
    return "average of " + ", ".join(c.title.partition(" (")[0] for c in columns)


def _paper_figures(filled: Filled, columns: Sequence[Column]) -> dict[str, float]:
    """The paper's mean of the columns by row, where it is comparable."""
    if not filled.comparable or not set(columns) <= set(filled.table.columns):
        return {}
    places = [filled.table.columns.index(column) for column in columns]
    return {row.name: fmean(row.figures[i] for i in places) for row in filled.table.rows}


def budget_plot(filled: Filled, runs: Runs) -> Figure | None:
    """Scores over trainable parameters (log axis): the table's average, and any other metric.

    Hollow marks are the paper's figures.
    """
    own = runs.long[runs.long["model"] == filled.model]
    cells = arranged(own.assign(row=own["config"]), [])
    about = cells.drop_duplicates("row").set_index("row").sort_values("parameters")
    names = {column.name for column in filled.table.columns}
    drawn = []
    others = ([column] for column in runs.columns if column.name not in names)
    parts = (_shared(filled, list(filled.about.index)), *others)
    for part in filter(None, parts):
        table = Cells(cells, list(about.index), [column.name for column in part])
        spots = about.assign(mean=table.mean[AVERAGE.key], std=table.std[AVERAGE.key].fillna(0.0))
        spots = spots.dropna(subset="mean")
        trained = spots[spots["parameters"] > 0]
        if len(trained) == 1 or trained["mean"].nunique() > 1:
            drawn.append((part, trained, spots[spots["parameters"] == 0]))
    if not drawn:
        return None
    figure, axes = panels(len(drawn[:MAX_PANELS]), 5.2, 3.6)
    entries: dict[str, Any] = {}
    labels = sorted({label for _, trained, _ in drawn for label in trained["label"]})
    rows = dict(zip(filled.about["config"], filled.about.index, strict=True))
    for axis, (part, trained, bare) in zip(axes, drawn, strict=False):
        printed = _paper_figures(filled, part)
        for label, members in trained.groupby("label"):
            mark, ink = MARKERS[labels.index(label) % len(MARKERS)], colour(members)
            bars = axis.errorbar(
                members["parameters"], members["mean"], yerr=members["std"], fmt=mark, color=ink,
                linestyle="-" if members["parameters"].is_unique else "none", capsize=2.5,
                markersize=6, linewidth=1.2, zorder=3,
            )  # fmt: skip
            ranks = ", ".join(dict.fromkeys(map(shown_value, members["rank"])))
            entries.setdefault(f"{label}  {ranks}", bars)
            figures = [printed.get(rows.get(config, ""), math.nan) for config in members.index]
            axis.plot(
                members["parameters"], figures, mark, markersize=10, markerfacecolor="none",
                markeredgecolor=ink, markeredgewidth=0.9, zorder=2,
            )  # fmt: skip
        # The bare models stand far away: their lines must not squeeze the rest.
        axis.set_ylim(axis.get_ylim())
        for label, mean, style in zip(bare["label"], bare["mean"], (":", "--", "-."), strict=False):
            line = axis.axhline(mean, color=MUTED, linestyle=style, linewidth=1)
            entries[f"{label}  {part[0].text(mean)}"] = line
        axis.set_xscale("log")
        axis.set_xlim(trained["parameters"].min() / 2.5, trained["parameters"].max() * 2.5)
        axis.xaxis.set_minor_formatter("")
        axis.set_xlabel("trainable parameters (log scale)")
        axis.set_ylabel(_score_label(filled, part))
        if part[0].lower_is_better:
            axis.set_title("lower is better", color=MUTED, fontsize=8.5)
    if filled.comparable:
        (entries["hollow: the paper"],) = axes[0].plot(
            [], [], "o", markersize=9, markerfacecolor="none", color=MUTED
        )
    return with_legend(figure, entries)


def ablation_plot(filled: Filled) -> Figure | None:
    """Average of MoS and its ablations with intervals."""
    rows = [name for name in ABLATIONS if name in filled.about.index]
    columns = _shared(filled, rows)
    if len(rows) < 2 or not columns:
        return None
    cells = Cells(filled.cells, rows, [c.name for c in columns])
    figure, (axis,) = panels(1, 6.2, 0.6 + 0.55 * len(rows))
    figures = _paper_figures(filled, columns)
    for position, row in enumerate(rows):
        each: Any = cells.each.loc[row]
        interval = combined_interval(list(each[AVERAGE.key].dropna()))
        half = 0.0 if interval.high is None else interval.high - interval.estimate
        axis.errorbar(
            interval.estimate, position, xerr=half, fmt="o", markersize=8, capsize=4, linewidth=1,
            color=colour(filled.about.loc[[row]]), markeredgecolor=INK, ecolor=INK,
        )  # fmt: skip
        if row in figures:
            axis.plot(figures[row], position, "D", color=INK, markersize=5, markerfacecolor="none")
    labels: Any = filled.about["label"]
    names = [f"{labels[row]}   {columns[0].text(cells.at(row, AVERAGE)[0])}" for row in rows]
    axis.set_yticks(range(len(rows)), names)
    axis.set_ylim(len(rows) - 0.5, -0.5)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(_score_label(filled, columns))
    return figure


def pivot_plot(pivot: Pivot) -> Figure | None:
    """A table by keys over its first key that is a number, a line for each value of the others."""
    cells = pivot.cells.cells
    numeric = cells[pivot.keys].apply(pd.to_numeric, errors="coerce")
    varied = [key for key in pivot.keys if numeric[key].nunique() > 1]
    if not varied:
        return None
    key = varied[0]
    others = [k for k in pivot.keys if k != key and cells[k].nunique(dropna=False) > 1]
    cells = cells.assign(x=numeric[key], line="").dropna(subset="x")
    if others:
        cells["line"] = cells[others].map(shown_value).agg(" ".join, axis=1)
    measured = pivot.columns[:MAX_PANELS]
    figure, axes = panels(len(measured), 5.0, 3.4)
    entries: dict[str, Any] = {}
    names = sorted(cells["line"].unique(), key=natural)[:MAX_LINES]
    for axis, column in zip(axes, measured, strict=True):
        own = cells if len(pivot.columns) == 1 else cells[cells["column"] == column.key]
        for number, name in enumerate(names):
            line = own[own["line"] == name].groupby("x")["value"].agg(["mean", "std"])
            if line.empty:
                continue
            bars = axis.errorbar(
                line.index, line["mean"], yerr=line["std"].fillna(0.0), capsize=2.5, markersize=4.5,
                fmt=MARKERS[number % len(MARKERS)], linestyle="-", linewidth=1.2,
            )  # fmt: skip
            entries.setdefault(name or column.title, bars)
            best = line["mean"].idxmin() if column.lower_is_better else line["mean"].idxmax()
            if len(line) > 1:
                axis.plot(best, line["mean"][best], "*", markersize=14, color=bars[0].get_color())
        ticks = sorted(cells["x"].unique())
        if ticks[0] > 0 and ticks[-1] / ticks[0] > 8:
            axis.set_xscale("log")
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
        axis.set_xlabel(key)
        axis.set_ylabel(column.title)
        if column.lower_is_better:
            axis.set_title("lower is better", color=MUTED, fontsize=8.5)
    return with_legend(figure, entries)
