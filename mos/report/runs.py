"""Run folders -> one table of results; what cannot be used is named and left out."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from eval import BENCHMARKS
from mos.console import printable
from mos.errors import DataError, UserError
from mos.files import read_json, read_text
from mos.identity import BOOKKEEPING
from mos.report.cells import Column, benchmark_columns, column
from mos.runs import SCHEMA, Run, find_runs

REFUSED, LEFT_OUT, NOTED = "refused", "left out", "noted"
# results.json may round what eval/<benchmark>/metrics.json holds in full.
ROUNDING = 0.0051

# Seeds differ between the runs of one setup; results.json has them.
_SEED_LINES = re.compile(r"(?m)^(seed|  routing_seed): .*$")
_SEEDS = {"seed", "adapter.routing_seed", "trainer.seed", "trainer.data_seed"}
# Places, logging and speed shape no result. (Data at another place have another run id.)
_NEUTRAL = {"paths", "logging", "hydra", "overwrite", "dry_run", "device"}
_NEUTRAL_EVAL = {
    "defer", "allow_code_execution", "gpu_memory_utilization", "batch_size", "max_model_len",
}  # fmt: skip
_PLACES = (".data_dir", ".source", ".path", ".note")
_MAX_DEPTH, _MAX_KEYS = 30, 2000

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


@dataclass
class Runs:
    """What was found.

    Attributes:
        folders: how many run folders there are.
        frame: a row a usable run, indexed by its folder. Columns are the dotted keys of
            results.json and config.yaml; a metric is `<benchmark>.<metric>`, beside it
            `<benchmark>.n`, `.partial` (why it is, or None) and `.prompts` (their hash, or None).
            `setup` numbers the setups: runs of one differ in nothing but their seeds.
        columns: the metrics that any run has, known benchmarks first.
        settings: the columns of `frame` that make a setup.
    """

    folders: int
    frame: pd.DataFrame
    columns: list[Column] = field(default_factory=list)
    settings: list[str] = field(default_factory=list)


class Unusable(Exception):
    """A run whose results cannot be used, and what becomes of it."""

    def __init__(self, reason: str, consequence: str = REFUSED) -> None:
        self.consequence = consequence
        super().__init__(reason)


def read_runs(where: Any, problems: list[Problem], since: str | None = None) -> Runs:
    """Read all runs at or below folders and globs.

    Args:
        where: as `mos.runs.find_runs` takes it.
        problems: gets an entry for everything that is left out or needs saying.
        since: leave out results written longer ago than this ("90s", "30m", "6h", "2d", "1w").

    Raises:
        MissingFileError: nothing there.
        UserError: `since` is not a duration.
    """
    oldest = time.time() - _seconds(since) if since else 0.0
    found = find_runs(where)
    rows: dict[str, dict[str, Any]] = {}
    configs: dict[str, dict[str, Any]] = {}
    measured: set[tuple[str, str]] = set()
    for run in found:
        try:
            row = _read_run(run, oldest, measured, problems)
            config = _read_config(run.path)
        except Unusable as unusable:
            problems.append(Problem(str(run.path), str(unusable), unusable.consequence))
        except UserError as error:
            problems.append(Problem(str(run.path), str(error), REFUSED))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            problems.append(Problem(str(run.path), reason, LEFT_OUT))
        except RecursionError:
            problems.append(Problem(str(run.path), "nested beyond reason", REFUSED))
        else:
            if row is not None:
                rows[str(run.path)], configs[str(run.path)] = row, config
    if not rows:
        return Runs(len(found), pd.DataFrame())
    # As objects: whole numbers stay whole beside cells that are empty.
    frame = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)
    frame, settings = _with_configs(frame, configs)
    known = [c for b in BENCHMARKS for c in benchmark_columns(b)]
    others = sorted(measured - {(c.benchmark, c.metric) for c in known})
    columns = [c for c in [*known, *(column(*key) for key in others)] if c.key in frame]
    frame = frame.astype({c.key: float for c in columns})
    return Runs(len(found), frame, columns, settings)


def find_key(frame: pd.DataFrame, name: str) -> str | None:
    """The column of a dotted key, which may say `metrics.` before a metric; None without one."""
    return next((key for key in (name, name.removeprefix("metrics.")) if key in frame), None)


def _read_run(
    run: Run, oldest: float, measured: set[tuple[str, str]], problems: list[Problem]
) -> dict[str, Any] | None:
    """The row of one run; None if its results were written before `oldest`.

    `measured` gets the (benchmark, metric) pairs that it has.
    """
    file = run.path / "results.json"
    for name in ("results.json", "status.json", "config.yaml"):
        if (run.path / name).exists() and not (run.path / name).is_file():
            raise Unusable(f"{name} is not a regular file")
    if not file.is_file():
        raise Unusable(_unfinished(run), LEFT_OUT)
    modified = file.stat().st_mtime
    if modified < oldest:
        return None
    raw = read_json(file)
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
    status = run.status if (run.path / "status.json").is_file() else "evaluated"
    if status not in ("evaluated", "trained"):
        raise Unusable(_unfinished(run), LEFT_OUT)
    row = dict(_flat({k: v for k, v in raw.items() if k not in ("schema", "metrics")}))
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
    if status == "trained":
        problems.append(Problem(str(run.path), f"partially evaluated: {', '.join(done)} so far"))
    return {**row, "id": re.sub(r"[/_-]?seed-?\d+$", "", raw["run_id"]), "modified": modified}


def _unfinished(run: Run) -> str:
    """Why a run has no results to use."""
    if not (run.path / "status.json").is_file():
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
    if not isinstance(evaluated, dict):
        raise Unusable(f"eval/{benchmark}/metrics.json is no object (edited?)")
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


def _read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run, flat and without its seeds; {} where there is none."""
    file = folder / "config.yaml"
    try:
        return _parse(_SEED_LINES.sub(r"\1: null", read_text(file)))
    except FileNotFoundError:
        return {}
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise Unusable(f"config.yaml is not whole YAML: {' '.join(str(error).split())}") from None


@cache
def _parse(text: str) -> dict[str, Any]:
    """Seeds of a setup share one text, and one dictionary."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    depth = 0
    for event in yaml.parse(text, Loader=loader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if isinstance(event, yaml.AliasEvent) or depth > _MAX_DEPTH:
            raise ValueError(f"it has aliases, or is nested over {_MAX_DEPTH} deep")
    tree = yaml.load(text, Loader=loader)
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not keys")
    return {key: value for key, value in _flat(tree) if key not in _SEEDS}


def _with_configs(
    frame: pd.DataFrame, configs: Mapping[str, dict[str, Any]]
) -> tuple[pd.DataFrame, list[str]]:
    """The frame with the columns of config.yaml and `setup`, and the names of all settings.

    A run without config.yaml is taken to have that of a run with the same id, if there is one.
    """
    distinct = {id(config): config for config in configs.values() if config}
    table = pd.DataFrame(list(distinct.values()), index=list(distinct), dtype=object)
    which = pd.Series({path: id(c) if c else None for path, c in configs.items()}, dtype=object)
    which = which.fillna(which.groupby(frame["id"]).transform("first"))
    new = [key for key in table if key not in frame]
    frame = frame.join(table[new].loc[which.dropna()].set_axis(which.dropna().index))
    own = [k for k in frame if k.startswith("method.config.") and k != "method.config.routing_seed"]
    settings = [
        *("scale", "model", "experiment", "method.label", "method.rank", *own),
        *(*filter(_is_setting, new), "method.name", "method.trainable_parameters", "train.steps"),
    ]
    settings = [key for key in settings if key in frame]
    frame["setup"] = frame.groupby(settings, dropna=False, sort=False).ngroup()
    # One config at one routing seed, but several ids: the data or benchmarks differ in content.
    seeds = [key for key in ("method.config.routing_seed",) if key in frame]
    ids = frame.groupby(["setup", *seeds], dropna=False, sort=False)["id"].transform("nunique")
    ids = ids.groupby(frame["setup"]).transform("max").where(which.notna(), 1)
    frame["content"] = frame["id"].where(ids > 1, "")
    frame["setup"] = frame.groupby(["setup", "content"]).ngroup()
    return frame, [*settings, "content"]


def _is_setting(key: str) -> bool:
    group, _, rest = key.partition(".")
    if group in _NEUTRAL or key in _SEEDS or key.endswith(_PLACES):
        return False
    if group == "trainer" and rest in BOOKKEEPING:
        return False
    return not (group == "eval" and rest in _NEUTRAL_EVAL)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values: texts that can be printed, numbers, None; lists as text."""
    for key, value in tree.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif isinstance(value, str):
            yield name, printable(value)
        elif isinstance(value, list):
            yield name, printable(json.dumps(value, ensure_ascii=False, default=str))
        else:
            yield name, value if value is None or isinstance(value, int | float) else str(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(duration).strip())
    if not match:
        raise UserError(f"since={duration}: expected a number and one of s, m, h, d, w, as in 6h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
