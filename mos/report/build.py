"""From run folders to everything that is written: the steps between reading and formatting."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mos.errors import UserError
from mos.files import write_atomically
from mos.report import paper, plots, tables
from mos.report.aggregate import Group, group_runs
from mos.report.claims import Verdict, judge
from mos.report.filled import Filled, fill_table, other_groups, unknown_labels
from mos.report.grouping import grouped_sheet
from mos.report.html import Report, render
from mos.report.reading import Reading
from mos.report.results import Problem, Result
from mos.report.selection import select
from mos.report.sheets import Sheet, other_rows, sheets


@dataclass
class Summary:
    """What a set of runs comes to.

    Attributes:
        results: the usable runs, all of one scale.
        filled: the paper's tables, in order.
        others: configurations that are in none of them.
        grouped: the table that `rows` and `columns` asked for.
        problems: everything refused, skipped or to be known.
    """

    scale: str
    folders: int
    results: list[Result]
    filled: list[Filled]
    others: list[Group]
    grouped: Sheet | None
    verdicts: list[Verdict]
    problems: list[Problem]
    sources: list[str] = field(default_factory=list)


def assemble(
    reading: Reading,
    *,
    scale: str = "auto",
    model: str = "auto",
    partial: bool = False,
    where: Callable[[Result], bool] | None = None,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    value: str | None = None,
) -> Summary:
    """Select, group, fill the paper's tables and judge its claims.

    Args:
        reading: from `mos.report.reading.read_runs`.
        scale, partial, where: see `mos.report.selection.select`.
        model: see `mos.report.filled.fill_table`.
        rows, columns, value: see `mos.report.grouping.grouped_sheet`.

    Raises:
        UserError: nothing of that scale, nothing that `where` lets through, an unknown key.
    """
    results, scale, left_out = select(reading.results, scale=scale, partial=partial, where=where)
    if where is not None and reading.results and not results:
        raise UserError(f"filter: none of the {len(reading.results)} usable runs passes it.")
    groups, notes = group_runs(results)
    problems = [*reading.problems, *left_out, *unknown_labels(groups), *notes]
    filled = []
    for table in paper.TABLES:
        one, notes = fill_table(table, groups, scale, model)
        filled.append(one)
        problems += notes
    verdicts, notes = judge(filled)
    problems += notes
    return Summary(
        scale=scale,
        folders=reading.folders,
        results=results,
        filled=filled,
        others=other_groups(groups, filled),
        grouped=grouped_sheet(results, rows, columns, value) if rows or columns else None,
        verdicts=verdicts,
        problems=list(dict.fromkeys(problems)),
    )


def write(summary: Summary, out: str | Path, with_plots: bool = True) -> list[Path]:
    """Write tables, claims, problems, runs and the HTML report into a folder; returns the files.

    Raises:
        UserError: the folder cannot be written.
    """
    out = Path(out)
    files: dict[str, str] = {}
    for filled in summary.filled:
        name, pages = filled.table.name, sheets(filled)
        files[f"{name}.md"] = tables.markdown(pages)
        files[f"{name}.tex"] = tables.latex(pages, name)
        files[f"{name}.csv"] = tables.paper_csv(filled)
    others = other_rows(summary.others)
    for name, sheet in (("others", others), ("grouped", summary.grouped)):
        if sheet is not None and sheet.rows:
            files[f"{name}.md"] = tables.markdown([sheet])
            files[f"{name}.tex"] = tables.latex([sheet], name)
            files[f"{name}.csv"] = tables.sheet_csv(sheet)
    files["claims.md"] = "# Claims of the paper\n\n" + "".join(
        f"- {verdict}\n" for verdict in summary.verdicts
    )
    files["problems.csv"] = _csv(
        ("consequence", "where", "reason"),
        ((p.consequence, p.where, p.reason) for p in summary.problems),
    )
    files["runs.csv"] = _runs_csv(summary.results)
    drawn, missing = _draw(summary) if with_plots else ([], "")
    report = Report(
        sources=summary.sources,
        scale=summary.scale,
        folders=summary.folders,
        results=summary.results,
        filled=summary.filled,
        verdicts=summary.verdicts,
        problems=summary.problems,
        others=others,
        grouped=summary.grouped,
        plots=drawn,
        plots_missing=missing,
    )
    files["report.html"] = render(report)
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_atomically(out / name, text)
    except OSError as error:
        raise UserError(f"out={out}: cannot write there ({error.strerror}).") from error
    return [out / name for name in files]


def _draw(summary: Summary) -> tuple[list[tuple[str, str, str]], str]:
    if not plots.available():
        return [], "No plots: matplotlib is not installed (pip install 'mos-tuning[report]')."
    main = summary.filled[1]
    losses, problems = plots.loss_plot(summary.results)
    summary.problems += problems
    drawn = [
        (
            "Quality over size.",
            "Up and to the left is better. Numbers are ranks, bars ±1 std over seeds.",
            plots.budget_plot(main, summary.others),
        ),
        (
            "Ablations.",
            "95 % t intervals over seeds; diamonds are the paper's; the axis is cut.",
            plots.ablation_plot(main),
        ),
        ("Training loss.", "One seed a method, smoothed.", losses),
        ("Sweeps.", "Mean of a run's own metrics.", plots.sweep_maps(summary.results)),
    ]
    return [(title, what, svg) for title, what, svg in drawn if svg], ""


def _runs_csv(results: Iterable[Result]) -> str:
    described = ("label", "rank", "trainable_parameters", "model", "experiment", "seed")
    trained = ("train_loss", "seconds", "tokens_per_second", "peak_memory_bytes")
    header = (*described, *(column.key for column in paper.COLUMNS), *trained, "run_id", "path")
    lines = (
        (
            *(getattr(run, name) for name in described),
            *(run.metrics.get(c.benchmark, {}).get(c.metric, "") for c in paper.COLUMNS),
            *(run.train.get(name, "") for name in trained),
            run.run_id,
            run.path,
        )
        for run in results
    )
    return _csv(header, lines)


def _csv(header: Sequence[str], lines: Iterable[Sequence[object]]) -> str:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(lines)
    return buffer.getvalue()
