"""From run folders to everything that is written: the steps between reading and formatting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from mos.errors import unknown
from mos.files import output
from mos.methods import METHODS
from mos.report import figures, formats, paper
from mos.report.cells import HELDOUT, Column
from mos.report.claims import Verdict, judge
from mos.report.groups import Group, group_runs, spread
from mos.report.html import render
from mos.report.losses import loss_plot
from mos.report.pivot import pivot
from mos.report.plots import ablation_plot, budget_plot, sweep_maps
from mos.report.rates import Curve, rate_curves, rates_plot, rates_sheet
from mos.report.results import LEFT_OUT, NOTED, REFUSED, Problem
from mos.report.runs import read_runs
from mos.report.select import Selected, select
from mos.report.sheets import Sheet, other_rows, paper_sheets
from mos.report.tables import Filled, fill_table, other_groups


@dataclass
class Report:
    """What a set of runs comes to.

    Attributes:
        runs: the usable ones, all of one scale.
        filled: the paper's tables, in order.
        others: configurations that are in none of them.
        sheets: the tables besides the paper's that have rows, by the name of their files.
        curves: the sweeps over learning rates.
        problems: everything refused, left out or to be known.
    """

    sources: list[str]
    runs: Selected
    filled: list[Filled]
    others: list[Group]
    sheets: dict[str, Sheet]
    verdicts: list[Verdict]
    curves: list[Curve]
    problems: list[Problem]
    plots: list[figures.Plot] = field(default_factory=list)
    plots_missing: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """How many run folders were found, used, left out and refused: the last three add up."""
        used = set(self.runs.frame.index)
        lost = {p.where: p.consequence for p in self.problems if p.where not in used}
        refused = sum(consequence == REFUSED for consequence in lost.values())
        left = self.runs.folders - len(used) - refused
        return {"found": self.runs.folders, "used": len(used), LEFT_OUT: left, REFUSED: refused}

    @property
    def tabulated(self) -> int:
        """How many of the used runs stand in the paper's tables."""
        cells = (
            line.group.folders_of(column)
            for table in self.filled
            for line in table.lines
            for column in table.table.columns
            if line.group
        )
        return len({folder for cell in cells for folder in cell.values()})

    @property
    def noted(self) -> int:
        """How many remarks there are on runs that are used."""
        return sum(problem.consequence == NOTED for problem in self.problems)


def build(
    sources: Sequence[str],
    *,
    since: str | None = None,
    scale: str = "auto",
    model: str = "auto",
    partial: bool = False,
    where: str | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    value: str | None = None,
    yardstick: str | None = None,
) -> Report:
    """Read runs, select, group, fill the paper's tables and judge its claims.

    Args:
        sources, since: see `mos.report.runs.read_runs`.
        scale, partial, where: see `mos.report.select.select`.
        model: see `mos.report.tables.fill_table`.
        rows, columns, value: see `mos.report.pivot.pivot`.
        yardstick: the metric (`heldout.loss`) that stands in the paper's tables and that its claims
            are judged on; None: the paper's, or the held-out loss where no run has any of these.

    Raises:
        UserError: no runs, nothing of that scale or that `where` lets through, an unknown key.
    """
    problems: list[Problem] = []
    runs = select(read_runs(sources, problems, since), problems, scale, partial, where)
    groups = group_runs(runs, problems)
    for group in groups:
        if group.method not in METHODS:
            reason = f"no method {group.method!r} is known here ({group.runs} run(s))"
            problems.append(Problem(f"row {group.label}", reason))
    instead = _yardstick(runs, yardstick)
    filled = [
        fill_table(table, groups, runs, problems, model=model, yardstick=instead)
        for table in paper.TABLES
    ]
    verdicts = judge(filled, problems)
    others = other_groups(groups, filled)
    problems = list(dict.fromkeys(problems))
    curves = rate_curves(runs)
    wanted = (rows or columns) and len(runs.frame)
    sheets = {"grouped": pivot(runs, rows, columns, value)} if wanted else {}
    if curves:
        sheets["rates"] = rates_sheet(runs, curves)
    sheets["others"] = other_rows(others, spread(runs))
    sheets = {name: sheet for name, sheet in sheets.items() if len(sheet.frame)}
    return Report(list(sources), runs, filled, others, sheets, verdicts, curves, problems)


def _yardstick(runs: Selected, key: str | None) -> list[Column]:
    """The columns that stand in for the paper's; [] for the paper's."""
    columns = spread(runs)
    if key is None:
        measured = {c.key for c in runs.columns}
        if measured.isdisjoint(c.key for c in paper.COLUMNS) and HELDOUT.key in measured:
            key = HELDOUT.key
        else:
            return []
    chosen = [c for c in columns if c.key == key]
    if not chosen:
        raise unknown("yardstick", key, [c.key for c in columns])
    return chosen


def write(report: Report, out: str | Path, with_plots: bool = True) -> list[Path]:
    """Write tables, claims, problems, runs, plots and the HTML report into a folder.

    Raises:
        UserError: the folder has such files that mos did not write, or cannot be written.
    """
    files: dict[str, str] = {}
    for filled in report.filled:
        name, pages = filled.table.name, paper_sheets(filled)
        files[f"{name}.md"] = formats.markdown(pages)
        files[f"{name}.tex"] = formats.latex(pages, name)
        files[f"{name}.csv"] = formats.paper_csv(filled)
    for name, sheet in report.sheets.items():
        files[f"{name}.md"] = formats.markdown([sheet])
        files[f"{name}.tex"] = formats.latex([sheet], name)
        files[f"{name}.csv"] = formats.to_csv(sheet.frame)
    files["claims.md"] = "# Claims of the paper\n\n" + "".join(
        f"- {verdict}\n" for verdict in report.verdicts
    )
    files["problems.csv"] = formats.to_csv(
        pd.DataFrame(
            [(p.consequence, p.where, p.reason) for p in report.problems],
            columns=["consequence", "where", "reason"],
        )
    )
    files["runs.csv"] = formats.to_csv(_runs_table(report.runs))
    if with_plots:
        _draw(report)
    files["report.html"] = render(report)
    with output(out, "summarize", files) as folder:
        (folder / "plots").mkdir()
        for name, text in files.items():
            (folder / name).write_text(text, "utf-8")
        for plot in report.plots:
            (folder / "plots" / f"{plot.name}.svg").write_text(plot.svg, "utf-8")
            (folder / "plots" / f"{plot.name}.pdf").write_bytes(plot.pdf)
    return [Path(out) / name for name in files]


def _draw(report: Report) -> None:
    if not figures.available():
        report.plots_missing = (
            "No plots: matplotlib is not installed (pip install 'mos-tuning[report]')."
        )
        return
    if report.runs.frame.empty:
        return
    main = report.filled[1]
    drawn = [
        budget_plot(main, report.others, spread(report.runs)),
        ablation_plot(main),
        rates_plot(report.curves),
        loss_plot(report.runs, report.problems),
        sweep_maps(report.runs),
    ]
    report.plots = [plot for plot in drawn if plot is not None]


def _runs_table(runs: Selected) -> pd.DataFrame:
    """Every run with its metrics: runs.csv."""
    described = ["method.label", "method.rank", "method.trainable_parameters", "model"]
    described += ["experiment", "seed"]
    trained = ["train_loss", "seconds", "tokens_per_second", "peak_memory_bytes"]
    keys = [*described, *(c.key for c in runs.columns), *(f"train.{name}" for name in trained)]
    frame = runs.frame.reindex(columns=[*keys, "run_id"])
    frame.columns = [k.removeprefix("method.").removeprefix("train.") for k in frame.columns]
    return frame.assign(path=frame.index)
