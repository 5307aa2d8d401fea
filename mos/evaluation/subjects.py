"""What is to be evaluated, and how: runs, and adapters that belong to no run."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mos.config import Evaluation, Model, Quantization, benchmark_model
from mos.console import say
from mos.errors import MissingFileError, UserError
from mos.evaluation.content import ADAPTER_CONFIG, adapter_hash
from mos.files import source_hash
from mos.run import Run
from mos.schema import check


@dataclass
class Subject:
    """A model to evaluate, and where its results go.

    Attributes:
        name: for people.
        config: its `model`, `quantization`, `eval` and `device` say what is evaluated and how.
        out_dir: receives `eval/<benchmark>/`.
        adapter_dir: None for a bare model.
        run: gets results.json; None for an adapter that belongs to no run.
        results: benchmark -> content of its metrics.json.
    """

    name: str
    config: dict[str, Any]
    out_dir: Path
    adapter_dir: Path | None = None
    run: Run | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)


def run_subject(
    run: Run,
    config: Mapping[str, Any],
    given: Mapping[str, Any],
    names: Collection[str] | None,
    places: Mapping[str, str],
) -> Subject | None:
    """A trained run with its own model and, unless said otherwise, its own evaluation.

    What may harm the caller's machine comes from the caller alone: consent, paths, the device.

    Args:
        config: the caller's, validated.
        given: what the caller says of `eval`; it beats what the run's config says.
        names: the benchmarks; None takes the run's own.
        places: where the caller has the files of each benchmark, unless `given` says otherwise.

    Returns:
        None for a run that is not trained yet.

    Raises:
        UserError: a run folder that is damaged, or that was set up with other benchmark files.
    """
    if not run.trained:
        say(f"{run.path} is not trained yet ({run.status}): skipped")
        return None
    own = run.config
    try:
        bare = own["adapter"]["method"] == "none"
        evaluation = {
            **config["eval"],
            **own["eval"],
            "allow_code_execution": config["eval"]["allow_code_execution"],
            "sandbox": config["eval"]["sandbox"],
            "tensor_parallel": config["eval"]["tensor_parallel"],
            "data_parallel": config["eval"]["data_parallel"],
            **given,
            "benchmarks": {
                name: {
                    **config["eval"]["benchmarks"].get(name, {}),
                    **own["eval"]["benchmarks"].get(name, {}),
                    "data_dir": places.get(name),
                    **given["benchmarks"].get(name, {}),
                }
                for name in names or own["eval"]["benchmarks"]
            },
        }
        check(own["model"], Model, "model.")
        check(own["quantization"], Quantization, "quantization.")
        check(evaluation, Evaluation, "eval.")
        for name, options in evaluation["benchmarks"].items():
            check(options, benchmark_model(name), f"eval.benchmarks.{name}.")
            if "data_dir" not in given["benchmarks"].get(name, {}):
                _check_files(run, name, options["data_dir"], config["paths"]["cache_dir"])
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{run.path}/config.yaml is not the config of a run: {error!r}.") from error
    here = {"device": config["device"], "paths": config["paths"], "eval": evaluation}
    adapter_dir = None if bare else run.adapter_dir
    return Subject(str(run.path), {**own, **here}, run.path, adapter_dir, run)


def _check_files(run: Run, name: str, data_dir: str, cache_dir: str) -> None:
    """Refuse benchmark files whose content is not that of the files that a run was set up with."""
    set_up_with = run.manifest.get("benchmarks_sha256", {}).get(name)
    here = source_hash(data_dir, cache_dir)
    if set_up_with is not None and here is not None and here != set_up_with:
        raise UserError(
            f"{run.path} was set up with other files of {name} than {data_dir} has. Say where they"
            f" are with paths.data_dir= (scale=paper: data/full), or insist on these with"
            f" +eval.benchmarks.{name}.data_dir={data_dir}."
        )


def adapter_subject(folder: Path, config: Mapping[str, Any]) -> Subject:
    """An adapter that belongs to no run, on the model of the config."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MissingFileError(
            f"adapters={folder}: no adapter_config.json there; expected a folder as PEFT saves it."
        )
    content = adapter_hash(folder, config["paths"]["cache_dir"])[:8]
    out_dir = (
        Path(config["paths"]["output_dir"]) / "adapters" / f"{folder.resolve().name}-{content}"
    )
    return Subject(str(folder), dict(config), out_dir, adapter_dir=folder)
