"""Run folders -> two frames, a row a run and a row a measurement; what may not stand beside the
rest is named and left out."""

from __future__ import annotations

import json
import re
import time
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
_FORMER = {"data.chat_tokens"}  # in the configs of earlier versions
# Places, logging and speed shape no result. (Data at another place have another run id.)
_NEUTRAL = {"paths", "logging", "hydra", "overwrite", "dry_run", "device"}
_NEUTRAL_EVAL = {
    "defer", "allow_code_execution", "sandbox", "gpu_memory_utilization", "batch_size",
    "max_model_len", "tensor_parallel", "data_parallel",
}  # fmt: skip
_PLACES = (".data_dir", ".source", ".path", ".note")
# Columns of `Runs.runs` that every line of `Runs.long` has.
_SHORT = {
    **{key: key for key in ("model", "experiment", "seed", "config", "setup", "modified")},
    "method.label": "label", "method.rank": "rank", "method.name": "method",
    "method.trainable_parameters": "parameters", "train.eval_loss": "eval_loss",
    "method.config.equivalent_rank": "equivalent_rank",
}  # fmt: skip
_SCORES = ("run", "benchmark", "key", "column", "value", "n", "partial", "prompts", "lower")


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
    """Runs that can be used.

    Attributes:
        folders: how many run folders there are.
        runs: a row a run, indexed by its folder. Columns are the dotted keys of results.json and
            config.yaml. `setup` numbers the setups: runs of one differ in nothing but their seeds;
            `config` numbers the configurations of methods, each on a model.
        scores: a row a measurement: `run`, `benchmark`, `key` ("mmlu.exact_match"), `column` (the
            same, with the experiment for what an experiment holds out of its own data), `value`,
            `n`, `partial` (why the benchmark is not whole, or ""), `prompts` (their hash, or ""),
            `lower` (whether lower is better).
        settings: the columns of `runs` that make a setup.
        scale: of all runs, where they were selected.
        cut: why their benchmarks are not whole, or "".
    """

    folders: int
    runs: pd.DataFrame
    scores: pd.DataFrame
    settings: Sequence[str] = ()
    scale: str = ""
    cut: str = ""

    @property
    def columns(self) -> list[Column]:
        """The metrics that any run has, known benchmarks first, held-out ones by experiment."""
        there = self.scores.drop_duplicates("column")[["key", "column", "lower"]]
        return sorted(paper.column(*line) for line in there.itertuples(index=False, name=None))

    @cached_property
    def long(self) -> pd.DataFrame:
        """`scores`, each with what is said of its run, in short names."""
        about = self.runs.reindex(columns=list(_SHORT)).rename(columns=_SHORT)
        about["model"] = about["model"].map(paper.model_key)
        return self.scores.join(about, on="run")

    @property
    def wide(self) -> pd.DataFrame:
        """`runs`, with a column a metric."""
        metrics = self.scores.pivot(index="run", columns="key", values="value")
        return self.runs.join(metrics.reindex(self.runs.index))

    def only(self, runs: pd.DataFrame) -> Runs:
        """These of the runs."""
        scores = self.scores[self.scores["run"].isin(runs.index)]
        return replace(self, runs=runs, scores=scores)


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
    scores: list[tuple[Any, ...]] = []
    for run in found:
        try:
            results = _usable(run, problems)
            if results is None or (modified := _modified(run)) < oldest:
                continue
            own = _scores(run, results)
            about = {"id": re.sub(r"[/_-]?seed-?\d+$", "", results.run_id), "modified": modified}
            said = {**_config(run), **dict(flat(results.content())), **about}
            rows[str(run.path)] = {"method.rank": None, **said}  # some results do not have it
            scores += own
        except UserError as error:
            problems.append(Problem(str(run.path), str(error), REFUSED))
        except OSError as error:
            reason = f"cannot be read ({error.strerror})"
            problems.append(Problem(str(run.path), reason, LEFT_OUT))
    table = pd.DataFrame(scores, columns=list(_SCORES))
    if not rows:
        return Runs(len(found), pd.DataFrame(), table)
    # As objects: whole numbers stay whole beside cells that are empty.
    frame = pd.DataFrame(list(rows.values()), index=list(rows), dtype=object)
    return Runs(len(found), frame, table, _number_setups(frame))


def _modified(run: Run) -> float:
    return (run.path / Results.FILE).stat().st_mtime


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


def _scores(run: Run, results: Results) -> list[tuple[Any, ...]]:
    """The measurements of a run, each with the values of `_SCORES`."""
    found = []
    for benchmark, entry in results.metrics.items():
        evaluated = Metrics.load(run.path / "eval" / benchmark)
        prompts = evaluated.prompts_sha256 if evaluated else None
        own = f" ({results.experiment})" if benchmark == HELDOUT.benchmark else ""
        about = entry.n or 0, printable(entry.partial or ""), prompts or ""
        for metric, value in entry.metrics.items():
            key = printable(f"{benchmark}.{metric}")
            lower = metric in entry.lower_is_better or key == HELDOUT.key
            line = (str(run.path), printable(benchmark), key, printable(key + own), float(value))
            found.append((*line, *about, lower))
    return found


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


def _number_setups(frame: pd.DataFrame) -> list[str]:
    """Add the columns `setup` and `config` to `Runs.runs`; returns `Runs.settings`."""
    keys = list(map(str, frame))
    own = [k for k in keys if k.startswith("method.config.") and k != "method.config.routing_seed"]
    first = ["scale", "model", "experiment", "method.label", "method.rank", *own]
    last = ["method.name", "method.trainable_parameters", "train.steps"]
    settings = [k for k in dict.fromkeys([*first, *filter(_shapes, keys), *last]) if k in frame]
    method = ["model", "method.label", "method.rank", "method.trainable_parameters", *own]
    frame["config"] = frame.groupby(method, dropna=False, sort=False).ngroup()
    frame["setup"] = frame.groupby(settings, dropna=False, sort=False).ngroup()
    # One config at one routing seed, but several ids: the data or benchmarks differ in content.
    seeds = [key for key in ("method.config.routing_seed",) if key in frame]
    ids = frame.groupby(["setup", *seeds], dropna=False, sort=False)["id"].transform("nunique")
    several = ids.groupby(frame["setup"]).transform("max") > 1
    frame["content"] = frame["id"].where(several, "")
    frame["setup"] = frame.groupby(["setup", "content"]).ngroup()
    return [*settings, "content"]


def _shapes(key: str) -> bool:
    """Whether a key of config.yaml is a setting, and none of results.json."""
    group, _, rest = key.partition(".")
    if group in _NEUTRAL or key in _SEEDS or key.endswith(_PLACES):
        return False
    if group in ("schema", "run_id", "id", "modified", "sha256", "method", "train", "metrics"):
        return False
    if group == "trainer" and rest in BOOKKEEPING:
        return False
    return not (group == "eval" and rest in _NEUTRAL_EVAL)


def passing(runs: Runs, expression: str) -> pd.DataFrame:
    """The runs for which an expression of pandas' `DataFrame.query` is true.

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
    return runs.runs.loc[found]


def select(
    found: Runs,
    problems: list[Problem],
    scale: str = "auto",
    partial: bool = False,
    where: str | None = None,
) -> Runs:
    """Those that can be compared: of one scale, all whole or all cut alike, each seed once.

    Args:
        problems: gets an entry for everything that is left out.
        scale: "auto" takes the paper's if there is any, else the commonest.
        partial: take results of benchmarks that were cut, all in the commonest way, instead of
            whole ones.
        where: see `passing`.

    Raises:
        UserError: no result at a scale that was asked for, or none that passes `where`.
    """
    if found.runs.empty:
        return replace(found, scale="" if scale == "auto" else scale)
    runs = passing(found, where) if where else found.runs
    scales = runs["scale"].value_counts()
    if scale == "auto":
        scale = paper.SCALE if paper.SCALE in scales else str(scales.index[0])
    elif scale not in scales:
        there = ", ".join(f"{name} ({count})" for name, count in scales.items())
        raise UserError(f"scale={scale}: no such results; there are {there}.")
    for folder, other in runs.loc[runs["scale"] != scale, "scale"].items():
        reason = f"of scale {other}; the tables hold scale {scale} only"
        problems.append(Problem(str(folder), reason, LEFT_OUT))
    found = found.only(runs[runs["scale"] == scale])
    scores, cut = _comparable(found, partial, problems)
    found = replace(found, scores=scores, scale=scale, cut=cut)
    return found.only(_newest(found.runs[found.runs.index.isin(scores["run"])], problems))


def _comparable(runs: Runs, partial: bool, problems: list[Problem]) -> tuple[pd.DataFrame, str]:
    """The measurements on the same, whole set of examples; and why it is not whole, or ""."""
    scores = runs.scores
    cuts = scores.loc[scores["partial"] != "", "partial"]
    wanted = str(cuts.mode().iloc[0]) if partial and len(cuts) else ""
    # Each experiment holds out examples of its own, which each model splits into tokens.
    own = scores["benchmark"] == HELDOUT.benchmark
    place = scores["column"] + " " + scores["run"].map(runs.runs["model"]).where(own, "")
    alike = scores.groupby([place, scores["partial"]])
    most = alike["n"].transform("max")
    common = alike["prompts"].transform(lambda prompts: prompts.mode().iloc[0])
    faults = pd.Series("", scores.index)
    faults[own & (scores["prompts"] != common)] = (
        " is of other examples than those of most runs of the experiment"
    )
    n, others = scores["n"].astype(str), most.astype(str)
    few = " was scored on " + n + " examples, others on " + others + ": not the whole benchmark"
    faults = faults.mask((scores["n"] > 0) & (scores["n"] != most), few)
    cut = ~own & (scores["partial"] != wanted)
    faults = faults.mask(cut, " is partial (" + scores["partial"] + ")")
    faults[cut & (scores["partial"] == "")] = " is whole, and these tables are of partial ones"
    for run, benchmark, fault in zip(scores["run"], scores["benchmark"], faults, strict=True):
        if fault:
            problems.append(Problem(run, benchmark + fault, LEFT_OUT))
    return scores[faults == ""], wanted


def _newest(runs: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """One run a seed of a setup: the newest."""
    runs = runs.sort_values("modified", kind="stable")
    last = {(setup, seed): folder for folder, setup, seed in runs[["setup", "seed"]].itertuples()}
    older = runs.duplicated(["setup", "seed"], keep="last")
    for folder, setup, seed in runs.loc[older, ["setup", "seed"]].itertuples():
        reason = f"duplicate of {last[setup, seed]} (seed {seed}); the newer one is used"
        problems.append(Problem(str(folder), reason, LEFT_OUT))
    return runs[~older].sort_index()


def _seconds(duration: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", str(duration).strip())
    if not match:
        raise UserError(f"since={duration}: expected a number and one of s, m, h, d, w, as in 6h.")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}[match[2]]
