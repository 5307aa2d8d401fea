"""Plots of the report, each as an SVG text. matplotlib is only imported when one is drawn."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from mos.report import paper
from mos.report.aggregate import Average, Group
from mos.report.filled import Filled
from mos.report.grouping import natural, run_average
from mos.report.results import Problem, Result
from mos.report.statistics import seed_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

P = ParamSpec("P")
T = TypeVar("T")

INK, MUTED, GRID = "#1f2933", "#6b7785", "#e4e8ec"
COLOURS = {
    "MoS": "#c2410c",
    "LoRA": "#1d4ed8",
    "PRoLoRA": "#0f766e",
    "VeRA": "#7c3aed",
    "Tied LoRA": "#a16207",
    "MiSS": "#be185d",
    "Pure Sharing": "#475569",
    "+ Random Scaling": "#64748b",
    "+ Subset Selection": "#94a3b8",
    "MoS -sp": "#ea8a5c",
    "MoS -vs": "#f0b27a",
    "MoS -pd": "#f4cfae",
    "Full fine-tuning": "#111827",
}
FALLBACK = "#9ca3af"
ABLATIONS = tuple((label, "16/32") for label in ("MoS", "MoS -sp", "MoS -vs", "MoS -pd"))
MAX_CURVES = 12
MAX_POINTS = 150
MAX_MAPS = 6
STYLE: Any = {
    "svg.fonttype": "path",
    "svg.hashsalt": "mos",
    "font.size": 9.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.grid": True,
    "grid.color": GRID,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.constrained_layout.use": True,
}


def available() -> bool:
    """Whether matplotlib is installed (the `report` extra)."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return False
    return True


def _figure(width: float, height: float, rows: int = 1, columns: int = 1) -> Any:
    """A figure without pyplot's global state, and its axes."""
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasSVG(figure)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Draw in the report's style."""

    @wraps(draw)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> T:
        from matplotlib import rc_context

        with rc_context(STYLE):
            return draw(*args, **kwargs)

    return drawn


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


class Spot(NamedTuple):
    """A method in the plots: its average over the columns that all of them have."""

    label: str
    rank: str
    parameters: int
    average: Average
    paper: float | None


def _spots(filled: Filled, others: Sequence[Group] = ()) -> tuple[list[Spot], list[paper.Column]]:
    """The filled rows, and other groups of the model that have as many columns as they."""
    lines = [line for line in filled.lines if line.group]
    columns = [c for c in filled.table.columns if lines and all(line.cell(c) for line in lines)]
    spots = []
    for line in lines:
        average = line.group.average(columns) if line.group and columns else None
        if line.group and average:
            figures = dict(zip(filled.table.columns, line.row.figures, strict=True))
            figure = statistics.fmean(figures[c] for c in columns) if filled.comparable else None
            spots.append(Spot(line.row.label, line.rank, line.group.parameters, average, figure))
    for group in others:
        average = group.average(columns) if columns and group.model == filled.model else None
        if average and group.parameters:
            spots.append(Spot(group.label, str(group.rank), group.parameters, average, None))
    return spots, columns


def _score_label(filled: Filled, columns: Sequence[paper.Column]) -> str:
    if len(columns) == len(filled.table.columns):
        return "average score"
    return "average of " + ", ".join(c.title.partition(" (")[0] for c in columns)


@_styled
def budget_plot(filled: Filled, others: Sequence[Group] = ()) -> str | None:
    """Average score over trainable parameters (log axis); hollow marks are the paper's figures."""
    spots, columns = _spots(filled, others)
    by_label: dict[str, list[Spot]] = defaultdict(list)
    for spot in sorted(spots, key=lambda spot: spot.parameters):
        if spot.parameters:
            by_label[spot.label].append(spot)
    if not by_label:
        return None
    figure, (axis,) = _figure(7.4, 4.2)
    for label, members in by_label.items():
        colour = COLOURS.get(label, FALLBACK)
        joined = label in ("LoRA", "MoS")
        axis.errorbar(
            [spot.parameters for spot in members],
            [spot.average.mean for spot in members],
            yerr=[spot.average.std or 0.0 for spot in members],
            fmt="o", linestyle="-" if joined else "none", color=colour, capsize=2.5,
            markersize=6, linewidth=1.4, label=label, zorder=3,
        )  # fmt: skip
        for spot in members:
            place = (spot.parameters, spot.average.mean)
            if joined:
                axis.annotate(
                    spot.rank, place, xytext=(6, 4), textcoords="offset points",
                    color=MUTED, fontsize=7.5,
                )  # fmt: skip
            if spot.paper is not None:
                axis.plot(
                    spot.parameters, spot.paper, "o", markersize=9, markerfacecolor="none",
                    markeredgecolor=colour, markeredgewidth=0.9, zorder=2,
                )  # fmt: skip
    if filled.comparable:
        axis.plot([], [], "o", markersize=9, markerfacecolor="none", color=MUTED, label="the paper")
    vanilla = [spot for spot in spots if not spot.parameters]
    if vanilla:
        best = max(vanilla, key=lambda spot: spot.average.mean)
        axis.axhline(best.average.mean, color=MUTED, linestyle=":", linewidth=1)
        axis.annotate(
            best.label, (1, best.average.mean), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", color=MUTED, fontsize=8,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters (log scale)")
    axis.set_ylabel(_score_label(filled, columns))
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure)


@_styled
def ablation_plot(filled: Filled) -> str | None:
    """Average of MoS and its ablations, 95 % t intervals over seeds; diamonds: the paper's."""
    lines = [line for line in filled.lines if line.row.key in ABLATIONS]
    spots, columns = _spots(replace(filled, lines=lines))
    if len(spots) < 2:
        return None
    figure, (axis,) = _figure(4.6, 4.2)
    reach = []
    for position, spot in enumerate(spots):
        mean = spot.average.mean
        interval = seed_interval(list(spot.average.per_seed.values()) or [mean])
        colour = COLOURS.get(spot.label, FALLBACK)
        axis.bar(position, mean, color=colour, width=0.6)
        if interval.high is not None:
            half = interval.high - interval.estimate
            axis.errorbar(position, mean, yerr=half, color=INK, capsize=4, linewidth=1)
        axis.annotate(
            f"{mean:.2f}", (position, mean), xytext=(8, 3), textcoords="offset points",
            fontsize=8, color=INK,
        )  # fmt: skip
        # Two seeds give an interval of twelve standard errors: it may leave the picture.
        spread = 2 * (spot.average.std or 0.0)
        reach += [mean - spread, mean + spread]
        if spot.paper is not None:
            axis.plot(position, spot.paper, "D", color=INK, markersize=5, markerfacecolor="white")
            reach.append(spot.paper)
    margin = max(0.6, 0.35 * (max(reach) - min(reach)))
    axis.set_ylim(min(reach) - margin, max(reach) + margin)
    axis.set_xticks(range(len(spots)), [spot.label for spot in spots])
    axis.grid(axis="x", visible=False)
    axis.set_ylabel(_score_label(filled, columns))
    return _svg(figure)


@_styled
def loss_plot(results: Sequence[Result]) -> tuple[str | None, list[Problem]]:
    """Training loss over steps, one panel an experiment, one curve a method (first seed)."""
    panels: dict[str, dict[str, Result]] = defaultdict(dict)
    for result in sorted(results, key=lambda r: (r.experiment, r.label, r.seed)):
        if (result.path / "loss.jsonl").is_file():
            rank = "" if result.rank is None else f" {result.rank}"
            panels[result.experiment].setdefault(f"{result.label}{rank}", result)
    problems: list[Problem] = []
    drawn: dict[str, list[tuple[str, str, tuple[list[float], list[float]]]]] = {}
    for experiment, runs in panels.items():
        curves = []
        for name, run in list(runs.items())[:MAX_CURVES]:
            curve = _read_losses(run.path / "loss.jsonl", problems)
            if len(curve[0]) > 1:
                curves.append((name, run.label, curve))
        if curves:
            drawn[experiment] = curves
    if not drawn:
        return None, problems
    columns = min(2, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    figure, axes = _figure(5.0 * columns + 1.6, 2.9 * rows + 0.2, rows, columns)
    shown: dict[str, Any] = {}
    for axis, (experiment, curves) in zip(axes, drawn.items(), strict=False):
        drawn_of: Counter[str] = Counter()
        for name, label, (steps, losses) in curves:
            style = ("-", "--", ":", "-.")[drawn_of[label] % 4]
            drawn_of[label] += 1
            colour = COLOURS.get(label, FALLBACK)
            (shown[name],) = axis.plot(steps, losses, style, color=colour, linewidth=1.2)
        cut = len(panels[experiment]) - MAX_CURVES
        axis.set_title(experiment + (f" ({cut} more not drawn)" if cut > 0 else ""), color=INK)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("training loss")
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    figure.legend(shown.values(), shown.keys(), loc="outside right upper")
    return _svg(figure), problems


def _read_losses(file: Path, problems: list[Problem]) -> tuple[list[float], list[float]]:
    """Steps and losses of a loss log, averaged over stretches to at most MAX_POINTS."""
    curve = []
    for number, line in enumerate(file.read_text("utf-8", errors="replace").splitlines(), 1):
        try:
            entry = json.loads(line)
            curve.append((float(entry["step"]), float(entry["loss"])))
        except (ValueError, KeyError, TypeError):
            problems.append(Problem(str(file), f"line {number} is not a loss entry; left out"))
    stride = math.ceil(len(curve) / MAX_POINTS) or 1
    stretches = [curve[i : i + stride] for i in range(0, len(curve), stride)]
    return (
        [statistics.fmean(step for step, _ in stretch) for stretch in stretches],
        [statistics.fmean(loss for _, loss in stretch) for stretch in stretches],
    )


@_styled
def sweep_maps(results: Sequence[Result]) -> str | None:
    """Heat maps of MoS sweeps: score over rank and shards, and over rank and private rank.

    One map a pair of axes, experiment, model, equivalent rank and value of the third setting, where
    both axes have at least two values; cells are means over seeds of a run's own metrics.
    """
    maps: list[tuple[str, str, dict[tuple[Any, Any], list[float]]]] = []
    for other, third in (
        ("shards_per_vector", "private_rank"),
        ("private_rank", "shards_per_vector"),
    ):
        panels: dict[tuple[Any, ...], dict[tuple[Any, Any], list[float]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for result in results:
            config, score = result.config, run_average(result)
            if result.method == "mos" and score is not None and {"r", other} <= set(config):
                panel = (result.model, result.experiment, config.get("equivalent_rank"),
                         config.get("pair_dissociation", True), config.get(third))  # fmt: skip
                panels[panel][config["r"], config[other]].append(score)
        for panel, cells in panels.items():
            if all(len({place[i] for place in cells}) > 1 for i in (0, 1)):
                model, experiment, e, dissociated, fixed = panel
                title = f"{experiment}, {model}\ne={e}, {third}={fixed}"
                maps.append((title + ("" if dissociated else ", -pd"), other, cells))
    if not maps:
        return None
    maps = sorted(maps, key=lambda m: -len(m[2]))[:MAX_MAPS]
    columns = min(3, len(maps))
    rows = math.ceil(len(maps) / columns)
    figure, axes = _figure(3.9 * columns, 3.3 * rows, rows, columns)
    for axis in axes[len(maps) :]:
        axis.set_visible(False)
    for axis, (title, other, cells) in zip(axes, maps, strict=False):
        _heat_map(figure, axis, cells)
        axis.set_title(title, color=INK, fontsize=9)
        axis.set_ylabel("rank r")
        axis.set_xlabel(other.replace("_", " "))
    return _svg(figure)


def _heat_map(figure: Figure, axis: Axes, cells: dict[tuple[Any, Any], list[float]]) -> None:
    ys, xs = (sorted({place[i] for place in cells}, key=lambda v: natural(str(v))) for i in (0, 1))
    grid = [
        [statistics.fmean(cells[y, x]) if (y, x) in cells else float("nan") for x in xs] for y in ys
    ]
    axis.grid(visible=False)
    image = axis.imshow(grid, cmap="YlOrBr", aspect="auto", origin="lower")
    low, high = image.get_clim()
    for row, y in enumerate(ys):
        for column, x in enumerate(xs):
            found = cells.get((y, x))
            text = f"{grid[row][column]:.2f}\nn={len(found)}" if found else "–"
            dark = bool(found) and grid[row][column] > low + 0.6 * (high - low)
            axis.text(
                column, row, text, ha="center", va="center", fontsize=7.5,
                color="white" if dark else INK,
            )  # fmt: skip
    axis.set_xticks(range(len(xs)), xs)
    axis.set_yticks(range(len(ys)), ys)
