"""Run folders -> one table of results; what cannot be used is named and left out."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from eval import BENCHMARKS
from mos.errors import DataError, UserError
from mos.files import parse_yaml, read_text
from mos.identity import BOOKKEEPING
from mos.report.cells import Column, benchmark_columns, column
from mos.report.results import LEFT_OUT, REFUSED, Problem, Unusable, flat, read_run
from mos.runs import find_runs

# Seeds differ between the runs of one setup; results.json has them.
_SEED_LINES = re.compile(r"(?m)^(seed|  routing_seed): .*$")
_SEEDS = {"seed", "adapter.routing_seed", "trainer.seed", "trainer.data_seed"}
_FORMER = {"data.chat_tokens"}  # in the configs of earlier versions
# Places, logging and speed shape no result. (Data at another place have another run id.)
_NEUTRAL = {"paths", "logging", "hydra", "overwrite", "dry_run", "device"}
_NEUTRAL_EVAL = {
    "defer", "allow_code_execution", "sandbox", "gpu_memory_utilization", "batch_size",
    "max_model_len", "tensor_parallel", "data_parallel",
}  # fmt: skip
_PLACES = (".data_dir", ".source", ".path", ".note")


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
            row = read_run(run, oldest, measured, problems)
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


def _read_config(folder: Path) -> dict[str, Any]:
    """config.yaml of a run, flat and without its seeds; {} where there is none."""
    file = folder / "config.yaml"
    try:
        return _parse(_SEED_LINES.sub(r"\1: null", read_text(file)))
    except FileNotFoundError:
        return {}
    except DataError:
        raise
    except ValueError as error:
        raise Unusable(f"config.yaml is damaged: {error}") from None


@cache
def _parse(text: str) -> dict[str, Any]:
    """Seeds of a setup share one text, and one dictionary."""
    return {key: value for key, value in flat(parse_yaml(text)) if key not in _SEEDS | _FORMER}


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
    new = [str(key) for key in table if key not in frame]
    frame = frame.join(table[new].loc[which.dropna()].set_axis(which.dropna().index))
    names = [str(key) for key in frame]
    own = [k for k in names if k.startswith("method.config.") and k != "method.config.routing_seed"]
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


def find_key(frame: pd.DataFrame, name: str) -> str | None:
    """The column of a dotted key, which may say `metrics.` before a metric; None without one."""
    return next((key for key in (name, name.removeprefix("metrics.")) if key in frame), None)


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(duration).strip())
    if not match:
        raise UserError(f"since={duration}: expected a number and one of s, m, h, d, w, as in 6h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
