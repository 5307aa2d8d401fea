"""One run's results.json, checked: what cannot be trusted raises `Unusable` with the reason."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.results import is_edited
from mos.console import printable
from mos.files import read_json
from mos.report.cells import HELDOUT, HELDOUT_EXACT, benchmark_columns
from mos.run import SCHEMA, Run

REFUSED, LEFT_OUT, NOTED = "refused", "left out", "noted"
# results.json may round what eval/<benchmark>/metrics.json holds in full.
ROUNDING = 0.0051
_MAX_KEYS = 2000

_FIELDS: Mapping[str, Any] = {
    "run_id": str,
    "experiment": str,
    "scale": str,
    "model": str,
    "seed": int,
    "metrics": dict,
    "method": dict,
    "method.name": str,
    "method.label": str,
    "method.rank": (int, str, type(None)),
    "method.trainable_parameters": int,
    "method.config": dict,
}
_NUMBERS = ("steps", "train_loss", "eval_loss", "seconds", "tokens_per_second")


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
    file = run.path / "results.json"
    if not file.exists():
        raise Unusable(_unfinished(run), LEFT_OUT)
    modified = file.stat().st_mtime
    if modified < oldest:
        return None
    raw = read_json(file)
    if not isinstance(raw, dict):
        raise Unusable(f"results.json holds a {type(raw).__name__}, not an object")
    if is_edited(raw):
        raise Unusable("results.json was edited")
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "; update this program to read it" if newer else ""
        raise Unusable(
            f"results.json has {'the newer ' if newer else ''}schema {schema!r}, "
            f"this program reads schema {SCHEMA}{advice}"
        )
    status = run.status if (run.path / "status.json").exists() else "evaluated"
    if status not in ("evaluated", "trained"):
        raise Unusable(_unfinished(run), LEFT_OUT)
    row = dict(flat({k: v for k, v in raw.items() if k not in ("schema", "metrics")}))
    for name, kind in _FIELDS.items():
        _check_field(raw, name, kind)
    train = raw.get("train") or {}
    for name in _NUMBERS if isinstance(train, dict) else ():
        if train.get(name) is not None and not _is_number(train[name]):
            raise Unusable(f"results.json has train.{name} = {train[name]!r}, expected a number")
    done, lacking = [], []
    for benchmark, values in raw["metrics"].items():
        try:
            row |= _read_metrics(run.path, benchmark, values, measured)
            done.append(benchmark)
        except Unusable as unusable:
            if unusable.consequence == REFUSED:
                raise
            lacking.append(str(unusable))
    if len(row) > _MAX_KEYS:
        raise Unusable(f"results.json has {len(row)} keys")
    if not done:
        raise Unusable("; ".join(lacking) or "trained, not evaluated: no metrics", LEFT_OUT)
    problems += [Problem(str(run.path), reason, LEFT_OUT) for reason in lacking]
    if status == "trained" and done != [HELDOUT.benchmark]:  # which comes with the training
        problems.append(Problem(str(run.path), f"partially evaluated: {', '.join(done)} so far"))
    return {**row, "id": re.sub(r"[/_-]?seed-?\d+$", "", raw["run_id"]), "modified": modified}


def _unfinished(run: Run) -> str:
    """Why a run has no results to use."""
    if not (run.path / "status.json").exists():
        return "no results.json"
    status, reason = run.state
    if status == "trained":
        return "trained, not evaluated"
    is_there = (run.path / "results.json").is_file()
    what = "its results.json is not final" if is_there else "no results.json"
    return f"status {status}{f' ({reason})' if reason else ''}: {what}"


def _check_field(raw: Mapping[str, Any], name: str, kind: Any) -> None:
    value: Any = raw
    for part in name.split("."):
        if part not in value:
            raise Unusable(f"results.json lacks {name}")
        value = value[part]
    wrong = isinstance(value, bool) or (isinstance(value, int) and abs(value) >= 2**63)
    if wrong or not isinstance(value, kind):
        shown = str(value)[:60]
        raise Unusable(f"results.json has {name} = {shown!r} of the wrong type (edited?)")


def _read_metrics(
    folder: Path,
    benchmark: str,
    values: Any,
    measured: set[tuple[str, str]],
) -> dict[str, Any]:
    """The cells of one benchmark.

    Raises:
        Unusable: a metric is missing, a figure impossible, or not what the evaluation wrote.
    """
    where = f"results.json has metrics.{benchmark}"
    if not isinstance(values, dict) or not re.fullmatch(r"[\w@+-]+", benchmark):
        raise Unusable(f"{printable(where)} = {str(values)[:60]!r}, expected an object")
    wanted = benchmark_columns(benchmark)
    if wanted == [HELDOUT] and HELDOUT_EXACT.metric in values:  # earlier versions lack it
        wanted.append(HELDOUT_EXACT)
    names = [c.metric for c in wanted]
    given = names or [
        k for k, v in values.items() if k not in ("n", "stderr") and isinstance(v, float | int)
    ]
    for name in {*given, "n"}:
        value = values.get(name)
        if value is not None and not _is_number(value):
            raise Unusable(f"{where}.{name} = {str(value)[:60]!r}, no number (edited?)")
    for c in wanted:
        value = values.get(c.metric)
        if not c.lower_is_better and value is not None and not 0 <= value <= 100:
            raise Unusable(f"{where}.{c.metric} = {value!r}, expected 0..100 (edited?)")
    if missing := [name for name in names if values.get(name) is None]:
        raise Unusable(f"metrics.{benchmark} lacks {', '.join(missing)}", LEFT_OUT)
    measured.update((benchmark, name) for name in given)
    partial = values.get("partial")
    return {
        **{f"{benchmark}.{name}": float(values[name]) for name in given},
        f"{benchmark}.n": values.get("n"),
        f"{benchmark}.partial": printable(str(partial)) if partial else None,
        f"{benchmark}.prompts": _compare_with_evaluation(folder, benchmark, values, given),
    }


def _compare_with_evaluation(
    folder: Path, benchmark: str, values: Mapping[str, Any], names: list[str]
) -> str | None:
    """Refuse results that say something else than the evaluation that they were made from.

    Returns the hash of the evaluation's prompts.
    """
    file = folder / "eval" / benchmark / "metrics.json"
    try:
        evaluated = read_json(file)
    except FileNotFoundError:
        return None
    if not isinstance(evaluated, dict) or is_edited(evaluated):
        raise Unusable(f"eval/{benchmark}/metrics.json was edited")
    scores = evaluated.get("metrics", evaluated)
    for name in names:
        original = scores.get(name) if isinstance(scores, dict) else None
        if _is_number(original) and abs(original - values[name]) > ROUNDING:
            raise Unusable(
                f"results.json says {benchmark} {name} {values[name]}, but "
                f"eval/{benchmark}/metrics.json says {original}: one of them was edited"
            )
    prompts = evaluated.get("prompts_sha256")
    return prompts if isinstance(prompts, str) else None


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


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
