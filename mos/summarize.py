"""Runs -> tables, plots and a report: `python -m mos.summarize runs=outputs out=DIR`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mos.__main__ import command
from mos.config import resolved
from mos.console import say
from mos.errors import UserError
from mos.files import check_output
from mos.runs import find_runs, show_table

if TYPE_CHECKING:
    from rich.table import Table

    from mos.report.page import Report
    from mos.report.runs import Problem
    from mos.report.tables import Filled

SHOWN_KINDS = 8
LINE = 150  # characters of a remark; problems.csv has all


def summarize(cfg: DictConfig) -> Report:
    """Read runs, write tables and the report, print the short of it.

    Args:
        cfg: configs/summarize/summarize.yaml composed with overrides.

    Raises:
        UserError: no runs there, an impossible filter or key, a folder that cannot be written.
    """
    config = resolved(cfg)
    out, plots = config.pop("out"), config.pop("plots")
    sources = _names(config.pop("runs"))
    always = ("table?.*", "sweep.*", "*s.csv", "claims.md", "report.html")
    check_output(out, "summarize", always)
    if not sources:
        raise UserError("runs= selects nothing: name a folder of runs, a glob or a list.")
    say(f"run folders found: {len(find_runs(sources))}")

    # pandas takes a second to import.
    from mos.report.page import build, write

    report = build(
        sources,
        rows=_names(config.pop("rows")),
        columns=_names(config.pop("columns")),
        where=config.pop("filter"),
        **config,
    )
    write(report, out, plots)
    show(report, out)
    return report


def _names(given: str | list[str] | None) -> list[str]:
    """ "a,b" or a list as a list of names."""
    items = given.split(",") if isinstance(given, str) else given or []
    return [str(item).strip() for item in items if str(item).strip()]


def show(report: Report, out: str) -> None:
    """Print the tables that have results, and what was left out, refused and written to `out`."""
    from mos.report.formats import terminal
    from mos.report.runs import LEFT_OUT, REFUSED

    tabulated = {run for filled in report.filled.values() for run in filled.cells["run"]}
    shown = [terminal(report.grouped.sheet)] if report.grouped else []
    if not shown:
        # What stands in the paper's tables whole is not said twice.
        news = [p for p in report.sweeps if not tabulated.issuperset(p.cells.cells["run"])]
        shown = [p.printed for p in news] + [_short(f) for f in report.filled.values()]
    for table in shown:
        show_table(table)
    counts = report.counts
    say(
        f"{counts['used']} of {counts['found']} run folders used (scale {report.runs.scale}), "
        f"{counts['tabulated']} of them in the paper's tables; "
        f"{counts[LEFT_OUT]} left out, {counts[REFUSED]} refused"
    )
    if report.runs.long.empty and any("is partial" in p.reason for p in report.problems):
        say("no benchmark is whole: partial=true tabulates them")
    if report.verdicts:
        verdicts = Counter(verdict.verdict for verdict in report.verdicts)
        say("claims: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        kinds.setdefault((problem.consequence, problem.reason), []).append(problem)
    for (consequence, reason), alike in list(kinds.items())[:SHOWN_KINDS]:
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        line = f"{consequence}: {'/'.join(alike[0].where.split('/')[-3:])}{more}: {reason}"
        say(line if len(line) <= LINE else f"{line[: LINE - 1]}…")
    if len(kinds) > SHOWN_KINDS:
        rest = sum(len(alike) for alike in list(kinds.values())[SHOWN_KINDS:])
        say(f"... and {rest} more in {out}/problems.csv")
    claims = "claims.md, " if report.verdicts else ""
    say(
        f"written: {out}/report.html; {', '.join([*report.sheets, ''])[:-2] or 'no tables'} as"
        f" .md, .tex, .csv; cells.csv, {claims}runs.csv, problems.csv"
        + (f"; plots/ ({len(report.plots)}) as .svg, .pdf" if report.plots else "")
    )


def _short(filled: Filled) -> Table:
    """The rows of a table that were run, and what the means are."""
    from mos.report.formats import terminal
    from mos.report.tables import shown_means

    run = [line for line in filled.lines if line.name in filled.about.index]
    sheet = shown_means(replace(filled, lines=run, rows=[line.name for line in run]))
    return terminal(replace(sheet, notes=sheet.notes[: 1 + bool(filled.cut)]))


@command("summarize")
def main(cfg: DictConfig) -> None:
    """The command line around `summarize`: exit status 1 if a run was refused."""
    report = summarize(cfg)
    if report.counts["refused"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
