"""Plots of the report, each as an SVG text. matplotlib is only imported when one is drawn."""

from __future__ import annotations

import io
import json
import math
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mos.report.aggregate import Filled, Group, Line
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
MAX_CURVES = 12
MAX_POINTS = 150
MAX_MAPS = 6
STYLE: dict[str, Any] = {
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


@_styled
def budget_plot(filled: Filled, others: Sequence[Group] = ()) -> str | None:
    """Average score over trainable parameters (log axis); hollow marks are the paper's figures."""
    spots = [
        (line.row.label, line.rank, line.group.parameters, line.average)
        for line in filled.lines
        if line.group and line.average and line.trained
    ]
    for group in others:
        average = group.average(filled.table.columns)
        if group.model == filled.model and average and group.parameters:
            spots.append((group.label, str(group.rank), group.parameters, average))
    vanilla = [line for line in filled.lines if not line.trained and line.average and line.group]
    if not spots:
        return None
    figure, (axis,) = _figure(7.4, 4.2)
    by_label: dict[str, list[Any]] = defaultdict(list)
    for spot in spots:
        by_label[spot[0]].append(spot)
    for label, members in by_label.items():
        members.sort(key=lambda spot: spot[2])
        xs = [spot[2] for spot in members]
        means = [spot[3].mean for spot in members]
        errors = [spot[3].std or 0.0 for spot in members]
        colour = COLOURS.get(label, FALLBACK)
        line = "-" if label in ("LoRA", "MoS") else "none"
        axis.errorbar(
            xs, means, yerr=errors, fmt="o", linestyle=line, color=colour, capsize=2.5,
            markersize=6, linewidth=1.4, label=label, zorder=3,
        )  # fmt: skip
        for spot in members if line == "-" else ():
            axis.annotate(
                spot[1], (spot[2], spot[3].mean), xytext=(6, 4), textcoords="offset points",
                color=MUTED, fontsize=7.5,
            )  # fmt: skip
    if filled.comparable:
        _paper_marks(axis, filled.lines)
    best = max(vanilla, key=lambda line: line.average.mean, default=None)
    if best is not None:
        axis.axhline(best.average.mean, color=MUTED, linestyle=":", linewidth=1)
        axis.annotate(
            best.row.label, (1, best.average.mean), xycoords=("axes fraction", "data"), ha="right",
            va="bottom", color=MUTED, fontsize=8,
        )  # fmt: skip
    axis.set_xscale("log")
    axis.set_xlabel("trainable parameters (log scale)")
    axis.set_ylabel("average score")
    axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return _svg(figure)


def _paper_marks(axis: Axes, lines: Sequence[Line]) -> None:
    marks = [(line.row.millions * 1e6, line.row.average, line.row.label) for line in lines
             if line.row.millions is not None]  # fmt: skip
    for index, (x, y, label) in enumerate(marks):
        axis.plot(
            x, y, "o", markersize=9, markerfacecolor="none", zorder=2,
            markeredgecolor=COLOURS.get(label, FALLBACK), markeredgewidth=0.9,
            label="_" if index else "paper (hollow)",
        )  # fmt: skip


@_styled
def ablation_plot(filled: Filled) -> str | None:
    """Average of MoS and its ablations, 95 % t intervals over seeds; diamonds: the paper's."""
    lines = [
        line
        for line in filled.lines
        if line.row.label.startswith("MoS") and line.row.equivalent_rank == 8 and line.average
    ]
    if len(lines) < 2:
        return None
    figure, (axis,) = _figure(4.6, 4.2)
    low, high = [], []
    for position, line in enumerate(lines):
        interval = seed_interval(list(line.average.per_seed.values()) or [line.average.mean])
        known = interval.low is not None
        half = interval.high - interval.estimate if known else 0.0
        # With two seeds the interval is twelve standard errors wide: it may leave the picture.
        axis.bar(
            position, line.average.mean, color=COLOURS.get(line.row.label, FALLBACK), width=0.6
        )
        if known:
            axis.errorbar(position, line.average.mean, yerr=half, color=INK, capsize=4, linewidth=1)
        spread = 2 * (line.average.std or 0.0)
        low.append(line.average.mean - spread)
        high.append(line.average.mean + spread)
        axis.annotate(
            f"{line.average.mean:.2f}", (position, line.average.mean), xytext=(8, 3),
            textcoords="offset points", fontsize=8, color=INK,
        )  # fmt: skip
        if filled.comparable:
            axis.plot(
                position, line.row.average, "D", color=INK, markersize=5, markerfacecolor="white"
            )
            low.append(line.row.average)
            high.append(line.row.average)
    margin = max(0.6, 0.35 * (max(high) - min(low)))
    axis.set_ylim(min(low) - margin, max(high) + margin)
    axis.set_xticks(range(len(lines)), [line.row.label for line in lines])
    axis.grid(axis="x", visible=False)
    axis.set_ylabel("average score")
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
