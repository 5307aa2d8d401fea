"""Sweeps over learning rates: each method's best rate, and what one rate for all gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from mos.report.cells import HELDOUT, MISSING, Cell, Column, mean_and_spread
from mos.report.figures import INK, MARKERS, MAX_PANELS, colour, panels, plot, with_legend
from mos.report.pivot import run_average, shown_value, splitting
from mos.report.runs import Runs
from mos.report.sheets import Sheet

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RATE, VALIDATION = "trainer.learning_rate", "train.eval_loss"
LOSS = Column("train", "eval_loss", "Validation loss", lower_is_better=True)


@dataclass(frozen=True)
class Curve:
    """What a setup loses on validation examples at each learning rate.

    Attributes:
        name: of the setup: label, rank, and whatever else tells it from the other curves.
        losses: by rate, in their order.
        scores: what the tables show, by rate.
    """

    name: str
    label: str
    method: str
    experiment: str
    losses: dict[float, Cell]
    scores: dict[float, Cell | None]

    @property
    def best(self) -> float:
        return min(self.losses, key=lambda rate: self.losses[rate].mean)

    @property
    def at_edge(self) -> bool:
        """Whether a better rate may lie outside of the grid."""
        return self.best in (min(self.losses), max(self.losses))


def rate_curves(runs: Runs) -> list[Curve]:
    """A curve for each setup, its learning rate aside, that was run at two rates or more."""
    frame = runs.frame
    if RATE not in frame or VALIDATION not in frame:
        return []
    rate, loss = (pd.to_numeric(frame[key], errors="coerce") for key in (RATE, VALIDATION))
    frame = frame.assign(**{RATE: rate, VALIDATION: loss, "score": _shown(runs)[1]})
    frame = frame[rate.notna() & loss.notna()]
    others = [key for key in runs.settings if key != RATE]
    curves = frame.groupby(others, dropna=False, sort=False)
    frame = frame.assign(curve=curves.ngroup())[curves[RATE].transform("nunique") > 1]
    names = ["method.label", "method.rank"]
    names += splitting(frame.drop_duplicates("curve").assign(setup=frame["curve"]), names, others)
    found = []
    for _, members in frame.groupby("curve", sort=False):
        first = members.iloc[0]
        by_rate: dict[Any, pd.DataFrame] = {
            value: part.set_index("seed") for value, part in members.groupby(RATE)
        }
        losses = {value: Cell.of(part[VALIDATION]) for value, part in by_rate.items()}
        found.append(
            Curve(
                name=" ".join(shown_value(first[key]) for key in names),
                label=first["method.label"],
                method=first["method.name"],
                experiment=first["experiment"],
                losses={value: cell for value, cell in losses.items() if cell},
                scores={value: Cell.of(part["score"]) for value, part in by_rate.items()},
            )
        )
    return sorted(found, key=lambda curve: (curve.experiment, curve.name))


def _shown(runs: Runs) -> tuple[Column, pd.Series]:
    """What the tables show of a run: the mean of its metrics, or its held-out loss without any."""
    if all(c.benchmark == HELDOUT.benchmark for c in runs.columns):
        return HELDOUT, runs.frame[HELDOUT.key]
    return Column("run", "average", "Average of a run"), run_average(runs)


def rates_sheet(runs: Runs, curves: Sequence[Curve]) -> Sheet:
    """Validation loss at each rate, and the score at each method's own and at one rate for all.

    One rate for all is the paper's way: LoRA's best, or else the one with the lowest mean loss.
    """
    column, _ = _shown(runs)
    grid = sorted({rate for curve in curves for rate in curve.losses})
    common = {}
    for experiment in {curve.experiment for curve in curves}:
        own = [curve for curve in curves if curve.experiment == experiment]
        reference = [curve for curve in own if curve.label == "LoRA"] or own
        shared = set.intersection(*(set(curve.losses) for curve in reference))
        means = {r: sum(c.losses[r].mean for c in reference) for r in shared}
        common[experiment] = min(means, key=means.__getitem__, default=None)
    rows, marks = [], []
    for curve in curves:
        one = common[curve.experiment]
        edge = " (edge)" if curve.at_edge else ""
        rows.append(
            [
                *(curve.experiment, curve.name),
                *(mean_and_spread(curve.losses.get(rate), LOSS) for rate in grid),
                f"{curve.best:g}{edge}",
                mean_and_spread(curve.scores[curve.best], column),
                MISSING if one is None else f"{one:g}",
                mean_and_spread(curve.scores.get(one) if one is not None else None, column),
            ]
        )
        best = ["bold" if rate == curve.best else "" for rate in grid]
        marks.append(["", "", *best, "", "", "", ""])
    header = ["Experiment", "Method", *(f"{rate:g}" for rate in grid)]
    header += ["Own best", f"{column.title} (at its own)", "One for all", f"{column.title} (at it)"]
    notes = [
        "Validation loss (nats per token) by learning rate: mean ±standard deviation (seeds). "
        "Bold: the best rate. (edge): at the edge of the grid, a better rate may lie outside.",
    ]
    if column is HELDOUT and not runs.frame.get("data.test_size", pd.Series([0])).fillna(0).all():
        notes.append(
            "Without data.test_size, rates are chosen on the examples that the held-out loss is of."
        )
    frame, style = pd.DataFrame(rows, columns=header), pd.DataFrame(marks, columns=header)
    return Sheet("Learning rates", frame, style, notes, texts=2)


@plot(
    "rates",
    "Learning rates.",
    "Validation loss; bars are ±1 standard deviation over seeds. Stars: the best rate, hollow "
    "where it lies at the edge of the grid: a better one may lie outside.",
)
def rates_plot(curves: Sequence[Curve]) -> Figure | None:
    """Validation loss over the learning rate (log axis), one panel an experiment."""
    experiments = sorted({curve.experiment for curve in curves})[:MAX_PANELS]
    if not experiments:
        return None
    figure, axes = panels(len(experiments), 5.0, 3.4)
    entries: dict[str, Any] = {}
    for axis, experiment in zip(axes, experiments, strict=True):
        own = [curve for curve in curves if curve.experiment == experiment]
        for number, curve in enumerate(own):
            ink, cells = colour(curve.method, curve.label), list(curve.losses.values())
            entries[curve.name] = axis.errorbar(
                list(curve.losses), [c.mean for c in cells], yerr=[c.std or 0.0 for c in cells],
                fmt=MARKERS[number % len(MARKERS)], linestyle="-", color=ink, capsize=2.5,
                markersize=4.5, linewidth=1.2,
            )  # fmt: skip
            axis.plot(
                curve.best, curve.losses[curve.best].mean, "*", markersize=15, zorder=4,
                markerfacecolor="white" if curve.at_edge else ink, markeredgecolor=ink,
            )  # fmt: skip
        axis.set_xscale("log")
        rates = sorted({rate for curve in own for rate in curve.losses})
        axis.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=30 * (len(rates) > 5))
        axis.minorticks_off()
        axis.set_title(experiment, color=INK)
        axis.set_xlabel("learning rate (log scale)")
        axis.set_ylabel("validation loss, nats per token")
    return with_legend(figure, entries)
