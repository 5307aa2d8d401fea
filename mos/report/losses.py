"""The plot of loss curves."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from mos.errors import DataError, UserError
from mos.report.cells import MISSING
from mos.report.figures import INK, colour, panels, plot, with_legend
from mos.report.pivot import shown_value, splitting
from mos.report.results import Problem
from mos.report.runs import Runs
from mos.runs import read_losses

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_CURVES, MAX_POINTS, MAX_LOG_BYTES = 12, 150, 64_000_000
STYLES = ("-", "--", ":", "-.")  # of the setups of one method


@plot("losses", "Loss curves.", "Training loss, smoothed, of one seed a setup; dots: held out.")
def loss_plot(runs: Runs, problems: list[Problem]) -> Figure | None:
    """Losses over steps, one panel an experiment, one curve a setup (its first seed)."""
    logged = [(Path(folder) / "loss.jsonl").is_file() for folder in runs.frame.index]
    frame = runs.frame[logged].sort_values(["method.label", "seed"]).drop_duplicates("setup")
    drawn: dict[str, list[tuple[str, str, dict[Any, Any], pd.DataFrame]]] = {}
    hidden: Counter[str] = Counter()
    for experiment in sorted(frame["experiment"].unique()):
        members = frame[frame["experiment"] == experiment]
        more = splitting(members, ["method.label", "method.rank"], runs.settings)
        styles: dict[str, Iterator[str]] = defaultdict(lambda: iter(STYLES))
        for folder, run in zip(members.index, members.to_dict("records"), strict=True):
            style = next(styles[run["method.label"]], None)
            if style is None or len(drawn.get(experiment, ())) == MAX_CURVES:
                hidden[experiment] += 1
            elif (log := _read_log(Path(folder) / "loss.jsonl", problems)) is not None:
                values = [(key.rpartition(".")[2], shown_value(run[key])) for key in more]
                words = [run["method.label"], shown_value(run["method.rank"])]
                words += [f"{key} {value}" for key, value in values if value != MISSING]
                drawn.setdefault(experiment, []).append((" ".join(words), style, run, log))
    if not drawn:
        return None
    figure, axes = panels(len(drawn), 5.0, 3.0)
    entries: dict[str, Any] = {}
    for axis, (experiment, curves) in zip(axes, drawn.items(), strict=True):
        for name, style, run, log in curves:
            ink = colour(run["method.name"], run["method.label"])
            if "loss" in log and len(losses := _smooth(log[["step", "loss"]].dropna())):
                (line,) = axis.plot(losses["step"], losses["loss"], style, color=ink, linewidth=1.2)
                entries[name] = line
            if "eval_loss" in log:
                held = log[["step", "eval_loss"]].dropna()
                axis.plot(held["step"], held["eval_loss"], "o", color=ink, markersize=3)
        cut = f" ({hidden[experiment]} more not drawn)" if hidden[experiment] else ""
        axis.set_title(experiment + cut, color=INK)
        axis.set_xlabel("optimizer step")
        axis.set_ylabel("loss, nats per token")
    return with_legend(figure, entries)


def _read_log(file: Path, problems: list[Problem]) -> pd.DataFrame | None:
    """The loss log of a run, or None if it has none to draw."""
    try:
        if file.stat().st_size > MAX_LOG_BYTES:
            return None
        log = pd.DataFrame(read_losses(file))
    except (UserError, OSError) as error:
        what = f"line {error.line}: {error.reason}" if isinstance(error, DataError) else error
        problems.append(Problem(str(file.parent), f"{file.name} is not drawn: {what}"))
        return None
    log = log[[c for c in ("step", "loss", "eval_loss") if c in log]]
    return log.apply(pd.to_numeric, errors="coerce") if len(log) > 1 else None


def _smooth(log: pd.DataFrame) -> pd.DataFrame:
    """Means over stretches, at most MAX_POINTS of them."""
    stretch = math.ceil(len(log) / MAX_POINTS) or 1
    return log.groupby([i // stretch for i in range(len(log))]).mean()
