"""Evaluate runs, adapters and bare models: `python -m mos.evaluate runs='outputs/**'`.

    what to evaluate -> benchmarks -> one engine a base model -> results.json

Nothing is computed twice: outputs are cached by weights, adapter, prompts and decoding, and an
evaluation that was stopped continues where it was.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from eval import BENCHMARKS
from mos.cli import command
from mos.config import compose_config, resolved, validate
from mos.console import console, override, quiet_libraries, say, score_text
from mos.errors import MissingFileError, UserError, unknown
from mos.evaluation.subject import Subject
from mos.identity import open_run
from mos.preflight import check_consent, choose_device
from mos.runs import find_runs

OWN = "own"  # in configs/eval/own.yaml: as the run was configured


def evaluate(cfg: DictConfig) -> list[Subject]:
    """Evaluate what a composed config names, and write the results into the runs.

    Args:
        cfg: configs/evaluate.yaml composed with overrides, e.g. by `mos.config.compose_config`.

    Returns:
        The models with their results.

    Raises:
        UserError: a wrong config, missing files, an adapter that does not fit its model, an engine
            that died. What was finished is kept.
    """
    options = resolved(cfg)
    runs, adapters = options.pop("runs"), options.pop("adapters")
    names, merge = as_list(options.pop("benchmarks")), options.pop("merge_shards")
    given = {key: value for key, value in options["eval"].items() if value != OWN}
    default = _default(names or list(given["benchmarks"]), options["paths"]["data_dir"])
    chosen = names or given["benchmarks"] or ({} if runs else default["benchmarks"])
    complete = {
        name: {**default["benchmarks"][name], **given["benchmarks"].get(name, {})}
        for name in chosen
    }
    options["eval"] = {**default, **given, "benchmarks": complete}
    config = validate(OmegaConf.create(options))
    check_consent(config["eval"])

    if not (runs or adapters):
        say(f"evaluating {config['model']['name']} without an adapter")
    subjects: list[Subject] = []
    if runs:
        subjects += _runs(runs, config, given, names)
    if adapters:
        subjects += [_adapter(Path(folder), config) for folder in as_list(adapters)]
    if not runs and not adapters:
        subjects.append(_bare(config))
    cache_dir = config["paths"]["cache_dir"]
    for subject in subjects:
        if not subject.config["eval"]["benchmarks"]:
            raise UserError(
                f"{subject.name}: no benchmark is chosen; name some, benchmarks=[mmlu]."
            )
        check_consent(subject.config["eval"])
    if config["dry_run"]:
        for subject in subjects:
            say(f"{subject.name}: {', '.join(subject.config['eval']['benchmarks'])}")
        say("dry run: nothing was done")
        return subjects
    # Torch and its companions take seconds to import.
    from mos.evaluation.jobs import evaluate_subjects, merge_subject_shards

    choose_device(config)
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


def _default(names: Iterable[str], data_dir: str) -> dict[str, Any]:
    """configs/eval for some benchmarks, or for those that mos.train evaluates by default."""
    for name in names:
        if name not in BENCHMARKS:
            raise unknown("benchmark", name, BENCHMARKS)
    group = [f"eval=[{','.join(['base', *names])}]"] if names else []
    return resolved(compose_config([*group, override("paths.data_dir", data_dir)]))["eval"]


def _runs(
    patterns: str | Iterable[str],
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Collection[str] | None,
) -> list[Subject]:
    """Trained runs, each with its own model and, unless said otherwise, its own evaluation.

    What may harm the caller's machine comes from the caller alone: consent, paths, the device.
    """
    subjects = []
    for run in find_runs(as_list(patterns)):
        if "method" not in run.manifest:
            say(f"{run.path} is not trained yet ({run.status}): skipped")
            continue
        own = run.config
        bare = own["adapter"]["method"] == "none"
        evaluation = {
            **config["eval"],
            **own["eval"],
            "allow_code_execution": config["eval"]["allow_code_execution"],
            "sandbox": config["eval"]["sandbox"],
            **given,
            "benchmarks": {
                name: {
                    **config["eval"]["benchmarks"].get(name, {}),
                    **own["eval"]["benchmarks"].get(name, {}),
                    **given["benchmarks"].get(name, {}),
                }
                for name in names or own["eval"]["benchmarks"]
            },
        }
        here = {"device": config["device"], "paths": config["paths"], "eval": evaluation}
        subjects.append(
            Subject(
                name=str(run.path),
                config={**own, **here},
                out_dir=run.path,
                adapter_dir=None if bare else run.adapter_dir,
                run=run,
            )
        )
        say(f"evaluating {run.path}")
    if not subjects:
        raise UserError(f"runs={patterns}: no run there is trained. Train first: mos.train.")
    return subjects


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
    method = config["adapter"]["method"]
    if method != "none":
        raise UserError(
            f"adapter={method} without runs= or adapters=: there is nothing trained to evaluate."
            " Name runs (runs='outputs/**') or adapter folders (adapters=[DIR]), or evaluate the"
            " bare model with adapter=none."
        )
    run = open_run(config)
    if not config["dry_run"]:
        from mos.training.fit import fit

        with run.claimed(wait=True):
            if "method" not in run.manifest:
                run.write_config(config)
                fit(config, run)
    return Subject(f"{config['model']['name']}, no adapter", dict(config), run.path, run=run)


def _table(subjects: Iterable[Subject]) -> Table:
    """A line a model and benchmark."""
    model = Column("model", overflow="fold")
    table = Table(model, "benchmark", "metric", "score ± s.e.", "n", "note")
    for subject in subjects:
        for name, result in subject.results.items():
            for metric, value in result["metrics"].items():
                table.add_row(
                    "/".join(Path(subject.name).parts[-2:]),
                    name,
                    metric,
                    score_text(value, result["stderr"].get(metric)),
                    str(result["n"]),
                    result["partial"] or "",
                )
    return table


def as_list(value: str | Iterable[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or ())


@command("evaluate")
def main(cfg: DictConfig) -> None:
    """The command line around `evaluate`."""
    evaluate(cfg)


if __name__ == "__main__":
    main()
