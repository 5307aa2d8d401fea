"""The paper's tables from runs: `python -m mos.summarize runs=outputs out=outputs/summary`."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from mos.__main__ import command
from mos.config import resolved
from mos.console import console, say
from mos.files import check_output
from mos.runs import find_runs

if TYPE_CHECKING:
    from rich.table import Table

    from mos.report.page import Report
    from mos.report.runs import Problem
    from mos.report.tables import Filled

SHOWN_KINDS = 8


def summarize(cfg: DictConfig) -> Report:
    """Read runs, write tables and the report, print the short of it.

    Args:
        cfg: configs/summarize/summarize.yaml composed with overrides.

    Raises:
        UserError: no runs there, an impossible filter or key, a folder that cannot be written.
    """
    config = resolved(cfg)
    del config["select"]  # other names
    out, plots = config.pop("out"), config.pop("plots")
    sources = _names(config.pop("runs"))
    always = ("table?.*", "cells.csv", "claims.md", "problems.csv", "runs.csv", "report.html")
    check_output(out, "summarize", always)
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

    shown = [_short(filled) for filled in report.filled.values() if len(filled.cells)]
    if report.pivot or not shown:
        shown = [terminal(sheet) for sheet in list(report.sheets.values())[:1]]
    for table in shown:
        width = console.width
        console.width = 10_000  # a table is as wide as its words; the terminal breaks its lines
        console.print(table)
        console.width = width
        console.print()
    counts = report.counts
    say(
        f"{counts['used']} of {counts['found']} run folders used (scale {report.runs.scale}), "
        f"{counts['tabulated']} of them in the paper's tables; "
        f"{counts[LEFT_OUT]} left out, {counts[REFUSED]} refused"
    )
    if report.runs.scores.empty and any("is partial" in p.reason for p in report.problems):
        say("all benchmarks were cut (eval.limit): partial=true tabulates them")
    verdicts = Counter(verdict.verdict for verdict in report.verdicts)
    say("claims: " + ", ".join(f"{n} {verdict}" for verdict, n in verdicts.items()))
    kinds: dict[tuple[str, str], list[Problem]] = {}
    for problem in report.problems:
        kinds.setdefault((problem.consequence, problem.reason), []).append(problem)
    for alike in list(kinds.values())[:SHOWN_KINDS]:
        more = f" (and {len(alike) - 1} more)" if len(alike) > 1 else ""
        say(f"{alike[0]}{more}")
    if len(kinds) > SHOWN_KINDS:
        rest = sum(len(alike) for alike in list(kinds.values())[SHOWN_KINDS:])
        say(f"... and {rest} more in {out}/problems.csv")
    names = ", ".join(["table1-3", *report.sheets])
    say(
        f"written: {out}/report.html; {names} as .md, .tex, .csv; cells.csv, claims.md, runs.csv,"
        " problems.csv" + (f"; plots/ ({len(report.plots)}) as .svg, .pdf" if report.plots else "")
    )


def _short(filled: Filled) -> Table:
    """The rows of a table that have results."""
    from mos.report.formats import terminal
    from mos.report.tables import shown_means

    sheet = shown_means(filled)
    run = [row.name in filled.about.index for row in filled.table.rows]
    marks = sheet.marks[run] if sheet.marks is not None else None
    missing = f"; {run.count(False)} of {len(run)} rows not run" if not all(run) else ""
    cut = f"; PARTIAL ({filled.cut})" if filled.cut else ""
    seeds = f"{filled.seeds} seed{'s' * (filled.seeds != 1)}"
    caption = f"{filled.model}, scale {filled.scale}, means over {seeds}{missing}{cut}"
    return terminal(replace(sheet, frame=sheet.frame[run], marks=marks), caption)


@command("summarize")
def main(cfg: DictConfig) -> None:
    """The command line around `summarize`: exit status 1 if a run was refused."""
    report = summarize(cfg)
    if report.counts["refused"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
