"""Which results may stand in one table: those that a filter passes, of one scale, all whole or all
cut in the same way, each seed of a setup once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from mos.errors import UserError, did_you_mean
from mos.report import paper
from mos.report.cells import HELDOUT, Column
from mos.report.results import LEFT_OUT, Problem
from mos.report.runs import Runs, find_key

_TOKEN = re.compile(r"""("[^"]*"|'[^']*')|(?<![\w.])([A-Za-z_]\w*(?:\.[\w@]+)*)""")
_WORDS = {"and", "or", "not", "in", "True", "False", "None"}


@dataclass
class Selected(Runs):
    """Runs that can be compared.

    Attributes:
        scale: of all of them.
        cut: why their benchmarks are not whole, or None.
    """

    scale: str = ""
    cut: str | None = None


def passing(frame: pd.DataFrame, expression: str) -> pd.DataFrame:
    """The runs for which an expression of pandas' `DataFrame.query` is true.

    Args:
        expression: over the columns of `frame`, dots and all:
            `method.rank>=16 and method.label=="MoS"`, `experiment in ["flan_bbh"]`,
            `method.label.str.contains("MoS")`.

    Raises:
        UserError: a name that no run has, or no such expression.
    """
    aliases: dict[str, str] = {}

    def alias(match: re.Match[str]) -> str:
        name = match[2]
        if name is None or name in _WORDS:
            return match[0]
        parts = name.split(".")
        for stop in range(len(parts), 0, -1):
            if (key := find_key(frame, ".".join(parts[:stop]))) is not None:
                short = aliases.setdefault(key, f"key{len(aliases)}")
                return ".".join([short, *parts[stop:]])
        raise UserError(
            f"filter={expression}: no run has the key {name}.{did_you_mean(name, frame.columns)} "
            "Keys are those of results.json or config.yaml; texts stand in quotes."
        )

    query = _TOKEN.sub(alias, expression)
    table = pd.DataFrame({short: frame[key] for key, short in aliases.items()}, frame.index)
    try:
        try:
            mask = table.eval(query, engine="python")
        except TypeError:  # a column of numbers and words ("all") in an order
            numbers = table.apply(pd.to_numeric, errors="coerce").dropna(axis=1, how="all")
            mask = numbers.eval(query, engine="python")
        if not isinstance(mask, pd.Series) or mask.dropna().infer_objects().dtype != bool:
            raise TypeError("it is neither true nor false of a run")
        return frame[mask.astype(object).fillna(False).astype(bool)]
    except Exception as error:  # whatever an expression can raise
        raise UserError(
            f"filter={expression}: {error}. Expected an expression of pandas, such as "
            "'method.rank>=16 and method.label==\"MoS\"'."
        ) from error


def select(
    runs: Runs,
    problems: list[Problem],
    scale: str = "auto",
    partial: bool = False,
    where: str | None = None,
) -> Selected:
    """The runs that can be compared.

    Args:
        problems: gets an entry for everything that is left out.
        scale: "auto" takes the paper's if there is any, else the commonest.
        partial: take results of benchmarks that were cut, all in the commonest way, instead of
            whole ones.
        where: see `passing`.

    Raises:
        UserError: no result at a scale that was asked for, or none that passes `where`.
    """
    frame = runs.frame
    if where and len(frame):
        frame = passing(frame, where)
        if frame.empty:
            raise UserError(f"filter={where}: none of the {len(runs.frame)} usable runs passes it.")
    if frame.empty:
        return Selected(runs.folders, frame, scale="" if scale == "auto" else scale)
    scales = frame["scale"].value_counts()
    if scale == "auto":
        scale = paper.SCALE if paper.SCALE in scales else str(scales.index[0])
    elif scale not in scales:
        there = ", ".join(f"{name} ({count})" for name, count in scales.items())
        raise UserError(f"scale={scale}: no such results; there are {there}.")
    for folder, other in frame.loc[frame["scale"] != scale, "scale"].items():
        reason = f"of scale {other}; the tables hold scale {scale} only"
        problems.append(Problem(str(folder), reason, LEFT_OUT))
    frame = frame[frame["scale"] == scale].copy()
    columns = [c for c in runs.columns if frame[c.key].notna().any()]
    cut = _only_whole(frame, columns, partial, problems)
    frame = frame[frame[[c.key for c in columns]].notna().any(axis=1)]
    columns = [c for c in columns if frame[c.key].notna().any()]
    frame = _newest(frame, problems)
    return Selected(runs.folders, frame, columns, runs.settings, scale, cut)


def _only_whole(
    frame: pd.DataFrame, columns: Sequence[Column], partial: bool, problems: list[Problem]
) -> str | None:
    """Empty the cells of benchmarks that were not scored on the same, whole set of examples.

    Returns why those that stay are not whole, if they are not.
    """
    benchmarks = list(dict.fromkeys(c.benchmark for c in columns))
    cuts = pd.concat([frame[f"{name}.partial"].dropna() for name in benchmarks])
    wanted = cuts.mode().iloc[0] if partial and len(cuts) else ""
    for name in benchmarks:
        keys = [c.key for c in columns if c.benchmark == name]
        table = pd.DataFrame(
            {
                "cut": frame[f"{name}.partial"].fillna(""),
                "n": pd.to_numeric(frame[f"{name}.n"]).fillna(0),
                "set": frame[f"{name}.prompts"].fillna(""),
                "data": frame["model"] + " " + frame["experiment"],
            }
        )[frame[keys].notna().any(axis=1)]
        reasons = pd.Series(index=table.index, dtype=object)
        state = table["cut"].map(
            lambda cut: f"partial ({cut})" if cut else "whole, and these tables are of partial ones"
        )
        # What is held out of the training data is never cut.
        other = (table["cut"] != wanted) & (name != HELDOUT.benchmark)
        reasons[other] = f"{name} is " + state[other]
        rest = table[~other]
        # Each experiment holds out examples of its own, which each model splits into tokens.
        places = rest["data"] if name == HELDOUT.benchmark else rest["cut"]
        largest = rest["n"].groupby(places).transform("max")
        fewer = (rest["n"] != largest) & (rest["n"] > 0)
        reasons[rest.index[fewer]] = [
            f"{name} was scored on {n:.0f} examples, others on {most:.0f}: not the whole benchmark"
            for n, most in zip(rest["n"][fewer], largest[fewer], strict=True)
        ]
        if name == HELDOUT.benchmark:
            same = rest["set"].groupby(places).transform(lambda sets: sets.mode().iloc[0])
            reasons[rest.index[~fewer & (rest["set"] != same)]] = (
                f"{name} is of other examples than those of most runs of the experiment"
            )
        reasons = reasons.dropna()
        frame.loc[reasons.index, keys] = float("nan")
        problems += [Problem(str(f), reason, LEFT_OUT) for f, reason in reasons.items()]
    return wanted or None


def _newest(frame: pd.DataFrame, problems: list[Problem]) -> pd.DataFrame:
    """One run a seed of a setup: the newest."""
    frame = frame.sort_values("modified", kind="stable")
    older = frame.duplicated(["setup", "seed"], keep="last")
    last = frame[~older].reset_index(names="folder").set_index(["setup", "seed"])["folder"]
    for folder, setup, seed in frame.loc[older, ["setup", "seed"]].itertuples():
        reason = f"duplicate of {last[setup, seed]} (seed {seed}); the newer one is used"
        problems.append(Problem(str(folder), reason, LEFT_OUT))
    return frame[~older].sort_index()
