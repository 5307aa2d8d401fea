"""Evaluate runs, adapters and bare models: `python -m mos.evaluate runs='outputs/**'`.

    what to evaluate -> benchmarks -> one engine a base model -> results.json

Nothing is computed twice: outputs are cached by weights, adapter, prompts and decoding, and an
evaluation that was stopped continues where it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.markup import escape
from rich.table import Column, Table

from eval import BENCHMARKS
from mos.__main__ import command
from mos.config import TrainConfig, compose_config, resolved, validate
from mos.console import (
    console,
    override,
    printable,
    quiet_libraries,
    say,
)
from mos.errors import LeftOutError, UserError, unknown
from mos.evaluation.subjects import Subject, adapter_subject, bare_subject, left_out, run_subject
from mos.files import check_writable
from mos.preflight import (
    check_benchmark_data,
    check_consent,
    check_engine,
    check_model_files,
)
from mos.run import command_of_job, open_run
from mos.runs import find_runs
from mos.training.sweep import as_member, note_member

OWN = "own"  # in configs/eval/own.yaml: as the run was configured


class EvaluateConfig(TrainConfig):
    """What configs/evaluate.yaml says; `eval` is what counts for adapters and bare models."""

    runs: str | list[str] | None
    adapters: str | list[str] | None
    benchmarks: str | list[str] | None


def evaluate(cfg: DictConfig) -> list[Subject]:
    """Evaluate what a composed config names, and write the results into the runs.

    Args:
        cfg: configs/evaluate.yaml composed with overrides, e.g. by `mos.config.compose_config`.

    Returns:
        The models with their results.

    Raises:
        UserError: a wrong config, missing files, an adapter that does not fit its model, an engine
            that died. What was finished is kept.
        LeftOutError: of several models some were left out, and the others evaluated.
    """
    values = resolved(cfg)
    for key in ("runs", "adapters", "benchmarks"):
        if values[key] in ("", []):
            raise UserError(f"{key}={values[key]} selects nothing: name some, or leave {key}= out.")
    given = {key: value for key, value in values["eval"].items() if value != OWN}
    names = as_list(values["benchmarks"])
    chosen = names or list(given["benchmarks"])
    for name in chosen:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    default = _default(BENCHMARKS if values["runs"] else chosen, values["paths"]["data_dir"])
    known = default["benchmarks"]
    complete = {
        name: {**known[name], **given["benchmarks"].get(name, {})}
        for name in (chosen if chosen or values["runs"] else known)
    }
    values["eval"] = {**default, **given, "benchmarks": complete}
    config = validate(OmegaConf.create(values), EvaluateConfig)
    check_consent(config.eval)
    if not config.dry_run:
        check_engine(config)
        check_writable(config.paths.cache_dir, "paths.cache_dir")

    makers: dict[str, Callable[[], Subject | None]] = {}
    if config.runs:
        places = {name: own["data_dir"] for name, own in known.items()}
        found = find_runs(as_list(config.runs))
        note_member(runs=[str(run.path) for run in found])
        for run in found:
            makers[str(run.path)] = partial(run_subject, run, config, given, names, places)
    for folder in as_list(config.adapters):
        makers[folder] = partial(adapter_subject, Path(folder).expanduser(), config)
    if not makers:
        makers[f"{config.model.name}, no adapter"] = partial(_bare, config)
    say(f"evaluating {next(iter(makers)) if len(makers) == 1 else f'{len(makers)} models'}")
    subjects, failures = _usable(makers)
    if not subjects and not failures:
        raise UserError(f"runs={config.runs}: no run there is trained. Train first: mos.train.")
    if config.dry_run:
        for subject in subjects:
            say(f"{subject.name}: {', '.join(subject.evaluation.benchmarks)}")
        say("dry run: nothing was done")
    elif subjects:
        # Torch and its companions take seconds to import.
        from mos.evaluation.jobs import evaluate_subjects

        quiet_libraries()
        failures |= evaluate_subjects(subjects, config.paths.cache_dir, config.overwrite)
        if len(subjects) > 1:
            console.print(_table(subjects))
    if failures:
        raise LeftOutError(failures, len(makers))
    return subjects


def _usable(
    makers: Mapping[str, Callable[[], Subject | None]],
) -> tuple[list[Subject], dict[str, str]]:
    """The subjects that can be evaluated; of several, the others by name with the reason."""
    subjects: list[Subject] = []
    failures: dict[str, str] = {}
    for name, make in makers.items():
        with left_out(name, failures, len(makers) == 1):
            if (subject := make()) is None:
                continue
            if not subject.evaluation.benchmarks:
                raise UserError("no benchmark is chosen; name some, benchmarks=[mmlu].")
            check_consent(subject.evaluation)
            check_benchmark_data(subject.evaluation)
            check_model_files(subject.model)
            subjects.append(subject)
    return subjects, failures


def _default(names: Iterable[str], data_dir: str) -> dict[str, Any]:
    """configs/eval for some benchmarks, or for those that mos.train evaluates by default."""
    group = [f"eval=[{','.join(['base', *names])}]"] if names else []
    return resolved(compose_config([*group, override("paths.data_dir", data_dir)]))["eval"]


def _bare(config: EvaluateConfig) -> Subject:
    """The model of the config without an adapter, as a run: the paper's vanilla rows."""
    method = config.adapter.method
    if method != "none":
        raise UserError(
            f"adapter={method} without runs= or adapters=: there is nothing trained to evaluate."
            " Name runs (runs='outputs/**') or adapter folders (adapters=[DIR]), or evaluate the"
            " bare model with adapter=none."
        )
    check_benchmark_data(config.eval)
    check_model_files(config.model)
    run = open_run(config)
    if not config.dry_run:
        from mos.training.fit import record_bare

        with run.claimed(wait=True):
            if not run.trained:
                run.write_config(config)
                run.update_manifest(command=command_of_job())
                record_bare(config, run)
    return bare_subject(f"{config.model.name}, no adapter", config, run.path, run=run)


def _table(subjects: Iterable[Subject]) -> Table:
    """A line a model and benchmark."""
    model = Column("model", overflow="fold")
    table = Table(model, "benchmark", "metric", "score ± s.e.", "n", "note")
    for subject in subjects:
        name = escape(printable("/".join(Path(subject.name).parts[-2:])))
        for benchmark, result in subject.results.items():
            for row in result.scores.rows(benchmark):
                table.add_row(name, row.benchmark, row.metric, row.text, str(row.n), row.note)
    return table


def as_list(value: str | Iterable[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """Evaluate."""
    with as_member():
        evaluate(cfg)


if __name__ == "__main__":
    # Launchers and processes pickle what they run by its name, which is not __main__.
    from mos.evaluate import main as importable_main

    importable_main()
