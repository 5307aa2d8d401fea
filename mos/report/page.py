"""From run folders to all that is written, and the report as one HTML file without others."""

from __future__ import annotations

import base64
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import pandas as pd
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from mos.adapters import METHODS
from mos.errors import unknown
from mos.files import output
from mos.report import formats, paper, plots
from mos.report.claims import Verdict, judge
from mos.report.formats import Sheet
from mos.report.paper import HELDOUT, Column
from mos.report.pivot import Pivot, pivot, sweeps
from mos.report.runs import LEFT_OUT, NOTED, REFUSED, Problem, Runs, read_runs, select
from mos.report.tables import CELLS, Filled, fill_table, paper_frame, paper_sheets

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_LISTED = 300


@dataclass
class Report:
    """What a set of runs comes to.

    Attributes:
        runs: the usable ones, all of one scale.
        filled: the paper's tables of which a row was run, for each model, by the name of their
            files.
        sweeps: a table for each model and experiment with several settings.
        grouped: that of `rows` and `columns`, if these were given.
        problems: everything refused, left out or to be known.
    """

    sources: list[str]
    runs: Runs
    filled: dict[str, Filled]
    sweeps: list[Pivot]
    grouped: Pivot | None
    verdicts: list[Verdict]
    problems: list[Problem]
    plots: list[plots.Plot] = field(default_factory=list)
    plots_missing: str = ""

    @property
    def cells(self) -> pd.DataFrame:
        """The runs behind each cell of all tables, as `mos.report.tables.CELLS`."""
        pivots = [*([self.grouped] if self.grouped else []), *self.sweeps]
        tables = [*self.filled.values(), *(pivot.cells for pivot in pivots)]
        return pd.concat([pd.DataFrame(columns=CELLS), *(table.cells[CELLS] for table in tables)])

    @property
    def sheets(self) -> dict[str, list[Sheet]]:
        """All tables, by the name of their files."""
        found = {"grouped": [self.grouped.sheet]} if self.grouped else {}
        found |= {"sweep": [pivot.sheet for pivot in self.sweeps]} if self.sweeps else {}
        return found | {name: paper_sheets(filled) for name, filled in self.filled.items()}

    @property
    def counts(self) -> dict[str, int]:
        """Run folders: found; used, left out and refused, which add up to them; and of those used:
        in the paper's tables; remarks on them."""
        used = set(self.runs.long["run"])
        lost = {p.where: p.consequence for p in self.problems if p.where not in used}
        refused = sum(consequence == REFUSED for consequence in lost.values())
        return {
            "found": self.runs.folders,
            "used": len(used),
            LEFT_OUT: self.runs.folders - len(used) - refused,
            REFUSED: refused,
            "tabulated": len({run for table in self.filled.values() for run in table.cells["run"]}),
            NOTED: sum(problem.consequence == NOTED for problem in self.problems),
        }


def build(
    sources: Sequence[str],
    *,
    scale: str = "auto",
    model: str = "auto",
    partial: bool = False,
    where: str | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    value: str | None = None,
    yardstick: str | None = None,
) -> Report:
    """Read runs, select, fill the paper's tables and judge its claims.

    Args:
        sources: see `mos.report.runs.read_runs`.
        scale, model, partial, where: see `mos.report.runs.select`.
        rows, columns, value: see `mos.report.pivot.pivot`.
        yardstick: the metric (`heldout.loss`) that stands in the paper's tables, that its claims
            are judged on and sweeps are sorted by; None: the paper's, or the held-out loss where no
            run has any of these; of sweeps, see `mos.report.pivot.sweeps`.

    Raises:
        UserError: no runs, nothing of that scale or that `where` lets through, an unknown key.
    """
    problems: list[Problem] = []
    runs = select(read_runs(sources, problems), problems, scale, model, partial, where)
    for (label, method), own in runs.long.groupby(["label", "method"], sort=False):
        if method not in METHODS:
            reason = f"no method {method!r} is known here ({own['run'].nunique()} run(s))"
            problems.append(Problem(f"row {label}", reason))
    instead = _yardstick(runs, yardstick)
    filled: dict[str, Filled] = {}
    homes = {table.model for table in paper.TABLES}
    for table in paper.TABLES:
        # The paper's model first, then the commonest; another table's model is for that one.
        for name in sorted(dict.fromkeys(runs.long["model"]), key=lambda m: m != table.model):
            if name != table.model and (name in homes or table is paper.TABLE3):
                continue
            slug = re.sub(r"[^\w.]+", "-", name)
            file = f"{table.name}-{slug}" if table.name in filled else table.name
            found = fill_table(table, runs, problems, name, file, instead)
            filled |= {file: found} if len(found.cells) else {}
    verdicts = [verdict for table in filled.values() for verdict in judge(table, problems)]
    grouped = pivot(runs, rows, columns, value) if (rows or columns) and len(runs.long) else None
    swept = list(sweeps(runs, problems, yardstick))
    problems = list(dict.fromkeys(problems))
    return Report(list(sources), runs, filled, swept, grouped, verdicts, problems)


def _yardstick(runs: Runs, key: str | None) -> list[Column]:
    """The columns that stand in for the paper's; [] for the paper's."""
    columns = runs.columns
    if key is None:
        measured = {c.key for c in columns}
        if HELDOUT.key not in measured or not measured.isdisjoint(c.key for c in paper.COLUMNS):
            return []
        key = HELDOUT.key
    chosen = [c for c in columns if c.key == key]
    if not chosen:
        raise unknown("yardstick", key, {c.key for c in columns})
    return chosen


def write(report: Report, out: str | Path, with_plots: bool = True) -> list[Path]:
    """Write tables, cells, claims, problems, runs, plots and the HTML report into a folder.

    Raises:
        UserError: the folder has such files that mos did not write, or cannot be written.
    """
    files: dict[str, str] = {}
    for name, sheets in report.sheets.items():
        files[f"{name}.md"] = formats.markdown(sheets)
        files[f"{name}.tex"] = formats.latex(sheets, name)
        below = pd.concat([sheet.frame.assign(sweep=sheet.title[6:]) for sheet in sheets])
        frame = paper_frame(sheets) if name in report.filled else below
        files[f"{name}.csv"] = formats.to_csv(frame)
    if report.verdicts:
        claims = "".join(f"- {verdict.table}: {verdict}\n" for verdict in report.verdicts)
        files["claims.md"] = f"# Claims of the paper\n\n{claims}"
    problems = [(p.consequence, p.where, p.reason) for p in report.problems]
    header = ["consequence", "where", "reason"]
    files["problems.csv"] = formats.to_csv(pd.DataFrame(problems, columns=header))
    files["cells.csv"] = formats.to_csv(report.cells)
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
    if not plots.available():
        report.plots_missing = (
            "No plots: matplotlib is not installed (pip install 'mos-tuning[report]')."
        )
        return
    tables = [("grouped", report.grouped)] if report.grouped else []
    for number, sweep in enumerate(report.sweeps):
        tables.append((f"sweep-{number + 1}" if number else "sweep", sweep))
    for name, table in tables:
        caption = f"{table.column.title}: means over seeds."
        report.plots += plots.drawn(name, table.sheet.title, caption, plots.heat_plot, table)
    for name, filled in report.filled.items():
        if filled.table is not paper.TABLE1:
            report.plots += plots.drawn(
                name.replace(filled.table.name, "budget"),
                f"Quality over size, {filled.model}.",
                "Each method's ranks from left to right; bars are ±1 standard deviation over"
                " seeds. The vertical axis does not start at zero.",
                plots.budget_plot,
                filled,
            )


def _runs_table(runs: Runs) -> pd.DataFrame:
    """Every run with its metrics: runs.csv."""
    described = ["method.label", "method.rank", "method.trainable_parameters", "model"]
    described += ["experiment", "seed"]
    trained = ["train_loss", "seconds", "tokens_per_second", "peak_memory_bytes"]
    metrics = dict.fromkeys(column.key for column in runs.columns)
    keys = [*described, *metrics, *(f"train.{name}" for name in trained), "run_id"]
    frame = runs.wide.reindex(columns=keys)
    frame.columns = [k.removeprefix("method.").removeprefix("train.") for k in frame.columns]
    return frame.assign(path=frame.index)


def render(report: Report) -> str:
    """The page."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(TEMPLATE.read_text("utf-8"))
    sheets = [
        (name if not number else "", sheet)
        for name, own in report.sheets.items()
        for number, sheet in enumerate(own)
    ]
    runs = _runs_table(report.runs).head(MAX_LISTED)
    return template.render(
        report=report,
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        sheets=[(name, sheet, formats.html(sheet)) for name, sheet in sheets],
        verdicts=Counter(verdict.verdict for verdict in report.verdicts),
        plots=[(plot, _image(plot.svg, plot.title)) for plot in report.plots],
        problems=report.problems[:MAX_LISTED],
        runs=formats.html(Sheet("Runs", runs.astype(str), texts=runs.shape[1])),
        max_listed=MAX_LISTED,
    )


def _image(svg: str, alt: str) -> Markup:
    data = base64.b64encode(svg.encode()).decode()
    return Markup('<img alt="{}" src="data:image/svg+xml;base64,{}">').format(alt, data)
