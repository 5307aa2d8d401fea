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
from mos.runs import Run
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
) -> Subject | None:
    """A trained run with its own model and, unless said otherwise, its own evaluation.

    What may harm the caller's machine comes from the caller alone: consent, paths, the device.

    Args:
        config: the caller's, validated.
        given: what the caller says of `eval`; it beats what the run's config says.
        names: the benchmarks; None takes the run's own.

    Returns:
        None for a run that is not trained yet.

    Raises:
        UserError: a run folder that is damaged.
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
        check(own["model"], Model, "model.")
        check(own["quantization"], Quantization, "quantization.")
        check(evaluation, Evaluation, "eval.")
        for name, options in evaluation["benchmarks"].items():
            check(options, benchmark_model(name), f"eval.benchmarks.{name}.")
    except (LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{run.path}/config.yaml is not the config of a run: {error!r}.") from error
    here = {"device": config["device"], "paths": config["paths"], "eval": evaluation}
    adapter_dir = None if bare else run.adapter_dir
    return Subject(str(run.path), {**own, **here}, run.path, adapter_dir, run)


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
