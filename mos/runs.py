"""The runs on disk: those in a folder, and what their logs say of the losses."""

from __future__ import annotations

import glob
import json
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Column, Table
from rich.text import Text

from mos.console import printable
from mos.errors import DataError, MissingFileError
from mos.files import SET_ASIDE, read_text
from mos.records import Results
from mos.run import Run

# A folder with one of these files, or with the name of a seed, is a run's.
MARKERS = frozenset({"results.json", "status.json", "manifest.json", "config.yaml"})
SEED_FOLDER = re.compile(r"seed-?\d+$")


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
    if SEED_FOLDER.search(folder.name) or any(entry.name in MARKERS for entry in entries):
        yield folder
        return
    for entry in entries:
        if entry.name.startswith(".") or SET_ASIDE.search(entry.name) or not entry.is_dir():
            continue
        if entry.is_symlink() and folder.resolve().is_relative_to(Path(entry.path).resolve()):
            continue  # a circle
        yield from _walk(Path(entry.path))


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
