"""Runs -> rows of tables: one setup's scores over seeds, for each method configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from mos.report import paper
from mos.report.cells import HELDOUT, Cell, Column
from mos.report.results import Problem
from mos.report.runs import Runs

_KEYS = ["model", "method.label", "method.rank", "method.trainable_parameters", "configuration"]


@dataclass
class Group:
    """All results of one method configuration on one model, over experiments and seeds.

    Attributes:
        method: its name in `mos.methods.METHODS`.
        config: the adapter's settings.
        scores: a row a seed, a column a metric (`Column.key`), NaN where there is none.
        folders: the run that each value of `scores` comes from.
        runs: how many runs the configuration has, also those that are not in `scores`.
    """

    label: str
    rank: int | str | None
    parameters: int
    model: str
    method: str
    config: Mapping[str, Any]
    scores: pd.DataFrame
    folders: pd.DataFrame
    runs: int

    def cell(self, column: Column) -> Cell | None:
        name = place(column)
        return Cell.of(self.scores[name]) if name in self.scores else None

    def folders_of(self, column: Column) -> dict[Any, str]:
        """The run of each seed in a column, {} for a column without values."""
        name = place(column)
        return dict(self.folders[name].dropna()) if name in self.folders else {}

    def average(self, columns: Sequence[Column]) -> Cell | None:
        """Unweighted mean of the columns, or None while one of them is missing."""
        return Cell.average(self.scores.reindex(columns=[place(c) for c in columns]))


def place(column: Column) -> str:
    """Where `Group.scores` has a column: each experiment's held-out examples are their own."""
    return column.key if column.experiment is None else f"{column.key}|{column.experiment}"


def spread(runs: Runs) -> list[Column]:
    """The columns of the runs, held-out loss once for each experiment that has it."""
    columns: list[Column] = []
    for c in runs.columns:
        names = sorted(runs.frame.loc[runs.frame[c.key].notna(), "experiment"].unique())
        if c.benchmark != HELDOUT.benchmark:
            columns.append(c)
        else:
            columns += [replace(c, title=f"{c.title} ({e})", experiment=e) for e in names]
    return columns


def group_runs(runs: Runs, problems: list[Problem]) -> list[Group]:
    """One group a method configuration (routing seeds aside).

    Of the setups of a configuration that have a benchmark, one is taken: that with the most seeds;
    among equals that with the lowest validation loss; then the newest.
    """
    frame = runs.frame
    if frame.empty:
        return []
    own = [key for key in runs.settings if key.startswith("method.config.")]
    names = [key.removeprefix("method.config.") for key in own]
    configs = [
        {k: v for k, v in zip(names, values, strict=True) if v is not None and v == v}
        for values in frame[own].itertuples(index=False, name=None)
    ]
    frame = frame.assign(
        model=frame["model"].map(paper.model_key),
        configuration=[json.dumps(config, default=str) for config in configs],
    )
    frame["group"] = frame.groupby(_KEYS, dropna=False, sort=False).ngroup()
    scores, folders = [], []
    for column in spread(runs):
        has = frame[frame[column.key].notna()]
        if column.experiment is not None:
            has = has[has["experiment"] == column.experiment]
        pairs = _paired(has, column.benchmark, problems)
        chosen = _one_setup(pairs, column.benchmark, runs.settings, problems)
        chosen = chosen.reset_index(names="folder").set_index(["group", "seed"])
        scores.append(chosen[column.key].rename(place(column)))
        folders.append(chosen["folder"].rename(place(column)))
    tables = [pd.concat(parts, axis=1).sort_index() for parts in (scores, folders)]
    groups = []
    for number, members in frame.groupby("group"):
        first = members.iloc[0]
        own_scores, own_folders = (
            t.loc[[number]].droplevel("group").dropna(axis=1, how="all")
            if number in t.index
            else pd.DataFrame()
            for t in tables
        )
        groups.append(
            Group(
                label=first["method.label"],
                rank=first["method.rank"],
                parameters=first["method.trainable_parameters"],
                model=first["model"],
                method=first["method.name"],
                config=json.loads(first["configuration"]),
                scores=own_scores,
                folders=own_folders,
                runs=len(members),
            )
        )
    return groups


def _paired(frame: pd.DataFrame, benchmark: str, problems: list[Problem]) -> pd.DataFrame:
    """Runs that trained on what the paper trains on for a benchmark, or that trained nothing.

    Where a configuration has none of these, runs of other experiments stand in.
    """
    paired = {e for e, benchmarks in paper.PAIRS.items() if benchmark in benchmarks}
    if not paired:
        return frame
    trained = frame["method.trainable_parameters"] > 0
    other = trained & frame["experiment"].isin(paper.PAIRS.keys() - paired)
    for folder, name in frame.loc[other, "experiment"].items():
        reason = f"{benchmark} after training on {name} is not the paper's pair; not in the tables"
        problems.append(Problem(str(folder), reason))
    frame, trained = frame[~other], trained[~other]
    own = trained & ~frame["experiment"].isin(paired)
    beside = own & (~own).groupby(frame["group"]).transform("any")
    for folder, name in frame.loc[own, "experiment"].items():
        used = "left out beside the paper's own" if beside.get(folder) else "used, not the paper's"
        problems.append(Problem(str(folder), f"experiment {name!r} is {used}"))
    return frame[~beside]


def _one_setup(
    frame: pd.DataFrame,
    benchmark: str,
    settings: Sequence[str],
    problems: list[Problem],
) -> pd.DataFrame:
    """The runs of one setup a group; what is left out is told with the settings that differ."""
    loss = pd.to_numeric(frame.get("train.eval_loss", pd.Series(index=frame.index, dtype=float)))
    members = frame.assign(gain=-loss.fillna(float("inf"))).groupby(["group", "setup"])
    setups = members.agg(n=("seed", "size"), gain=("gain", "mean"), newest=("modified", "max"))
    setups = setups.sort_values(["n", "gain", "newest"], kind="stable").reset_index()
    chosen = setups.drop_duplicates("group", keep="last").set_index("group")["setup"]
    is_chosen = frame["setup"] == frame["group"].map(chosen)
    kept, others = frame[is_chosen], frame[~is_chosen]
    shown = kept.drop_duplicates("group").set_index("group")
    for number, runs in others.groupby("group", sort=False):
        both = pd.concat([runs, shown.loc[[number]]])[settings]
        differing = [key for key in settings if both[key].astype(str).nunique() > 1]
        values = (f"{key} {', '.join(both[key].astype(str).unique()[:3])}" for key in differing[:3])
        reason = (
            f"{benchmark}: {len(runs)} run(s) of {runs['setup'].nunique()} other setup(s) than the "
            f"one in the tables ({'; '.join(values)}) are not in the tables; choose with filter="
        )
        problems.append(Problem(str(runs.index[0]), reason))
    return kept
