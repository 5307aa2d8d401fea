"""What the terminal shows of a report."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from eval import BENCHMARKS
from mos.console import console, say
from mos.report.build import Report
from mos.report.formats import terminal
from mos.report.results import LEFT_OUT, REFUSED, Problem
from mos.report.sheets import Sheet, measured
from mos.report.tables import Filled

SHOWN_KINDS = 8


def show(report: Report, out: str) -> None:
    """Print the tables that have results, and what was left out, refused and written to `out`."""
    extra = report.sheets
    shown = [terminal(_run_rows(f), _caption(f)) for f in report.filled if not f.empty]
    if "grouped" in extra:
        shown = [terminal(extra["grouped"])]
    elif not shown and "others" in extra:
        shown = [terminal(extra["others"])]
    for table in shown:
        width = console.width
        console.width = 10_000  # a table is as wide as its words; the terminal breaks its lines
        console.print(table)
        console.width = width
        console.print()
    counts = report.counts
    say(
        f"{counts['used']} of {counts['found']} run folders used (scale {report.runs.scale}), "
        f"{report.tabulated} of them in the paper's tables; "
        f"{counts[LEFT_OUT]} left out, {counts[REFUSED]} refused"
    )
    whole = any(column.benchmark in BENCHMARKS for column in report.runs.columns)
    if not whole and any("is partial" in p.reason for p in report.problems):
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
    names = ", ".join(["table1-3", *extra])
    say(
        f"written: {out}/report.html; {names} as .md, .tex, .csv; claims.md, runs.csv, problems.csv"
        + (f"; plots/ ({len(report.plots)}) as .svg, .pdf" if report.plots else "")
    )


def _run_rows(filled: Filled) -> Sheet:
    """The rows of a table that have results."""
    sheet = measured(filled)
    run = [line.group is not None for line in filled.lines]
    marks = sheet.marks[run] if sheet.marks is not None else None
    return replace(sheet, frame=sheet.frame[run], marks=marks)


def _caption(filled: Filled) -> str:
    seeds = f"{filled.seeds} seed{'s' * (filled.seeds != 1)}"
    absent = sum(line.group is None for line in filled.lines)
    missing = f"; {absent} of {len(filled.lines)} rows not run" if absent else ""
    cut = f"; PARTIAL ({filled.cut})" if filled.cut else ""
    return f"{filled.model}, scale {filled.scale}, means over {seeds}{missing}{cut}"
