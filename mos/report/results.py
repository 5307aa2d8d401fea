"""One run's results.json, checked: what cannot be trusted raises `Unusable` with the reason."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from mos.report.paper import METRICS
from mos.runs import SCHEMA, Run

# Config keys that may differ between runs of one setup: seeds, places and what only looks on.
SEED_KEYS = frozenset({"seed", "adapter.routing_seed", "trainer.seed", "trainer.data_seed"})
NEUTRAL_GROUPS = frozenset({"paths", "logging", "hydra", "overwrite", "dry_run"})
# results.json may round what eval/<benchmark>/metrics.json holds in full.
ROUNDING = 0.0051

_TRAIN_FIELDS = ("steps", "train_loss", "eval_loss", "seconds", "tokens_per_second")


@dataclass(frozen=True)
class Problem:
    """Something a reader of the tables must know.

    Attributes:
        where: the run folder (or row) concerned.
        reason: what was found.
        consequence: "skipped" (nothing to use), "refused" (not to be trusted) or "noted" (used).
    """

    where: str
    reason: str
    consequence: str = "noted"

    def __str__(self) -> str:
        return f"{self.consequence}: {self.where}: {self.reason}"


@dataclass(frozen=True)
class Result:
    """One run's results.json (schema 1). Percentages are 0..100, bytes and seconds plain numbers.

    Attributes:
        metrics: benchmark -> {metric: value, "stderr", "n", ...}; with "partial": why, if it is.
        prompts: benchmark -> hash of all its prompts, where the evaluation was kept.
        modified: when results.json was written, seconds since the epoch.
    """

    path: Path
    run_id: str
    experiment: str
    scale: str
    model: str
    method: str
    label: str
    rank: int | str | None
    trainable_parameters: int
    adapter_bytes: int | None
    config: Mapping[str, Any]
    seed: int
    train: Mapping[str, Any]
    metrics: Mapping[str, Mapping[str, Any]]
    prompts: Mapping[str, str]
    modified: float
    raw: Mapping[str, Any] = field(repr=False)

    @property
    def setup(self) -> str:
        """The run id without its seed: what seeds of one setup have in common."""
        return re.sub(r"[/_-]?seed-?\d+$", "", self.run_id)

    @cached_property
    def full_config(self) -> dict[str, Any]:
        """config.yaml of the run, or {} where there is none."""
        file = self.path / "config.yaml"
        if not file.is_file():
            return {}
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        return yaml.load(file.read_text("utf-8"), Loader=loader) or {}

    @cached_property
    def setup_config(self) -> dict[str, Any]:
        """config.yaml, flat, without what may differ between runs of one setup."""
        return {
            key: value
            for key, value in _flat(self.full_config)
            if key not in SEED_KEYS and key.split(".")[0] not in NEUTRAL_GROUPS
        }

    def lookup(self, key: str) -> Any:
        """The value at a dotted key of results.json, or else of config.yaml, or else None."""
        for tree in (self.raw, self.full_config):
            value: Any = tree
            for part in key.split("."):
                if not isinstance(value, Mapping) or part not in value:
                    break
                value = value[part]
            else:
                return value
        return None


class Unusable(Exception):
    """A run whose results cannot be used, and what becomes of it."""

    def __init__(self, reason: str, consequence: str = "refused") -> None:
        self.consequence = consequence
        super().__init__(reason)


def _load(file: Path) -> Any:
    text = file.read_text("utf-8", errors="replace")
    if not text.strip():
        raise Unusable(f"{file.name} is empty (half-written?)")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise Unusable(
            f"{file.name} is not whole JSON (half-written?): {error.msg} at line {error.lineno}"
        ) from None


def read_run(folder: Path, oldest: float, problems: list[Problem]) -> Result | None:
    """Read one run folder.

    Args:
        oldest: results written before this time (seconds since the epoch) are not wanted: None.
        problems: gets an entry for every benchmark that is left out of an otherwise usable run.

    Raises:
        Unusable: results that are missing, unfinished, damaged, edited or of another schema.
    """
    file = folder / "results.json"
    try:
        modified = file.stat().st_mtime
    except FileNotFoundError:
        raise Unusable(*_why_no_results(folder)) from None
    if modified < oldest:
        return None
    raw = _load(file)
    if not isinstance(raw, dict):
        raise Unusable(f"results.json holds a {type(raw).__name__}, not an object")
    schema = raw.get("schema")
    if schema != SCHEMA or isinstance(schema, bool):
        newer = isinstance(schema, int) and schema > SCHEMA
        advice = "; update this program to read it" if newer else ""
        raise Unusable(
            f"results.json has {'the newer ' if newer else ''}schema {schema!r}, "
            f"this program reads schema {SCHEMA}{advice}"
        )
    status_file = folder / "status.json"
    if status_file.is_file() and (status := _status(status_file)) != "evaluated":
        raise Unusable(
            f"status {status}: results.json is unfinished or of an earlier attempt; the same "
            "command again finishes it",
            "skipped",
        )
    method = _field(raw, "method", dict)
    metrics, prompts = _metrics(folder, _field(raw, "metrics", dict), problems)
    result = Result(
        path=folder,
        run_id=_field(raw, "run_id", str),
        experiment=_field(raw, "experiment", str),
        scale=_field(raw, "scale", str),
        model=_field(raw, "model", str),
        method=_field(method, "name", str, "method."),
        label=_field(method, "label", str, "method."),
        rank=_field(method, "rank", (int, str, type(None)), "method."),
        trainable_parameters=_field(method, "trainable_parameters", int, "method."),
        adapter_bytes=method.get("adapter_bytes"),
        config=_field(method, "config", dict, "method."),
        seed=_field(raw, "seed", int),
        train=raw.get("train") or {},
        metrics=metrics,
        prompts=prompts,
        modified=modified,
        raw=raw,
    )
    for name in _TRAIN_FIELDS:
        value = result.train.get(name)
        if value is not None and not _is_number(value):
            raise Unusable(f"results.json has train.{name} = {value!r}, expected a number")
    return result


def _field(tree: Mapping[str, Any], name: str, kind: Any, prefix: str = "") -> Any:
    if name not in tree:
        raise Unusable(f"results.json lacks {prefix}{name}")
    value = tree[name]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise Unusable(f"results.json has {prefix}{name} = {value!r} of the wrong type (edited?)")
    return value


def _metrics(
    folder: Path, metrics: Mapping[str, Any], problems: list[Problem]
) -> tuple[dict[str, Mapping[str, Any]], dict[str, str]]:
    """The benchmarks of a run whose metrics are whole, and the hashes of their prompts.

    Raises if any figure is impossible.
    """
    usable: dict[str, Mapping[str, Any]] = {}
    prompts: dict[str, str] = {}
    for benchmark, values in metrics.items():
        if not isinstance(values, dict):
            raise Unusable(f"results.json has metrics.{benchmark} = {values!r}, expected an object")
        wanted = METRICS.get(benchmark, ())
        for name in {*wanted, *(k for k, v in values.items() if isinstance(v, float))}:
            value = values.get(name)
            if value is not None and not _is_number(value):
                raise Unusable(
                    f"results.json has metrics.{benchmark}.{name} = {value!r}, no number (edited?)"
                )
            if value is not None and name in wanted and not 0 <= value <= 100:
                raise Unusable(
                    f"results.json has metrics.{benchmark}.{name} = {value!r}, "
                    "expected 0..100 (edited?)"
                )
        missing = [name for name in wanted if values.get(name) is None]
        if missing:
            reason = f"metrics.{benchmark} lacks {', '.join(missing)}"
            problems.append(Problem(str(folder), reason, "skipped"))
            continue
        if asked := _compare_with_evaluation(folder, benchmark, values, wanted):
            prompts[benchmark] = asked
        usable[benchmark] = values
    if not metrics:
        raise Unusable("results.json has no metrics: trained, not evaluated", "skipped")
    return usable, prompts


def _compare_with_evaluation(
    folder: Path, benchmark: str, values: Mapping[str, Any], wanted: Iterable[str]
) -> str | None:
    """Refuse a results.json that says something else than the evaluation it was made from.

    Returns the hash of the evaluation's prompts.
    """
    file = folder / "eval" / benchmark / "metrics.json"
    try:
        evaluated = _load(file)
    except FileNotFoundError:
        return None
    scores = evaluated.get("metrics", evaluated)
    for name in wanted:
        original = scores.get(name)
        if _is_number(original) and abs(original - values[name]) > ROUNDING:
            raise Unusable(
                f"results.json says {benchmark} {name} {values[name]}, but "
                f"eval/{benchmark}/metrics.json says {original}: one of them was edited"
            )
    return evaluated.get("prompts_sha256")


def _why_no_results(folder: Path) -> tuple[str, str]:
    file = folder / "status.json"
    status = f"status {_status(file)}: " if file.is_file() else ""
    return f"{status}no results.json", "skipped"


def _status(file: Path) -> str:
    """What status.json says, with the reason; a run that no process holds is not running."""
    content = _load(file)
    if not isinstance(content, dict) or not isinstance(content.get("status"), str):
        raise Unusable("status.json names no status (edited?)")
    status = content["status"]
    if status == "running" and (file.parent / ".lock").exists():
        status = Run(file.parent).status
    return f"{status} ({content['reason']})" if content.get("reason") else status


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
