"""A table of runs: `mos runs [FOLDER ...]`, by default of outputs/. Nothing heavy is imported."""

from __future__ import annotations

import sys
import time
from datetime import timedelta

from rich.markup import escape
from rich.table import Column, Table

from mos.console import console, exit_on_user_error, printable
from mos.errors import UserError
from mos.records import Results
from mos.run import Run
from mos.runs import find_runs, read_losses

USAGE = """usage: mos runs [FOLDER or glob ...]

A line a run: state, steps, age, scores; and why some failed or stopped."""


def show_runs(runs: list[Run], reasons: bool = True) -> None:
    """Print a line a run: what it is, how far, how good, how old.

    Args:
        reasons: also print, below, why some stopped.
    """
    table = Table("run", "state", Column("step", justify="right"), "age", "scores", box=None)
    table.columns[0].no_wrap = True
    stopped = []
    for run in runs:
        name = "/".join(run.path.parts[-2:])
        try:
            (state, reason), results = (run.state.status, run.state.reason), run.results
            logs = run.manifest.logs
            row = [state, _progress(run, results), _age(run), _scores(results)]
        except UserError as error:
            state, reason, logs, row = "new", str(error), [], ["damaged", "", "", ""]
        if reason and state != "trained":
            stopped.append("; ".join([f"{name}: {reason}", *logs[-2:]]))
        table.add_row(*(escape(printable(text)) for text in [name, *row]))
    console.print(table)
    for reason in stopped if reasons else ():
        console.print(printable(reason), markup=False, highlight=False)


def _progress(run: Run, results: Results | None) -> str:
    """Steps done, of how many where they are not all done."""
    if train := run.manifest.train or (results and results.train):
        return str(train.steps)
    lines = read_losses(run.path / "loss.jsonl")
    done = lines[-1]["step"] if lines else 0
    total = run.config.trainer.max_steps if lines else 0
    return f"{done}/{total}" if total > 0 else str(done)


def _scores(results: Results | None) -> str:
    """The first metric of each benchmark."""
    first = {row.benchmark: row for row in reversed(results.rows())} if results else {}
    rows = reversed(first.values())
    return ", ".join(f"{row.benchmark} {row.metric} {row.value:.2f}" for row in rows)


def _age(run: Run) -> str:
    """Time since the state was written, in its largest unit."""
    file = run.path / "status.json"
    if not file.exists():
        return ""
    age = timedelta(seconds=time.time() - file.stat().st_mtime)
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age.total_seconds() >= length:
            return f"{age.total_seconds() / length:.0f} {unit}"
    return f"{age.total_seconds():.0f} s"


def main() -> None:
    """Print the table of the folders that the command line names."""
    folders = sys.argv[1:] or ["outputs"]
    if {"-h", "--help"} & set(folders):
        print(USAGE)
        return
    with exit_on_user_error():
        show_runs(find_runs(folders))


if __name__ == "__main__":
    main()
