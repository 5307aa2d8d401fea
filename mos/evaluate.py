"""Evaluate runs, adapters and bare models: `python -m mos.evaluate runs='outputs/**'`.

    what to evaluate -> benchmarks -> one engine a base model -> results.json

Nothing is computed twice: outputs are cached by weights, adapter, prompts and decoding, and an
evaluation that was stopped continues where it was.
"""

from __future__ import annotations

import copy
import signal
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from eval import BENCHMARKS
from mos.config import CONFIG_DIR, validate
from mos.console import console, exit_on_user_error, fail, quiet_libraries, say
from mos.errors import MissingFileError, UserError, unknown
from mos.evaluation.jobs import Subject, build_benchmarks, evaluate_subjects, merge_subject_shards
from mos.preflight import choose_device
from mos.runs import find_runs

__all__ = ["build_benchmarks", "evaluate"]


def evaluate(cfg: DictConfig, explicit: Collection[str] = ()) -> list[Subject]:
    """Evaluate what a composed config names, and write the results into the runs.

    Args:
        cfg: configs/evaluate.yaml composed with overrides, e.g. by `mos.config.compose_config`.
        explicit: keys below `eval` that were given on purpose: they beat what a run's own config
            says of its evaluation.

    Returns:
        The models with their results.

    Raises:
        UserError: a wrong config, missing files, an adapter that does not fit its model, an engine
            that died. What was finished is kept.
    """
    options: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    runs, adapters = options.pop("runs"), options.pop("adapters")
    names, merge = options.pop("benchmarks"), options.pop("merge_shards")
    given = copy.deepcopy(options["eval"])
    if names is not None:
        given["benchmarks"] = options["eval"]["benchmarks"] = {
            name: _benchmark(name, options) for name in names
        }
    elif runs:
        options["eval"]["benchmarks"] = {}
    config = validate(OmegaConf.create(options))
    choose_device(config)

    subjects: list[Subject] = []
    if runs:
        subjects += _runs(runs, config, given, names, explicit)
    if adapters:
        subjects += [_adapter(Path(folder), config) for folder in _as_list(adapters)]
    if not runs and not adapters:
        subjects.append(_bare(config))
    cache_dir = config["paths"]["cache_dir"]
    for subject in subjects:
        if not subject.config["eval"]["benchmarks"]:
            raise UserError(
                f"{subject.name}: no benchmark is chosen; name some, benchmarks=[mmlu]."
            )
    if config["dry_run"]:
        for subject in subjects:
            say(f"{subject.name}: {', '.join(subject.config['eval']['benchmarks'])}")
        say("dry run: nothing was done")
        return subjects
    quiet_libraries()
    if merge:
        merge_subject_shards(subjects, cache_dir)
        return subjects
    failures = evaluate_subjects(subjects, cache_dir, config["overwrite"])
    if len(subjects) > 1:
        console.print(_table(subjects))
    if failures:
        raise UserError("\n".join(failures))
    return subjects


def _benchmark(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a benchmark: configs/eval/<name>.yaml under what the config says of it."""
    if name not in BENCHMARKS:
        raise unknown("benchmark", name, BENCHMARKS)
    file = OmegaConf.load(CONFIG_DIR / "eval" / f"{name}.yaml")
    defaults = OmegaConf.create({"paths": options["paths"], "eval": file}).eval.benchmarks[name]
    return {**defaults, **options["eval"]["benchmarks"].get(name, {})}


def _runs(
    patterns: str | Iterable[str],
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Collection[str] | None,
    explicit: Collection[str],
) -> list[Subject]:
    """Trained runs, each with its own model and, unless said otherwise, its own evaluation."""
    subjects = []
    for run in find_runs(_as_list(patterns)):
        if "method" not in run.manifest:
            say(f"{run.path} is not trained yet ({run.status}): skipped")
            continue
        own = run.config
        bare = own["adapter"]["method"] == "none"
        evaluation = _evaluation(own["eval"], given, names, explicit)
        subjects.append(
            Subject(
                name=str(run.path),
                config={**own, "device": config["device"], "eval": evaluation},
                out_dir=run.path,
                adapter_dir=None if bare else run.adapter_dir,
                run=run,
            )
        )
    if not subjects:
        raise UserError(f"runs={patterns}: no run there is trained. Train first: mos.train.")
    return subjects


def _evaluation(
    own: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Collection[str] | None,
    explicit: Collection[str],
) -> dict[str, Any]:
    """A run's `eval` group, with other benchmarks if named, under what was given on purpose."""
    evaluation = {**given, **copy.deepcopy(dict(own))}
    evaluation["benchmarks"] = {
        name: {**given["benchmarks"].get(name, {}), **own["benchmarks"].get(name, {})}
        for name in names or own["benchmarks"]
    }
    for key in explicit:
        target, source = evaluation, given
        *path, last = key.split(".")[1:]
        for part in path:
            target, source = target.get(part, {}), source.get(part, {})
        if last in source:
            target[last] = source[last]
    return evaluation


def _adapter(folder: Path, config: Mapping[str, Any]) -> Subject:
    """An adapter that belongs to no run, on the model of the config."""
    if not (folder / "adapter_config.json").is_file():
        raise MissingFileError(
            f"adapters={folder}: no adapter_config.json there; expected a folder as PEFT saves it."
        )
    from mos.evaluation.serving import adapter_hash

    content = adapter_hash(folder, config["paths"]["cache_dir"])[:8]
    out_dir = (
        Path(config["paths"]["output_dir"]) / "adapters" / f"{folder.resolve().name}-{content}"
    )
    return Subject(str(folder), dict(config), out_dir, adapter_dir=folder)


def _bare(config: Mapping[str, Any]) -> Subject:
    """The model of the config without an adapter, as a run: the paper's vanilla rows."""
    from mos.identity import open_run
    from mos.training.fit import fit

    method = config["adapter"]["method"]
    if method != "none":
        raise UserError(
            f"adapter={method} without runs= or adapters=: there is nothing trained to evaluate."
            " Name runs (runs='outputs/**') or adapter folders (adapters=[DIR]), or evaluate the"
            " bare model with adapter=none."
        )
    run = open_run(config)
    if not config["dry_run"]:
        with run.claimed(wait=True):
            if "method" not in run.manifest:
                run.write_config(config)
                fit(config, run)
    return Subject(f"{config['model']['name']}, no adapter", dict(config), run.path, run=run)


def given_keys(overrides: Iterable[str]) -> list[str]:
    """The keys below `eval` that command-line overrides set."""
    keys = (override.partition("=")[0].lstrip("+") for override in overrides)
    return [key for key in keys if key.startswith("eval.")]


def _table(subjects: Iterable[Subject]) -> Table:
    """A line a model and benchmark."""
    table = Table(Column("model", overflow="fold"), "benchmark", "metric", "score", "± s.e.", "n")
    table.add_column("")
    for subject in subjects:
        for name, result in subject.results.items():
            for metric, value in result["metrics"].items():
                error = result["stderr"].get(metric)
                table.add_row(
                    "/".join(Path(subject.name).parts[-2:]),
                    name,
                    metric,
                    f"{value:.2f}",
                    "" if error is None else f"{error:.2f}",
                    str(result["n"]),
                    result["partial"] or "",
                )
    return table


def _as_list(value: str | Iterable[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


@hydra.main(version_base="1.3", config_path=str(CONFIG_DIR), config_name="evaluate")
def main(cfg: DictConfig) -> None:
    """The command line around `evaluate`: messages instead of tracebacks, and exit codes."""
    # A job in the background of a script starts with SIGINT ignored; schedulers send SIGTERM.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        with exit_on_user_error():
            evaluate(cfg, given_keys(HydraConfig.get().overrides.task))
    except KeyboardInterrupt:
        fail("interrupted; what was finished is kept, and the same command continues it")
        sys.exit(130)


if __name__ == "__main__":
    main()
