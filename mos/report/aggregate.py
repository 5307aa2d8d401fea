"""Runs -> cells (mean, standard deviation and n over seeds) -> the rows of the paper's tables.

What is never mixed in one cell: scales, models, partial with whole results, setups that differ in
anything but the seed, and results on other training data than the paper's for that benchmark.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mos.errors import UserError
from mos.report import paper
from mos.report.results import Problem, Result

PARAMETER_TOLERANCE = 0.02


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


@dataclass
class Line:
    """A row of the paper's table with what fills it, if anything does."""

    row: paper.Row
    group: Group | None = None
    average: Average | None = None

    def cell(self, column: paper.Column) -> Cell | None:
        return self.group.cells.get(column.key) if self.group else None

    def __getitem__(self, column: paper.Column) -> Cell:
        """The cell of a column that is known to be filled; KeyError otherwise."""
        if (cell := self.cell(column)) is None:
            raise KeyError(column.key)
        return cell

    @property
    def rank(self) -> str:
        if self.group is None or self.row.ranks or not isinstance(self.group.rank, int):
            return self.row.rank
        return self.row.rank if self.row.millions is None else str(self.group.rank)

    @property
    def trained(self) -> bool:
        return self.row.millions is not None


@dataclass
class Filled:
    """A table of the paper filled with results of one scale and model.

    `comparable` tells whether the paper's figures belong beside them (same scale and model, whole
    benchmarks); `cut` why benchmarks are not whole.
    """

    table: paper.Table
    scale: str
    model: str
    comparable: bool
    lines: list[Line]
    cut: str | None = None

    @property
    def empty(self) -> bool:
        return all(line.group is None for line in self.lines)

    @property
    def seeds(self) -> int:
        """The largest number of seeds in any cell."""
        return max(
            (cell.n for line in self.lines if line.group for cell in line.group.cells.values()),
            default=0,
        )


def select(
    results: Iterable[Result],
    *,
    scale: str = "auto",
    partial: bool = False,
    where: Callable[[Result], bool] | None = None,
) -> tuple[list[Result], str, list[Problem]]:
    """Results of one scale, all whole (or, with `partial`, all cut in the same way).

    Returns:
        The results (with unusable benchmarks dropped), the scale, and what was left out.

    Raises:
        UserError: no result at a scale that was asked for.
    """
    problems: list[Problem] = []
    results = [result for result in results if where is None or where(result)]
    scales = Counter(result.scale for result in results)
    if scale == "auto":
        scale = (
            paper.SCALE
            if paper.SCALE in scales
            else max(scales, key=lambda name: scales[name], default="")
        )
    elif results and scale not in scales:
        raise UserError(f"select.scale={scale}: no such results; there are {_counted(scales)}.")
    for other, count in scales.items():
        if other != scale:
            reason = f"{count} run(s) at this scale; the tables hold scale {scale} only"
            problems.append(Problem(f"scale {other}", reason, "skipped"))
    chosen = [result for result in results if result.scale == scale]
    return _whole(chosen, partial, problems), scale, problems


def _whole(results: list[Result], partial: bool, problems: list[Problem]) -> list[Result]:
    """Results with only those benchmarks that were scored on the same, whole set of examples."""
    evaluated = [values for result in results for values in result.metrics.values()]
    cuts = Counter(cut for values in evaluated if (cut := _cut(values)))
    wanted = max(cuts, key=lambda cut: cuts[cut], default=None) if partial else None
    largest: dict[str, int] = defaultdict(int)
    for result in results:
        for benchmark, values in result.metrics.items():
            if _cut(values) == wanted:
                largest[benchmark] = max(largest[benchmark], values.get("n") or 0)
    kept = []
    for result in results:
        metrics = {}
        for benchmark, values in result.metrics.items():
            cut, count = _cut(values), values.get("n")
            if cut != wanted:
                state = f"partial ({cut})" if cut else "whole, and these tables are of partial ones"
                reason = f"{benchmark} is {state}"
            elif count is not None and count != largest[benchmark]:
                reason = (
                    f"{benchmark} was scored on {count} examples, others on {largest[benchmark]}: "
                    "not the whole benchmark"
                )
            else:
                metrics[benchmark] = values
                continue
            problems.append(Problem(str(result.path), reason, "skipped"))
        if metrics:
            kept.append(replace(result, metrics=metrics))
    return kept


def _cut(values: Mapping[str, Any]) -> str | None:
    return str(values["partial"]) if values.get("partial") else None


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


def fill_table(
    table: paper.Table, groups: Sequence[Group], scale: str, model: str = "auto"
) -> tuple[Filled, list[Problem]]:
    """Fill one of the paper's tables from groups of one scale.

    Args:
        model: "auto" takes the paper's model, or, for the 7B tables where it has no runs, the one
            with the most; anything else is taken as it is.
    """
    problems: list[Problem] = []
    counts = Counter(group.model for group in groups for _ in group.runs)
    if model != "auto":
        model = paper.model_key(model)
    elif table.model in counts or not counts or table is paper.TABLE3:
        model = table.model
    else:
        model = counts.most_common(1)[0][0]
    candidates = [group for group in groups if group.model == model]
    lines = []
    for row in table.rows:
        matching = [group for group in candidates if matches(row, group, table.model)]
        matching.sort(key=lambda group: _completeness(group, table.columns))
        group = matching.pop() if matching else None
        shown = group.rank if group else None
        for other in matching:
            reason = (
                f"{table.name} shows rank {shown}, the fuller or better of "
                f"{len(matching) + 1} configurations; rank {other.rank} is among the other rows"
            )
            problems.append(Problem(f"{row.label} {row.rank}", reason))
        lines.append(Line(row, group, group.average(table.columns) if group else None))
    problems += _different_prompts(table, lines)
    evaluated = (v for group in groups for run in group.runs for v in run.metrics.values())
    cut = next((cut for values in evaluated if (cut := _cut(values))), None)
    comparable = scale == paper.SCALE and model == table.model and cut is None
    return Filled(table, scale, model, comparable, lines, cut), problems


def _different_prompts(table: paper.Table, lines: Iterable[Line]) -> list[Problem]:
    """Benchmarks whose trained rows did not all answer the same prompts."""
    problems = []
    trained = [line for line in lines if line.trained]
    for column in {column.benchmark: column for column in table.columns}.values():
        rows: dict[str, list[str]] = defaultdict(list)
        for line in trained:
            cell = line.cell(column)
            for asked in {run.prompts.get(column.benchmark) for run in cell.runs} if cell else ():
                if asked:
                    rows[asked].append(f"{line.row.label} {line.row.rank}")
        if len(rows) > 1:
            parts = " / ".join(", ".join(names) for names in rows.values())
            reason = f"{column.benchmark} was asked in different prompts: {parts}"
            problems.append(Problem(table.name, reason))
    return problems


def _completeness(group: Group, columns: Sequence[paper.Column]) -> tuple[float, ...]:
    cells = [group.cells[c.key] for c in columns if c.key in group.cells]
    mean = statistics.fmean(cell.mean for cell in cells) if cells else 0.0
    return (len(cells), sum(cell.n for cell in cells), mean)


def matches(row: paper.Row, group: Group, model: str) -> bool:
    """Whether a group can fill a row: its label, one of the row's ranks, and the row's budget.

    The budget is the number of trainable parameters on the paper's own `model`, and the equivalent
    rank, where the method has one, on any other.
    """
    if group.label != row.label:
        return False
    if row.millions is None:
        return True
    rank = str(group.rank)
    if row.ranks and rank != row.rank and rank not in map(str, row.ranks):
        return False
    if group.model == model:
        budget = row.millions * 1e6
        return abs(group.parameters - budget) <= PARAMETER_TOLERANCE * budget
    equivalent = group.config.get("equivalent_rank")
    return equivalent is None or row.equivalent_rank is None or equivalent == row.equivalent_rank


def unknown_labels(groups: Iterable[Group]) -> list[Problem]:
    """Rows whose label no method of the paper or of this project carries."""
    return [
        Problem(
            str(group.runs[0].path),
            f"unknown row {group.label!r} ({len(group.runs)} run(s)): in no table of the paper, "
            "listed among the other rows",
        )
        for group in groups
        if not paper.known_label(group.label)
    ]


def other_groups(groups: Iterable[Group], filled: Iterable[Filled]) -> list[Group]:
    """Groups that fill no row of the tables, by model, label and size."""
    used = {id(line.group) for table in filled for line in table.lines if line.group}
    rest = [group for group in groups if id(group) not in used]
    return sorted(rest, key=lambda g: (g.model, g.label, g.parameters, str(g.rank)))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{name} ({count})" for name, count in counts.most_common()) or "none"
