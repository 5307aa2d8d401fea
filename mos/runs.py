"""The runs on disk: find them, list them, show one, or the records of one of its benchmarks.

    mos runs                                 those of outputs/
    mos runs outputs/x 'outputs/*/mos-*'     those of folders and globs
    mos runs RUN                             one of them, with all of its scores
    mos runs RUN BENCHMARK wrong n=5         records of its evaluation to read

Nothing heavy is imported for a list.
"""

from __future__ import annotations

import glob
import json
import os
import re
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from eval import BENCHMARKS, build_benchmark
from mos.console import console, exit_on_user_error, override, printable, say
from mos.errors import DataError, MissingFileError, UserError, unknown
from mos.files import SET_ASIDE, read_text
from mos.records import Metrics, Record, Results, read_records
from mos.run import Run

USAGE = """usage: mos runs [FOLDER or glob ...]
       mos runs RUN [BENCHMARK [wrong] [n=5] [paths.data_dir=DIR]]

Without a benchmark, a line a run: state, steps, age, scores; and why some failed or stopped. With
one, prompt, answer, what was parsed of it, and the target of n records of the run's evaluation;
`wrong` leaves out those with a full score. BENCHMARK may be heldout: losses of examples. Prompts
are built from the benchmark's files below DIR, by default the samples."""

# A folder with one of these files is a run's; names say nothing.
MARKERS = frozenset({"results.json", "status.json", "manifest.json", "config.yaml"})


def find_runs(where: str | Path | Iterable[str | Path]) -> list[Run]:
    """The runs in folders, or in those that globs match, at any depth; sorted, without duplicates.

    Folders that `overwrite=true` moved aside, and folders inside a run, do not count as runs.

    Raises:
        MissingFileError: a path does not exist, a glob matches nothing, or there is no run below.
    """
    found: set[Path] = set()
    for pattern in [where] if isinstance(where, str | Path) else where:
        place = Path(pattern).expanduser()
        # Path.glob takes no absolute patterns.
        globbed = glob.glob(str(place), recursive=True)  # noqa: PTH207
        matches = [place] if place.exists() else [Path(match) for match in globbed]
        if not matches:
            raise MissingFileError(
                f"runs={pattern}: no such folder. Give a folder that holds runs, a glob or a list."
            )
        below: set[Path] = set()
        for match in matches:
            if match.is_dir() and (match == place or not any(map(SET_ASIDE.search, match.parts))):
                below.update(_walk(match))
            elif match.name == "results.json":
                below.add(match.parent)
        if not below:
            raise MissingFileError(
                f"runs={pattern}: no run folder below it (none has results.json, status.json or"
                " config.yaml). Train something first, or give the folder that mos.train wrote to."
            )
        found |= below
    return [Run(folder) for folder in sorted(found) if found.isdisjoint(folder.parents)]


def _walk(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except PermissionError:
        yield folder  # its reader says why it cannot be used
        return
    if any(entry.name in MARKERS for entry in entries):
        yield folder
        return
    for entry in entries:
        if entry.name.startswith(".") or SET_ASIDE.search(entry.name) or not entry.is_dir():
            continue
        if entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            continue  # a circle
        yield from _walk(Path(entry.path))


def show_runs(runs: Sequence[Run], reasons: bool = True) -> None:
    """Print a line a run: how far it is, how old, how good, and its path, as commands take it.

    Args:
        reasons: also print, below, why some stopped.
    """
    step, score = Column("step", justify="right"), Column("scores", max_width=28)
    table = Table("state", step, "age", score, "run", box=None)
    rows, found, stopped = [], [], []
    for run in runs:
        results = None
        try:
            state, results, logs = run.state, run.results, run.manifest.logs[-2:]
            status, reason = state.status, state.reason * (state.status != "trained")
            row = [status, _progress(run, results), _age(run)]
        except UserError as error:
            reason, logs, row = str(error), [], ["damaged", "", ""]
        if reason:
            stopped.append("; ".join([f"{run.path}: {reason}", *logs]))
        rows.append(row)
        found.append(results)
    scored = _scores(found)
    for run, row, scores in zip(runs, rows, scored, strict=True):
        table.add_row(*(escape(printable(text)) for text in [*row, scores, str(run.path)]))
    show_table(table)
    if any("*" in scores for scores in scored):
        say("* best of its experiment, scale and model")
    for reason in stopped if reasons else ():
        console.print(printable(reason), markup=False, highlight=False)


def show_table(table: Table) -> None:
    """Print a table as wide as its words: a narrow terminal breaks its lines, and loses nothing."""
    width, console.width = console.width, 10_000
    console.print(table)
    console.width = width


def _scores(found: Sequence[Results | None]) -> list[str]:
    """The first metric of each benchmark of runs, the best of several that compete with a star."""
    values: dict[Any, list[float]] = defaultdict(list)
    lines: list[list[tuple[Any, float, str]]] = []
    for results in found:
        lines.append([])
        for name, scores in results.metrics.items() if results else ():
            row = next(scores.rows(name), None)
            if results is None or row is None:
                continue
            of = results.experiment, results.scale, results.model, name, row.n
            gain = -row.value if row.metric in scores.lower_is_better else row.value
            values[of].append(gain)
            lines[-1].append((of, gain, f"{name} {row.metric} {row.text.partition(' ')[0]}"))
    best = {of: max(v) for of, v in values.items() if len(v) > 1 and v.count(max(v)) == 1}
    return [
        ", ".join(text + "*" * (best.get(of) == gain) for of, gain, text in line) for line in lines
    ]


def _progress(run: Run, results: Results | None) -> str:
    """Steps done, of how many where they are not all done."""
    if train := run.manifest.train or (results and results.train):
        return str(train.steps)
    lines = read_losses(run.path / "loss.jsonl")
    done = lines[-1]["step"] if lines else 0
    total = run.config.trainer.max_steps if lines else 0
    return f"{done}/{total}" if total > 0 else str(done)


def _age(run: Run) -> str:
    """Time since the state was written, in its largest unit."""
    file = run.path / "status.json"
    if not file.exists():
        return ""
    age = timedelta(seconds=time.time() - file.stat().st_mtime).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if age >= length:
            return f"{age / length:.0f} {unit}"
    return f"{age:.0f} s"


def results_table(results: Results) -> Table:
    """The metrics of one run, a line each."""
    method, train = results.method, results.train
    rank = "" if method.rank is None else f" r={method.rank}"
    title = f"{method.label}{rank} · {results.model} · seed {results.seed}"
    score, n = Column("score ± s.e.", justify="right"), Column("n", justify="right")
    table = Table("benchmark", "metric", score, n, "note", title=Text(printable(title)))
    for row in results.rows():
        names = (escape(printable(name)) for name in (row.benchmark, row.metric))
        table.add_row(*names, row.text, str(row.n), row.note)
    if train and train.train_loss is not None and train.seconds is not None:
        caption = (
            f"{method.trainable_parameters:,} trainable parameters · train loss"
            f" {train.train_loss:.3f} · {train.steps} steps in {train.seconds:.0f} s"
        )
        if train.eval_loss_before is not None:
            caption += f"\nheld-out loss {train.eval_loss_before:.3f} before"
            caption += f", {train.eval_loss:.3f} after"
        table.caption = caption
    return table


def read_losses(file: Path) -> list[dict[str, Any]]:
    """The lines of a loss.jsonl; [] where there is none.

    A last line that a kill cut short, which has no line end, is left out.

    Raises:
        DataError: another line that is no JSON object, or not UTF-8.
    """
    if not file.exists():
        return []
    lines = []
    for number, text in enumerate(read_text(file).split("\n")[:-1], 1):
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            raise DataError(file, number, "no line of a loss log (was it edited?).")
        lines.append(line)
    return lines


def show_records(
    run: Run, benchmark: str, n: int = 5, wrong: bool = False, paths: Sequence[str] = ()
) -> None:
    """Print records of a run's evaluation, with their prompts where these can be built.

    Args:
        wrong: only those that have less than the full score.
        paths: overrides of the caller's `paths`. Those in the run's config do not count.

    Raises:
        UserError: the run was not evaluated on that benchmark, or a record is damaged.
    """
    folder = run.path / "eval" / benchmark
    if not folder.is_dir():
        found = [path.parent.name for path in run.path.glob("eval/*/records.jsonl")]
        if found:
            raise unknown("benchmark of this run", benchmark, found)
        raise MissingFileError(f"{run.path} has no evaluation (a run is a folder such as seed0).")
    records = read_records(folder)
    if wrong:
        records = [record for record in records if any(s != 1 for s in record.scores.values())]
    chosen = records[:n]
    try:
        prompts = _prompts(run, benchmark, paths) if chosen and benchmark in BENCHMARKS else {}
        if prompts and not any(record.prompt_sha256 in prompts for record in chosen):
            raise UserError("the run had other files of this benchmark; give paths.data_dir=")
    except (UserError, OSError) as error:
        say(f"prompts are not shown: {error}")
        prompts = {}
    for record in chosen:
        _show(record, prompts.get(record.prompt_sha256 or ""))
    if not chosen:
        say("no such record")


def _prompts(run: Run, benchmark: str, paths: Sequence[str]) -> dict[str, str]:
    """The prompts of a benchmark as it was evaluated, by their sha256."""
    from mos.config import compose_config
    from mos.models.loading import tokenizer_of

    result = Metrics.load(run.path / "eval" / benchmark)
    own = compose_config([f"eval=[base,{benchmark}]", *paths], "evaluate")
    options = {k: v for k, v in (result.options if result else {}).items() if k != "shard"}
    options["data_dir"] = own.eval.benchmarks[benchmark].data_dir
    tokenizer = tokenizer_of(run.config.model.dump(), own.paths.cache_dir)
    built = build_benchmark(benchmark, tokenizer=tokenizer, **options)
    return {request.prompt_sha256: request.prompt for request in built.requests}


def _show(record: Record, prompt: str | None) -> None:
    scores = "  ".join(f"{name} {value:.4g}" for name, value in record.scores.items())
    there = {name: getattr(record, name) for name in record.model_fields_set}
    parts = {"prompt": prompt, **there, "scores": scores}
    console.rule(printable(record.id), align="left")
    for title in ("prompt", "output", "parsed", "target", "scores"):
        if title in there or parts.get(title) is not None:
            console.print(f"[bold]{title}")
            for line in str(parts[title]).splitlines() or [""]:
                console.print(f"  {printable(line)}", markup=False, highlight=False)


def main() -> None:
    """Show what the command line asks for."""
    given = sys.argv[1:]
    if {"-h", "--help"} & set(given):
        print(USAGE)
        return
    with exit_on_user_error():
        options = [word for word in given if word == "wrong" or re.match(r"[\w.]+=", word)]
        places = [word for word in given if word not in options] or ["outputs"]
        n, paths = 5, []
        for key, _, value in (option.partition("=") for option in options):
            if key == "n" and value.isdecimal():
                n = int(value)
            elif key == "paths.data_dir":
                paths.append(override(key, value))
            elif key != "wrong":
                raise UserError(f"{key}: expected wrong, n=<number> or paths.data_dir=<folder>.")
        run = Run(Path(places[0]).expanduser())
        if len(places) == 2 and not (Path(places[1]).exists() or glob.has_magic(places[1])):
            show_records(run, places[1], n, "wrong" in options, paths)
            return
        runs = find_runs(places)
        show_runs(runs)
        if [one.path for one in runs] == [run.path] and (results := run.results):
            console.print(results_table(results))
            say(f"records: mos runs {places[0]} {'|'.join(results.metrics)}")


if __name__ == "__main__":
    main()
