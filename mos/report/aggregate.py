"""Runs -> cells: mean, standard deviation and n over seeds.

What is never mixed in one cell: scales, models, partial with whole results, setups that differ in
anything but the seed, and results on other training data than the paper's for that benchmark.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mos.report import paper
from mos.report.results import Problem, Result


@dataclass(frozen=True)
class Cell:
    """One metric of one setup: value per seed, 0..100, and the runs that they come from."""

    values: Mapping[int, float]
    runs: tuple[Result, ...] = ()

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values.values())

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None for a single seed."""
        return statistics.stdev(self.values.values()) if self.n > 1 else None


@dataclass
class Group:
    """All results of one method configuration, model and scale, over experiments and seeds."""

    label: str
    rank: int | str | None
    parameters: int
    model: str
    scale: str
    config: Mapping[str, Any]
    cells: dict[str, Cell] = field(default_factory=dict)
    runs: list[Result] = field(default_factory=list)

    def average(self, columns: Sequence[paper.Column]) -> Average | None:
        """Unweighted mean of the columns, or None while one of them is missing."""
        cells = [self.cells.get(column.key) for column in columns]
        if any(cell is None for cell in cells):
            return None
        whole = [cell for cell in cells if cell is not None]
        seeds = set.intersection(*(set(cell.values) for cell in whole))
        return Average(
            mean=statistics.fmean(cell.mean for cell in whole),
            per_seed={
                seed: statistics.fmean(cell.values[seed] for cell in whole)
                for seed in sorted(seeds)
            },
            n=min(cell.n for cell in whole),
        )


@dataclass(frozen=True)
class Average:
    """Mean over columns of their means; `per_seed` has the seeds that all columns share."""

    mean: float
    per_seed: Mapping[int, float]
    n: int

    @property
    def std(self) -> float | None:
        values = self.per_seed.values()
        return statistics.stdev(values) if len(values) > 1 else None


def group_runs(results: Iterable[Result]) -> tuple[list[Group], list[Problem]]:
    """One group per method configuration (routing seeds aside), with a cell per column."""
    problems: list[Problem] = []
    groups: dict[tuple[Any, ...], Group] = {}
    for result in results:
        config = {k: v for k, v in result.config.items() if k != "routing_seed"}
        model = paper.model_key(result.model)
        key = (
            result.scale,
            model,
            result.label,
            str(result.rank),
            result.trainable_parameters,
            json.dumps(config, sort_keys=True, default=str),
        )
        group = groups.get(key)
        if group is None:
            group = groups[key] = Group(
                result.label, result.rank, result.trainable_parameters, model, result.scale, config
            )
        group.runs.append(result)
    for group in groups.values():
        _fill(group, problems)
    return list(groups.values()), list(dict.fromkeys(problems))


def _fill(group: Group, problems: list[Problem]) -> None:
    by_benchmark: dict[str, list[Result]] = defaultdict(list)
    for run in group.runs:
        for benchmark in run.metrics:
            if _pairs(run, benchmark):
                by_benchmark[benchmark].append(run)
            else:
                reason = (
                    f"{benchmark} after training on {run.experiment} is not the paper's pair; "
                    "not in the tables"
                )
                problems.append(Problem(str(run.path), reason))
    for benchmark, runs in by_benchmark.items():
        chosen = _one_setup(_prefer_pairs(runs, problems), problems)
        for column in paper.COLUMNS:
            if column.benchmark == benchmark:
                values = {run.seed: float(run.metrics[benchmark][column.metric]) for run in chosen}
                group.cells[column.key] = Cell(values, tuple(chosen))


def _pairs(run: Result, benchmark: str) -> bool:
    if run.trainable_parameters == 0 or run.experiment not in paper.PAIRS:
        return True
    return benchmark in paper.PAIRS[run.experiment]


def _prefer_pairs(runs: list[Result], problems: list[Problem]) -> list[Result]:
    known = [run for run in runs if run.experiment in paper.PAIRS]
    for run in runs:
        if run.experiment not in paper.PAIRS and run.trainable_parameters:
            used = "left out beside the paper's own" if known else "used, though not the paper's"
            problems.append(Problem(str(run.path), f"experiment {run.experiment!r} is {used}"))
    return known or runs


def _one_setup(runs: list[Result], problems: list[Problem]) -> list[Result]:
    """One run per seed, all of one setup: that with the most seeds, the newest among equals."""
    setups: list[list[Result]] = []
    for run in sorted(runs, key=lambda run: (run.modified, str(run.path))):
        for setup in setups:
            if setup[0].experiment == run.experiment and not differences(setup[0], run):
                setup.append(run)
                break
        else:
            setups.append([run])
    setups.sort(key=lambda runs: (len({run.seed for run in runs}), runs[-1].modified))
    *others, chosen = setups
    for other in others:
        differing = ", ".join(differences(other[0], chosen[0])) or "the experiment"
        reason = (
            f"{len(other)} run(s) of another setup than {chosen[-1].path} ({differing}): left out; "
            "choose with filter="
        )
        problems.append(Problem(str(other[-1].path), reason, "skipped"))
    newest: dict[int, Result] = {}
    for run in chosen:
        if run.seed in newest:
            older = newest[run.seed]
            reason = f"duplicate of {run.path} (seed {run.seed}); the newer one is used"
            problems.append(Problem(str(older.path), reason, "skipped"))
        newest[run.seed] = run
    return [newest[seed] for seed in sorted(newest)]


def differences(one: Result, other: Result) -> list[str]:
    """Keys of config.yaml in which the setups of two runs differ, as "key: a / b".

    Runs of one id (seed aside) or without config.yaml count as one setup.
    """
    first, second = one.setup_config, other.setup_config
    if one.setup == other.setup or not (first and second):
        return []
    return [
        f"{key}: {first.get(key)} / {second.get(key)}"
        for key in sorted({*first, *second})
        if first.get(key) != second.get(key)
    ]
