"""Plots of scores: over size, of the ablations, and of sweeps over two settings."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from mos.report.cells import MISSING, Cell, Column, shown
from mos.report.figures import (
    INK,
    MARKERS,
    MAX_PANELS,
    MUTED,
    colour,
    panels,
    plot,
    with_legend,
)
from mos.report.groups import Group, place
from mos.report.pivot import natural, run_average, shown_value, splitting
from mos.report.runs import Runs
from mos.report.statistics import combined_interval
from mos.report.tables import Filled

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ABLATIONS = tuple((label, "16/32") for label in ("MoS", "MoS -sp", "MoS -vs", "MoS -pd"))


class Spot(NamedTuple):
    """A method in the plots: its average over the columns that all of them have."""

    label: str
    method: str
    rank: str
    parameters: int
    average: Cell


def _spots(filled: Filled, others: Sequence[Group], columns: Sequence[Column]) -> list[Spot]:
    """The filled rows and other groups of the model that have all of the columns."""
    groups = [(line.group, line.row.label, line.rank) for line in filled.lines if line.group]
    groups += [(g, g.label, shown_value(g.rank)) for g in others if g.model == filled.model]
    return [
        Spot(label, group.method, rank, group.parameters, average)
        for group, label, rank in groups
        if (average := group.average(columns))
    ]


def _shared(filled: Filled) -> list[Column]:
    """The columns that all filled rows of a table have."""
    groups = [line.group for line in filled.lines if line.group]
    return [c for c in filled.table.columns if groups and all(g.cell(c) for g in groups)]


def _score_label(filled: Filled, columns: Sequence[Column]) -> str:
    if len(columns) == 1:
        return columns[0].title
    if len(columns) == len(filled.table.columns):
        return "average score"
    return "average of " + ", ".join(c.short for c in columns)


def _tells(spots: list[Spot]) -> bool:
    """Whether there is a trained row, and not several with one and the same value."""
    means = [spot.average.mean for spot in spots if spot.parameters]
    return len(means) == 1 or len(set(means)) > 1


@plot(
    "budget",
    "Quality over size.",
    "Each method's ranks from left to right as in the legend, methods of one size side by side; "
    "bars are ±1 standard deviation over seeds. The vertical axis does not start at zero.",
)
def budget_plot(
    filled: Filled, others: Sequence[Group], columns: Sequence[Column]
) -> Figure | None:
    """Scores over trainable parameters (log axis): the table's average, and any other metric.

    Hollow marks are the paper's figures.
    """
    shared = _shared(filled)
    known = {place(c) for c in filled.table.columns}
    parts = [shared, *([c] for c in columns if place(c) not in known)]
    drawn = [(part, _spots(filled, others, part)) for part in parts if part]
    drawn = [(part, spots) for part, spots in drawn if _tells(spots)]
    drawn = drawn[:MAX_PANELS]
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 5.2, 3.6)
    entries: dict[str, Any] = {}
    labels = sorted({spot.label for _, spots in drawn for spot in spots if spot.parameters})
    for axis, (part, spots) in zip(axes, drawn, strict=True):
        figures = _paper_figures(filled, part)
        spots.sort(key=lambda spot: (spot.parameters, natural(spot.rank)))
        places = _side_by_side(spots)
        for number, label in enumerate(labels):
            members = [spot for spot in spots if spot.label == label and spot.parameters]
            if not members:
                continue
            mark, ink = MARKERS[number % len(MARKERS)], colour(members[0].method, label)
            joined = len({spot.parameters for spot in members}) == len(members)
            at = [places[spot.label, spot.rank, spot.parameters] for spot in members]
            bars = axis.errorbar(
                at,
                [spot.average.mean for spot in members],
                yerr=[spot.average.std or 0.0 for spot in members],
                fmt=mark, linestyle="-" if joined else "none", color=ink, capsize=2.5,
                markersize=6, linewidth=1.2, zorder=3,
            )  # fmt: skip
            ranks = ", ".join(dict.fromkeys(spot.rank for spot in members))
            entries.setdefault(f"{label}  {ranks}", bars)
            for x, spot in zip(at, members, strict=True):
                if (spot.label, spot.rank) in figures:
                    axis.plot(
                        x, figures[spot.label, spot.rank], mark, markersize=10,
                        markerfacecolor="none", markeredgecolor=ink, markeredgewidth=0.9, zorder=2,
                    )  # fmt: skip
        # The bare models stand far away: their lines must not squeeze the rest.
        axis.set_ylim(axis.get_ylim())
        bare = [spot for spot in spots if not spot.parameters]
        for spot, style in zip(bare, (":", "--", "-."), strict=False):
            line = axis.axhline(spot.average.mean, color=MUTED, linestyle=style, linewidth=1)
            entries[f"{spot.label}  {shown(spot.average.mean, part[0])}"] = line
        sizes = [spot.parameters for spot in spots if spot.parameters]
        axis.set_xscale("log")
        axis.set_xlim(min(sizes) / 2.5, max(sizes) * 2.5)
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


def _side_by_side(spots: Sequence[Spot]) -> dict[tuple[str, str, int], float]:
    """Where spots stand on the log axis: those of about one size beside each other."""
    places: dict[tuple[str, str, int], float] = {}
    groups: dict[float, list[Spot]] = {}
    for spot in spots:
        if spot.parameters:
            groups.setdefault(round(math.log(spot.parameters), 1), []).append(spot)
    for members in groups.values():
        labels = sorted({spot.label for spot in members})
        for spot in members:
            step = labels.index(spot.label) - (len(labels) - 1) / 2
            places[spot.label, spot.rank, spot.parameters] = spot.parameters * 1.06**step
    return places


def _paper_figures(filled: Filled, columns: Sequence[Column]) -> dict[tuple[str, str], float]:
    """The paper's mean of the columns, by label and rank."""
    if not filled.comparable or not set(columns) <= set(filled.table.columns):
        return {}
    found = {}
    for line in filled.lines:
        figures = dict(zip(filled.table.columns, line.row.figures, strict=True))
        found[line.row.label, line.rank] = statistics.fmean(figures[c] for c in columns)
    return found


@plot(
    "ablations",
    "Ablations.",
    "95 % t intervals over seeds; diamonds are the paper's. The axis does not start at zero.",
)
def ablation_plot(filled: Filled) -> Figure | None:
    """Average of MoS and its ablations with intervals."""
    lines = [line for line in filled.lines if line.row.key in ABLATIONS]
    ablated = replace(filled, lines=lines)
    columns = _shared(ablated)
    spots = _spots(ablated, (), columns) if columns else []
    if len(spots) < 2:
        return None
    figure, (axis,) = panels(1, 6.2, 0.6 + 0.55 * len(spots))
    figures = _paper_figures(ablated, columns)
    for position, spot in enumerate(spots):
        interval = combined_interval(list(spot.average.per_seed.values()) or [spot.average.mean])
        half = 0.0 if interval.high is None else interval.high - interval.estimate
        axis.errorbar(
            spot.average.mean, position, xerr=half, fmt="o", markersize=8, capsize=4,
            color=colour(spot.method, spot.label), markeredgecolor=INK, ecolor=INK, linewidth=1,
        )  # fmt: skip
        if (found := figures.get((spot.label, spot.rank))) is not None:
            axis.plot(found, position, "D", color=INK, markersize=5, markerfacecolor="none")
    names = [f"{spot.label}   {shown(spot.average.mean, columns[0])}" for spot in spots]
    axis.set_yticks(range(len(spots)), names)
    axis.set_ylim(len(spots) - 0.5, -0.5)
    axis.margins(x=0.08)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel(_score_label(filled, columns))
    return figure


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
