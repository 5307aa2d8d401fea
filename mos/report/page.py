"""From run folders to all that is written, and the report as one HTML file without others."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Iterable, Sequence
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
from mos.report.pivot import Pivot, pivot
from mos.report.runs import LEFT_OUT, NOTED, REFUSED, Problem, Runs, read_runs, select
from mos.report.tables import (
    CELLS,
    Filled,
    fill_table,
    paper_frame,
    paper_sheets,
)

TEMPLATE = Path(__file__).with_name("report.html.j2")
MAX_LISTED = 300


@dataclass
class Report:
    """What a set of runs comes to.

    Attributes:
        runs: the usable ones, all of one scale.
        filled: the paper's tables, by name.
        cells: the runs behind each cell of all tables, as `mos.report.tables.CELLS`.
        sheets: the tables besides the paper's that have rows, by the name of their files.
        pivot: that of `rows` and `columns`, if these were given.
        problems: everything refused, left out or to be known.
    """

    sources: list[str]
    runs: Runs
    filled: dict[str, Filled]
    cells: pd.DataFrame
    sheets: dict[str, Sheet]
    pivot: Pivot | None
    verdicts: list[Verdict]
    problems: list[Problem]
    plots: list[plots.Plot] = field(default_factory=list)
    plots_missing: str = ""

    @property
    def counts(self) -> dict[str, int]:
        """Run folders: found; used, left out and refused, which add up to them; and of those used:
        in the paper's tables; remarks on them."""
        used = set(self.runs.runs.index)
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
    """Read runs, select, fill the paper's tables and judge its claims.

    Args:
        sources, since: see `mos.report.runs.read_runs`.
        scale, partial, where: see `mos.report.runs.select`.
        model: see `mos.report.tables.fill_table`.
        rows, columns, value: see `mos.report.pivot.pivot`.
        yardstick: the metric (`heldout.loss`) that stands in the paper's tables and that its claims
            are judged on; None: the paper's, or the held-out loss where no run has any of these.

    Raises:
        UserError: no runs, nothing of that scale or that `where` lets through, an unknown key.
    """
    problems: list[Problem] = []
    runs = select(read_runs(sources, problems, since), problems, scale, partial, where)
    for (label, method), own in runs.long.groupby(["label", "method"], sort=False):
        if method not in METHODS:
            reason = f"no method {method!r} is known here ({own['run'].nunique()} run(s))"
            problems.append(Problem(f"row {label}", reason))
    instead = _yardstick(runs, yardstick)
    filled = {
        table.name: fill_table(table, runs, problems, model=model, yardstick=instead)
        for table in paper.TABLES
    }
    verdicts = judge(list(filled.values()), problems)
    by_keys = pivot(runs, rows, columns, value) if (rows or columns) and len(runs.runs) else None
    others = _others(runs, filled.values())
    sheets = {p.name: p.sheet for p in (by_keys, others) if p}
    tables = [*filled.values(), *(p.cells for p in (by_keys, others) if p)]
    cells = pd.concat([table.cells[CELLS] for table in tables])
    problems = list(dict.fromkeys(problems))
    return Report(list(sources), runs, filled, cells, sheets, by_keys, verdicts, problems)


def _others(runs: Runs, filled: Iterable[Filled]) -> Pivot | None:
    """The runs that stand in none of the paper's tables, a row a setup."""
    tabulated = {run for table in filled for run in table.cells["run"]}
    rest = runs.runs[~runs.runs.index.isin(tabulated)]
    if rest.empty:
        return None
    rows = ["model", "method.label", "method.rank", "method.trainable_parameters"]
    known = [key for key in rows if rest[key].notna().any()]
    return pivot(runs.only(rest), known, name="others")


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
    labels = [
        name for table in paper.TABLES for row in table.rows for name in (row.label, row.name)
    ]
    files: dict[str, str] = {}
    pages = {name: paper_sheets(filled) for name, filled in report.filled.items()}
    for name, sheets in {**pages, **{n: [sheet] for n, sheet in report.sheets.items()}}.items():
        files[f"{name}.md"] = formats.markdown(sheets)
        files[f"{name}.tex"] = formats.latex(sheets, name)
        files[f"{name}.csv"] = formats.to_csv(paper_frame(sheets), labels)
    claims = "".join(f"- {verdict}\n" for verdict in report.verdicts)
    files["claims.md"] = f"# Claims of the paper\n\n{claims}"
    problems = [(p.consequence, p.where, p.reason) for p in report.problems]
    header = ["consequence", "where", "reason"]
    files["problems.csv"] = formats.to_csv(pd.DataFrame(problems, columns=header))
    files["cells.csv"] = formats.to_csv(report.cells, labels)
    files["runs.csv"] = formats.to_csv(_runs_table(report.runs), labels)
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
    main, by_keys = report.filled[paper.TABLE2.name], report.pivot
    if by_keys:
        report.plots += plots.drawn(
            "grouped",
            by_keys.sheet.title,
            "Means over the seeds of one setup; bars are ±1 standard deviation, a star is a line's"
            " best.",
            lambda: plots.pivot_plot(by_keys),
        )
    report.plots += plots.drawn(
        "budget",
        "Quality over size.",
        "Each method's ranks from left to right as in the legend; bars are ±1 standard deviation"
        " over seeds. The vertical axis does not start at zero.",
        lambda: plots.budget_plot(main, report.runs),
    )
    report.plots += plots.drawn(
        "ablations",
        "Ablations.",
        "95 % t intervals over seeds; diamonds are the paper's. The axis does not start at zero.",
        lambda: plots.ablation_plot(main),
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
    sheets = [("grouped", report.sheets["grouped"])] if report.pivot else []
    for name, filled in report.filled.items():
        sheets += [(name if not k else "", sheet) for k, sheet in enumerate(paper_sheets(filled))]
    sheets += [("others", report.sheets["others"])] if "others" in report.sheets else []
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
