"""The plot of sweeps over two settings: heat maps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from mos.report.cells import MISSING
from mos.report.figures import INK, MAX_PANELS, panels, plot
from mos.report.pivot import natural, run_average, shown_value, splitting
from mos.report.runs import Runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@plot(
    "sweeps",
    "Sweeps.",
    "Mean of a run's own metrics over the seeds of one setup; nothing else is averaged.",
)
def sweep_maps(runs: Runs) -> Figure | None:
    """Heat maps of score over rank and another setting of a method, where both vary.

    Every other setting in which runs differ has maps of its own.
    """
    frame = runs.frame.assign(score=run_average(runs))
    frame = frame[frame["score"].notna()]
    y = "method.config.r"
    others = [k for k in runs.settings if k.startswith("method.config.") and k != y]
    maps = []
    for x in others if y in frame else ():
        part = frame[frame[x].map(_is_number) & frame[y].notna()]
        part = part[part.groupby("method.label")[x].transform("nunique") > 1]
        if part.empty:
            continue
        by = splitting(part, [y, x], runs.settings)
        for values, cells in part.groupby(by, dropna=False, sort=False) if by else [((), part)]:
            if cells[x].nunique() > 1 and cells[y].nunique() > 1:
                pairs = zip(by, map(shown_value, values), strict=True)
                named = [f"{key.rpartition('.')[2]} {text}" for key, text in pairs]
                first = cells.iloc[0]
                title = f"{first['experiment']}, {first['model']}"
                maps.append((title, [n for n in named if n not in title], x, cells))
    if not maps:
        return None
    maps = sorted(maps, key=lambda m: -len(m[3]))[:MAX_PANELS]
    figure, axes = panels(len(maps), 4.4, 3.5, across=3)
    for axis, (title, named, x, cells) in zip(axes, maps, strict=True):
        _heat_map(figure, axis, cells.groupby([y, x])["score"].agg(["mean", "count"]))
        axis.set_title(f"{title}\n{', '.join(named)}", color=INK, fontsize=8.5)
        axis.set_ylabel("rank r")
        axis.set_xlabel(x.rpartition(".")[2].replace("_", " "))
    return figure


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _heat_map(figure: Figure, axis: Axes, cells: pd.DataFrame) -> None:
    """`cells`: mean and count, indexed by the values of the vertical and horizontal axis."""
    by_value: Any = {"key": lambda index: index.map(lambda v: natural(str(v)))}
    grid, counts = (cells[c].unstack().sort_index(**by_value) for c in ("mean", "count"))
    grid = grid.sort_index(axis=1, **by_value)
    axis.grid(visible=False)
    image = axis.imshow(grid.to_numpy(float), cmap="cividis", aspect="auto", origin="lower")
    figure.colorbar(image, ax=axis, shrink=0.9).ax.tick_params(labelsize=7.5)
    low, high = image.get_clim()
    for row, y in enumerate(grid.index):
        for column, x in enumerate(grid.columns):
            value, n = grid.loc[y, x], counts.loc[y, x]
            text = MISSING if value != value else f"{value:.2f}\nn={n:.0f}"
            light = value == value and value > low + 0.5 * (high - low)
            axis.text(
                column, row, text, ha="center", va="center", fontsize=7.5,
                color=INK if light or value != value else "white",
            )  # fmt: skip
    axis.set_xticks(range(grid.shape[1]), [shown_value(v) for v in grid.columns])
    axis.set_yticks(range(grid.shape[0]), [shown_value(v) for v in grid.index])
