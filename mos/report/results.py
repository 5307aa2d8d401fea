"""One run's results.json, checked: what cannot be trusted raises `Unusable` with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mos.console import printable
from mos.records import Metrics, Results
from mos.report.cells import HELDOUT
from mos.run import Run

REFUSED, LEFT_OUT, NOTED = "refused", "left out", "noted"


@dataclass(frozen=True)
class Problem:
    """Something a reader of the tables must know.

    Attributes:
        where: the run folder (or row) concerned.
        reason: what was found.
        consequence: `REFUSED` (not to be trusted), `LEFT_OUT` (nothing to use), `NOTED` (used).
    """

    where: str
    reason: str
    consequence: str = NOTED

    def __str__(self) -> str:
        return printable(f"{self.consequence}: {self.where}: {self.reason}")


class Unusable(Exception):
    """A run whose results cannot be used, and what becomes of it."""

    def __init__(self, reason: str, consequence: str = REFUSED) -> None:
        self.consequence = consequence
        super().__init__(reason)


def read_run(
    run: Run, oldest: float, measured: set[tuple[str, str]], problems: list[Problem]
) -> dict[str, Any] | None:
    """The row of one run; None if its results were written before `oldest`.

    `measured` gets the (benchmark, metric) pairs that it has.
    """
    file = run.path / Results.FILE
    results = run.results
    if results is None:
        raise Unusable(_unfinished(run), LEFT_OUT)
    modified = file.stat().st_mtime
    if modified < oldest:
        return None
    status = run.status if (run.path / "status.json").exists() else "evaluated"
    if status not in ("evaluated", "trained"):
        raise Unusable(_unfinished(run), LEFT_OUT)
    content = results.content()
    row = dict(flat({k: v for k, v in content.items() if k not in ("schema", "metrics", "sha256")}))
    for benchmark, scores in results.metrics.items():
        evaluated = Metrics.load(run.path / "eval" / benchmark)
        row |= {f"{benchmark}.{name}": float(value) for name, value in scores.metrics.items()}
        row[f"{benchmark}.n"] = scores.n
        row[f"{benchmark}.partial"] = printable(scores.partial) if scores.partial else None
        row[f"{benchmark}.prompts"] = evaluated and evaluated.prompts_sha256
        measured.update((benchmark, name) for name in scores.metrics)
    if not results.metrics:
        raise Unusable("trained, not evaluated: no metrics", LEFT_OUT)
    if status == "trained" and set(results.metrics) != {HELDOUT.benchmark}:  # of the training
        done = ", ".join(results.metrics)
        problems.append(Problem(str(run.path), f"partially evaluated: {done} so far"))
    return {**row, "id": re.sub(r"[/_-]?seed-?\d+$", "", results.run_id), "modified": modified}


def _unfinished(run: Run) -> str:
    """Why a run has no results to use."""
    if not (run.path / "status.json").exists():
        return "no results.json"
    state = run.state
    if state.status == "trained":
        return "trained, not evaluated"
    is_there = (run.path / "results.json").is_file()
    what = "its results.json is not final" if is_there else "no results.json"
    return f"status {state.status}{f' ({state.reason})' if state.reason else ''}: {what}"


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values: texts that can be printed, numbers, None; lists as text."""
    for key, value in tree.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif isinstance(value, str):
            yield name, printable(value)
        elif isinstance(value, list):
            yield name, printable(json.dumps(value, ensure_ascii=False, default=str))
        else:
            yield name, value if value is None or isinstance(value, int | float) else str(value)
