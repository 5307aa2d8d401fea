"""Run folders -> a row a run and, for all tables, one long frame with a row a measurement.

What may not stand beside the rest is named and left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any

import pandas as pd

from mos.console import printable
from mos.errors import UserError, did_you_mean
from mos.files import parse_yaml, read_text
from mos.records import Metrics, Results, Status
from mos.report import paper
from mos.report.paper import HELDOUT, Column
from mos.run import BOOKKEEPING, Run
from mos.runs import find_runs

REFUSED, LEFT_OUT, NOTED = "refused", "left out", "noted"

# Seeds differ between the runs of one setup; results.json has them.
_SEED_LINES = re.compile(r"(?m)^(seed|  routing_seed): .*$")
_SEEDS = {"seed", "adapter.routing_seed", "trainer.seed", "trainer.data_seed"}
# Of earlier versions.
_FORMER = {
    "data.chat_tokens", "options.chat_tokens", "options.shard", "eval.base_mismatch",
    "weights.trained_on_sha256",
}  # fmt: skip
# Places, logging and speed shape no result. (Data at another place have another run id.)
_NEUTRAL = {"paths", "logging", "hydra", "overwrite", "dry_run", "device"}
_NEUTRAL_EVAL = {
    "defer", "allow_code_execution", "sandbox", "gpu_memory_utilization", "batch_size",
    "max_model_len", "tensor_parallel", "data_parallel",
}  # fmt: skip
_PLACES = (".data_dir", ".source", ".path", ".note")
# What metrics.json says of how a benchmark was answered is a part of the setup, but for these.
_NEUTRAL_HOW = {
    "weights.model", "weights.adapter_sha256", "engine.version", "engine.torch", "engine.seed",
    "engine.device", *(f"engine.{name}" for name in _NEUTRAL_EVAL), *_FORMER,
}  # fmt: skip
_SHORT = {
    "method.label": "label", "method.rank": "rank", "method.name": "method",
    "method.trainable_parameters": "parameters", "method.config.equivalent_rank": "equivalent_rank",
}  # fmt: skip
_RESULTS = {"schema", "run", "run_id", "id", "modified", "sha256", "method", "train", "metrics"}
_SCORES = ("benchmark", "key", "column", "value", "n", "partial", "prompts", "lower")


@dataclass(frozen=True)
class Problem:
    """Something a reader of the tables must know of a run folder or a row.

    Attributes:
        consequence: `REFUSED` (not to be trusted), `LEFT_OUT` (nothing to use), `NOTED` (used).
    """

    where: str
    reason: str
    consequence: str = NOTED

    def __str__(self) -> str:
        return printable(f"{self.consequence}: {self.where}: {self.reason}")


@dataclass
class Runs:
    """Runs that can be used.

    Attributes:
        folders: how many run folders there are.
        long: a row a measurement: `run`, its folder; `benchmark`, `key` ("mmlu.exact_match"),
            `column` (the same, with the experiment for what an experiment holds out of its own
            data), `value`, `n`, `partial` (why the benchmark is not whole, or ""), `prompts` (their
            hash, or ""), `lower` (whether lower is better); the dotted keys of results.json and
            config.yaml, and of what metrics.json says of weights, engine and options; `setup`:
            measurements of one setup differ in nothing but their seeds.
        settings: the columns of `long` that make a setup.
        scale: of all runs, where they were selected.
        cut: why their benchmarks are not whole, or "".
    """

    folders: int
    long: pd.DataFrame
    settings: Sequence[str] = ()
    scale: str = ""
    cut: str = ""

    @property
    def columns(self) -> list[Column]:
        """The metrics that any run has, known benchmarks first, held-out ones by experiment."""
        there = self.long.drop_duplicates("column")[["key", "column", "lower"]]
        return sorted(paper.column(*line) for line in there.itertuples(index=False, name=None))

    @cached_property
    def wide(self) -> pd.DataFrame:
        """A row a run, with a column a metric."""
        metrics = self.long.pivot(index="run", columns="key", values="value")
        runs = self.long.drop_duplicates("run").set_index("run")
        return runs.drop(columns=[*_SCORES, *_SHORT.values()]).join(metrics)


def read_runs(where: Any, problems: list[Problem]) -> Runs:
    """Read all runs at or below folders and globs.

    Args:
        where: as `mos.runs.find_runs` takes it.
        problems: gets an entry for everything that is left out or needs saying.

    Raises:
        MissingFileError: nothing there.
    """
    found = find_runs(where)
    lines: list[dict[str, Any]] = []
    for run in found:
        try:
            if results := _usable(run, problems):
                about = {**_config(run), **dict(flat(results.content()))}
                about |= {
                    "run": str(run.path),
                    "id": re.sub(r"[/_-]?seed-?\d+$", "", results.run_id),
                    "modified": (run.path / Results.FILE).stat().st_mtime,
                    "model": paper.model_key(printable(results.model)),
                    **{short: about.get(key) for key, short in _SHORT.items()},
                }
                lines += [about | score for score in _scores(run, results)]
        except UserError as error:
            problems.append(Problem(str(run.path), str(error), REFUSED))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            problems.append(Problem(str(run.path), reason, LEFT_OUT))
    if not lines:
        empty = ["run", *_SCORES, *_SHORT.values(), "setup", "model", "experiment"]
        return Runs(len(found), pd.DataFrame(columns=empty))
    # As objects: whole numbers stay whole beside cells that are empty.
    long = pd.DataFrame(lines, dtype=object).astype({"value": float, "lower": bool, "n": int})
    long = long.copy()  # in one piece
    return Runs(len(found), long, _number_setups(long))


def flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values: texts that can be printed, numbers, None; lists as text."""
    for key, value in tree.items():
        name = printable(f"{prefix}{key}")
        if isinstance(value, Mapping):
            yield from flat(value, f"{name}.")
        elif value is None or isinstance(value, int | float):
            yield name, value
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            yield name, printable(text)


def _usable(run: Run, problems: list[Problem]) -> Results | None:
    """The results of a run; None if there are none to use, which a problem says."""
    results, folder = run.results, str(run.path)
    there = (run.path / Status.FILE).exists()
    status, why = (run.state.status, run.state.reason) if there else ("evaluated", "")
    ended = status in ("trained", "evaluated")
    if results is None or not ended or not results.metrics:
        reason = "its results.json is not final" if results else "no results.json"
        if not ended:
            reason = f"status {status}{f' ({why})' if why else ''}: {reason}"
        elif status == "trained" or results:
            reason = "trained, not evaluated"
        problems.append(Problem(folder, reason, LEFT_OUT))
        return None
    if status == "trained" and set(results.metrics) != {HELDOUT.benchmark}:
        done = ", ".join(results.metrics)
        problems.append(Problem(folder, f"partially evaluated: {done} so far"))
    return results


def _scores(run: Run, results: Results) -> Iterator[dict[str, Any]]:
    """The measurements of a run, each with the values of `_SCORES` and how it came about."""
    for benchmark, entry in results.metrics.items():
        said = Metrics.load(run.path / "eval" / benchmark) or Metrics(schema=1, metrics={})
        how = flat({"weights": said.weights, "engine": said.engine, "options": said.options})
        shapes = {k: v for k, v in how if k not in _NEUTRAL_HOW and not k.endswith(_PLACES)}
        own = f" ({results.experiment})" if benchmark == HELDOUT.benchmark else ""
        about = entry.n or 0, printable(entry.partial or ""), said.prompts_sha256 or ""
        for metric, value in entry.metrics.items():
            key = printable(f"{benchmark}.{metric}")
            lower = metric in entry.lower_is_better or key == HELDOUT.key
            line = (printable(benchmark), key, printable(key + own), float(value), *about, lower)
            yield dict(zip(_SCORES, line, strict=True)) | shapes


def _config(run: Run) -> dict[str, Any]:
    """config.yaml of a run, flat and without its seeds; {} where there is none."""
    file = run.path / "config.yaml"
    try:
        return _parse(_SEED_LINES.sub(r"\1: null", read_text(file)))
    except FileNotFoundError:
        return {}
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"config.yaml is damaged: {error}") from None


@cache
def _parse(text: str) -> dict[str, Any]:
    """Seeds of a setup share one text, and one dictionary."""
    return {key: value for key, value in flat(parse_yaml(text)) if key not in _SEEDS | _FORMER}


def _number_setups(long: pd.DataFrame) -> list[str]:
    """Add the column `setup` to `Runs.long`; returns `Runs.settings`."""
    keys = list(map(str, long))
    own = [k for k in keys if k.startswith("method.config.") and k != "method.config.routing_seed"]
    first = ["scale", "model", "experiment", "method.label", "method.rank", *own]
    last = ["method.name", "method.trainable_parameters", "train.steps"]
    settings = [k for k in dict.fromkeys([*first, *filter(_shapes, keys), *last]) if k in long]
    # One config at one routing seed, but several ids: the data or benchmarks differ in content.
    seeds = [key for key in ("method.config.routing_seed",) if key in long]
    alike = [*settings, "benchmark"]
    ids = long.groupby([*alike, *seeds], dropna=False, sort=False)["id"].transform("nunique")
    several = ids.groupby([long[key] for key in alike], dropna=False).transform("max") > 1
    long["content"] = long["id"].where(several, "")
    settings.append("content")
    long["setup"] = long.groupby(settings, dropna=False, sort=False).ngroup()
    return settings


def _shapes(key: str) -> bool:
    """Whether a key of config.yaml is a setting, and none of results.json."""
    group, _, rest = key.partition(".")
    if group in _NEUTRAL or key in _SEEDS or key.endswith(_PLACES):
        return False
    if group in _RESULTS or key in (*_SCORES, *_SHORT.values()):
        return False
    if group == "trainer" and rest in BOOKKEEPING:
        return False
    return not (group == "eval" and rest in _NEUTRAL_EVAL)


def passing(runs: Runs, expression: str) -> pd.DataFrame:
    """The measurements of the runs for which an expression of `DataFrame.query` is true.

    Args:
        expression: over the columns of `runs.wide`; dots need no backticks, and "metrics." may
            stand before a metric: `method.rank>=16 and method.label=="MoS"`.

    Raises:
        UserError: a name that no run has, or no such expression.
    """
    frame = runs.wide.infer_objects()
    dotted = sorted((name for name in map(str, frame) if "." in name), key=len, reverse=True)
    known = "|".join(map(re.escape, dotted))
    query = re.sub(rf"(?<![\w.`])(?:metrics\.)?({known})(?![\w`])", r"`\1`", expression)
    try:
        found = frame.query(query, engine="python").index
    except Exception as error:  # whatever an expression can raise
        wrong = re.sub(r"^name '(.*)' is not defined$", r"\1", str(error))
        raise UserError(
            f"filter={expression}: {error}.{did_you_mean(wrong, frame)} Expected an expression of"
            " pandas over keys of results.json or config.yaml, texts in quotes, such as"
            " 'method.rank>=16 and method.label==\"MoS\"'."
        ) from error
    if found.empty:
        raise UserError(f"filter={expression}: none of the {len(frame)} usable runs passes it.")
    return runs.long[runs.long["run"].isin(found)]


def select(
    found: Runs,
    problems: list[Problem],
    scale: str = "auto",
    model: str = "auto",
    partial: bool = False,
    where: str | None = None,
) -> Runs:
    """Those that can be compared: of one scale, all whole or all cut alike, each seed once.

    Args:
        problems: gets an entry for everything that is left out.
        scale: "auto" takes the paper's if there is any, else the commonest.
        model: "auto" takes all.
        partial: take results of benchmarks that were cut, all in the commonest way, instead of
            whole ones.
        where: see `passing`.

    Raises:
        UserError: no result of a scale or model that was asked for, or none that passes `where`.
    """
    if found.long.empty:
        return replace(found, scale="" if scale == "auto" else scale)
    long = passing(found, where) if where else found.long
    runs = long.drop_duplicates("run").set_index("run")
    if scale == "auto":
        scales = runs["scale"].value_counts()
        scale = paper.SCALE if paper.SCALE in scales else str(scales.index[0])
    for key, wanted in (("scale", scale), ("model", paper.model_key(model))):
        if wanted == "auto":
            continue
        if wanted not in set(runs[key]):
            counts = runs[key].value_counts().items()
            there = ", ".join(f"{name} ({count})" for name, count in counts)
            raise UserError(f"{key}={wanted}: no such results; there are {there}.")
        for folder, other in runs.loc[runs[key] != wanted, key].items():
            problems.append(Problem(str(folder), f"of {key} {other}, not {wanted}", LEFT_OUT))
        runs = runs[runs[key] == wanted]
    long, cut = _comparable(long[long["run"].isin(runs.index)], partial, problems)
    return replace(found, long=_newest(long, problems), scale=scale, cut=cut)


def _comparable(
    long: pd.DataFrame, partial: bool, problems: list[Problem]
) -> tuple[pd.DataFrame, str]:
    """The measurements on the same, whole set of examples; and why it is not whole, or ""."""
    cuts = long.loc[long["partial"] != "", "partial"]
    wanted = str(cuts.mode().iloc[0]) if partial and len(cuts) else ""
    # Each experiment holds out examples of its own, which each model splits into tokens.
    own = long["benchmark"] == HELDOUT.benchmark
    alike = long.groupby([long["column"] + " " + long["model"].where(own, ""), "partial"])
    most = alike["n"].transform("max")
    common = alike["prompts"].transform(lambda prompts: prompts.mode().iloc[0])
    faults = pd.Series("", long.index)
    faults[own & (long["prompts"] != common)] = (
        " is of other examples than those of most runs of the experiment"
    )
    n, others = long["n"].astype(str), most.astype(str)
    few = " was scored on " + n + " examples, others on " + others + ": not the whole benchmark"
    faults = faults.mask((long["n"] > 0) & (long["n"] != most), few)
    cut = ~own & (long["partial"] != wanted)
    faults = faults.mask(cut, " is partial (" + long["partial"] + ")")
    faults[cut & (long["partial"] == "")] = " is whole, and these tables are of partial ones"
    for run, benchmark, fault in zip(long["run"], long["benchmark"], faults, strict=True):
        if fault:
            problems.append(Problem(run, benchmark + fault, LEFT_OUT))
    return long[faults == ""], wanted


def _newest(long: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """The measurements, of each seed of a setup the newest."""
    same = ["setup", "column", "seed"]
    ordered = long.sort_values("modified", kind="stable")
    is_older = ordered.duplicated(same, keep="last")
    newest = ordered[~is_older]
    pairs = ordered[is_older].merge(newest, on=same, suffixes=("", "_newer"))
    for run, newer, seed in pairs[["run", "run_newer", "seed"]].drop_duplicates().to_numpy():
        reason = f"duplicate of {newer} (seed {seed}); the newer one is used"
        problems.append(Problem(run, reason, LEFT_OUT))
    return newest.sort_index()
