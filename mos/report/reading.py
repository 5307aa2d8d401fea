"""Find run folders at any depth and read them; what is unusable is named and left out."""

from __future__ import annotations

import glob
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mos.errors import MissingFileError, UserError
from mos.report.results import Problem, Result, Unusable, read_run
from mos.runs import SET_ASIDE

MARKERS = frozenset({"results.json", "status.json", "manifest.json", "config.yaml"})
SEED_FOLDER = re.compile(r"seed-?\d+$")


@dataclass
class Reading:
    """Usable results and everything that was left out or needs saying."""

    results: list[Result]
    problems: list[Problem]
    folders: int = 0


def run_folders(where: str | Path | Sequence[str | Path]) -> Iterator[Path]:
    """Run folders at any depth below folders, globs or a list of them, each once, sorted.

    Raises:
        MissingFileError: a path that is not there, or a glob that matches nothing.
    """
    given = [where] if isinstance(where, (str, Path)) else list(where)
    found: set[Path] = set()
    for pattern in map(str, given):
        matches = glob.glob(pattern, recursive=True)  # noqa: PTH207 (absolute patterns)
        if not matches:
            raise MissingFileError(
                f"runs={pattern}: no such folder. Give a folder that holds runs, a glob or a list."
            )
        for match in map(Path, matches):
            if match.is_dir():
                found.update(_walk(str(match)))
            elif match.name == "results.json":
                found.add(match.parent)
    yield from sorted(found)


def _walk(folder: str) -> Iterator[Path]:
    try:
        with os.scandir(folder) as listing:
            entries = list(listing)
    except PermissionError:
        yield Path(folder)
        return
    if SEED_FOLDER.search(folder) or any(entry.name in MARKERS for entry in entries):
        yield Path(folder)
        return
    for entry in entries:
        aside = entry.name.startswith(".") or SET_ASIDE.search(entry.name)
        if not aside and entry.is_dir():
            yield from _walk(entry.path)


def read_runs(where: str | Path | Sequence[str | Path], since: str | None = None) -> Reading:
    """Read all runs below `where` (see `run_folders`).

    Args:
        since: leave out results written longer ago than this ("90s", "30m", "6h", "2d", "1w").

    Raises:
        MissingFileError: nothing there.
        UserError: `since` is not a duration.
    """
    oldest = time.time() - seconds(since) if since else 0.0
    reading = Reading([], [])
    for folder in run_folders(where):
        reading.folders += 1
        try:
            result = read_run(folder, oldest, reading.problems)
        except Unusable as unusable:
            reading.problems.append(Problem(str(folder), str(unusable), unusable.consequence))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            reading.problems.append(Problem(str(folder), reason, "skipped"))
        else:
            if result is not None:
                reading.results.append(result)
    if not reading.folders:
        shown = where if isinstance(where, (str, Path)) else ", ".join(map(str, where))
        raise MissingFileError(
            f"runs={shown}: no run folder below it (none has results.json, status.json or "
            "config.yaml). Train something first, or give the folder that mos.train wrote to."
        )
    return reading


def seconds(duration: str) -> float:
    """Seconds of "90s", "30m", "6h", "2d" or "1w"."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(duration).strip())
    if not match:
        raise UserError(f"since={duration}: expected a number and one of s, m, h, d, w, as in 6h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
