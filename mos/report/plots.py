"""Plots as SVG and PDF: scores over size, and heat maps of tables by keys.

matplotlib is imported when one is drawn.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mos.adapters import METHODS
from mos.report.paper import AVERAGE, Column
from mos.report.pivot import Pivot, natural
from mos.report.tables import Filled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
UNKNOWN = "#6b7280"  # a method that this installation does not have
MARKERS = "osD^vP*Xh<>p"
MAX_PANELS = 6
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


def drawn(
    name: str, title: str, caption: str, draw: Callable[[Any], Figure | None], of: Any
) -> list[Plot]:
    """What a function draws of something in the report's style; [] where there is nothing."""
    from matplotlib import rc_context

    with rc_context(STYLE):
        figure = draw(of)
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


def colour(about: Any) -> str:
    """The colour of a row of the method of the first run in `about`."""
    method, label = about[["method", "label"]].iloc[0]
    return METHODS[method].colour_of(label) if method in METHODS else UNKNOWN


def budget_plot(filled: Filled) -> Figure | None:
    """The average of a table over trainable parameters, on a log axis.

    Hollow marks are the paper's figures.
    """
    shown: Column = filled.table.shown[-1]
    found = [filled.at(row, shown) for row in filled.about.index]
    about = filled.about.assign(mean=[c.mean for c in found], std=[c.std for c in found])
    about["std"] = about["std"].fillna(0)
    about = about[[not filled.odd(row, shown) for row in about.index]].dropna(subset="mean")
    figures = {line.name: line.row.average for line in filled.lines} if filled.comparable else {}
    trained, bare = about[about["parameters"] > 0], about[about["parameters"] == 0]
    if len(trained) < 2:
        return None
    figure, (axis,) = panels(1, 5.2, 3.6)
    entries: dict[str, Any] = {}
    for mark, (label, members) in zip(MARKERS * 9, trained.groupby("label"), strict=False):
        ink = colour(members)
        bars = axis.errorbar(
            members["parameters"], members["mean"], yerr=members["std"], fmt=mark, color=ink,
            linestyle="-" if members["parameters"].is_unique else "none", capsize=2.5,
            markersize=6, linewidth=1.2, zorder=3,
        )  # fmt: skip
        ranks = sorted({str(rank) for rank in members["rank"].dropna()}, key=natural)
        entries[f"{label}  {', '.join(ranks)}"] = bars
        axis.plot(
            members["parameters"], [figures.get(str(row), math.nan) for row in members.index],
            mark, markersize=10, markerfacecolor="none", markeredgecolor=ink, zorder=2,
        )  # fmt: skip
    # The bare models stand far away: their lines must not squeeze the rest.
    axis.set_ylim(axis.get_ylim())
    for label, mean, style in zip(bare["label"], bare["mean"], (":", "--", "-."), strict=False):
        line = axis.axhline(mean, color=MUTED, linestyle=style, linewidth=1)
        entries[f"{label}  {shown.text(mean)}"] = line
    axis.set_xscale("log")
    axis.set_xlim(trained["parameters"].min() / 2.5, trained["parameters"].max() * 2.5)
    axis.xaxis.set_minor_formatter("")
    axis.set_xlabel("trainable parameters (log scale)")
    axis.set_ylabel("average score" if shown is AVERAGE else shown.title)
    if shown.lower_is_better:
        axis.set_title("lower is better", color=MUTED, fontsize=8.5)
    figure.set_figwidth(figure.get_figwidth() + 0.6 + 0.068 * max(map(len, entries)))
    figure.legend(entries.values(), entries.keys(), loc="outside right upper")
    return figure


def heat_plot(pivot: Pivot) -> Figure | None:
    """The means of a table by keys, a panel for each of its maps, all on one scale."""
    maps = dict(list(pivot.maps.items())[:MAX_PANELS])
    if not maps:
        return None
    means = [matrix.to_numpy(dtype=float) for matrix in maps.values()]
    tall, wide = (max(values.shape[axis] for values in means) for axis in (0, 1))
    low = min(float(np.nanmin(values)) for values in means)
    high = max(float(np.nanmax(values)) for values in means)
    figure, axes = panels(len(maps), 1.6 + 0.8 * wide, 1.1 + 0.45 * tall)
    for axis, (title, matrix), values in zip(axes, maps.items(), means, strict=True):
        cmap = "cividis_r" if pivot.column.lower_is_better else "cividis"  # yellow is best
        axis.imshow(values, vmin=low, vmax=high, aspect="auto", cmap=cmap)
        for (y, x), value in np.ndenumerate(values):
            is_dark = (value < (low + high) / 2) != pivot.column.lower_is_better
            text = "" if math.isnan(value) else pivot.column.text(value)
            axis.text(x, y, text, ha="center", va="center", color="white" if is_dark else INK)
        axis.set_xticks(range(matrix.shape[1]), [str(name) for name in matrix.columns])
        axis.set_yticks(range(matrix.shape[0]), [str(name) for name in matrix.index])
        axis.set(xlabel=matrix.columns.name or "", ylabel=matrix.index.name or "", title=title)
        axis.grid(visible=False)
    return figure
