"""What is evaluated: runs, bare models, and adapters that belong to no run, by their content."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from eval.results import Metrics
from mos.config import Evaluation, Model, Quantization, TrainConfig, benchmark_model
from mos.console import say
from mos.errors import MissingFileError, UserError, check
from mos.files import fingerprint, hash_files, hash_json, read_json, source_hash, write_json
from mos.run import Run

ADAPTER_CONFIG = "adapter_config.json"
ORIGIN = "trained_on.json"  # beside an adapter's files: the base that it was trained on
# What may harm the caller's machine, or is a matter of it, comes from the caller alone.
CONSENT = ("allow_code_execution", "sandbox")
CALLERS = (*CONSENT, "tensor_parallel")


@contextmanager
def left_out(
    name: str, failures: dict[str, str], alone: bool, fatal: tuple[type[UserError], ...] = ()
) -> Iterator[None]:
    """Note in `failures` why one of several cannot be evaluated; an error of the only one, or one
    that is `fatal`, is raised."""
    try:
        yield
    except UserError as error:
        if alone or isinstance(error, fatal):
            raise
        failures[name] = str(error)


@dataclass
class Subject:
    """A base model and perhaps an adapter on it, how it is to be evaluated, and where results go.

    Attributes:
        name: for people.
        model: the base model.
        quantization: of the base, as the adapter was trained on it.
        evaluation: the benchmarks and settings of the engine.
        device: "auto", "cuda" or "cpu".
        out_dir: receives `eval/<benchmark>/`.
        adapter_dir: the adapter as PEFT saved it, a whole model after full fine-tuning, or None for
            a bare model.
        run: gets results.json; None for an adapter that belongs to no run.
        results: by benchmark.
    """

    name: str
    model: Model
    quantization: Quantization
    evaluation: Evaluation
    device: str
    out_dir: Path
    adapter_dir: Path | None = None
    run: Run | None = None
    results: dict[str, Metrics] = field(default_factory=dict)

    @cached_property
    def adapter_config(self) -> dict[str, Any]:
        """As PEFT saved it; empty without an adapter and for a whole model."""
        return {} if self.adapter_dir is None else read_adapter_config(self.adapter_dir)


def run_subject(
    run: Run,
    config: TrainConfig,
    given: Mapping[str, Any],
    names: Collection[str],
    places: Mapping[str, str],
) -> Subject | None:
    """A trained run with its own model and, unless said otherwise, its own evaluation.

    Args:
        config: the caller's.
        given: the keys of `eval` that the caller gave, with benchmarks as plain options; they beat
            what the run's config says.
        names: the benchmarks; none takes the run's own.
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
    benchmarks = {}
    for name in names or own.eval.benchmarks:
        chosen = given["benchmarks"].get(name, {})
        options = {"data_dir": places.get(name), **chosen}
        for known in (own.eval.benchmarks.get(name), config.eval.benchmarks.get(name)):
            if known is not None:
                options = {**known.dump(), **options}
        benchmarks[name] = check(options, benchmark_model(name), f"eval.benchmarks.{name}.")
        if "data_dir" not in chosen:
            _check_files(run, name, options["data_dir"], config.paths.cache_dir)
    callers = {key: getattr(config.eval, key) for key in {*CALLERS, *given} - {"benchmarks"}}
    return Subject(
        name=str(run.path),
        model=own.model,
        quantization=own.quantization,
        evaluation=own.eval.but(**callers, benchmarks=benchmarks),
        device=config.device,
        out_dir=run.path,
        adapter_dir=None if own.adapter.method == "none" else run.adapter_dir,
        run=run,
    )


def _check_files(run: Run, name: str, data_dir: str, cache_dir: str) -> None:
    """Refuse benchmark files whose content is not that of the files that a run was set up with."""
    set_up_with = run.manifest.benchmarks_sha256.get(name)
    here = source_hash(data_dir, cache_dir)
    if set_up_with is not None and here is not None and here != set_up_with:
        raise UserError(
            f"{run.path} was set up with other files of {name} than {data_dir} has. Say where they"
            f" are with paths.data_dir= (scale=paper: data/full), or insist on these with"
            f" +eval.benchmarks.{name}.data_dir={data_dir}."
        )


def adapter_subject(folder: Path, config: TrainConfig) -> Subject:
    """An adapter that belongs to no run, on the model of the config."""
    if not (folder / ADAPTER_CONFIG).is_file():
        raise MissingFileError(
            f"adapters={folder}: no adapter_config.json there; expected a folder as PEFT saves it."
        )
    content = adapter_hash(folder, config.paths.cache_dir)[:8]
    out_dir = Path(config.paths.output_dir) / "adapters" / f"{folder.resolve().name}-{content}"
    return bare_subject(str(folder), config, out_dir, adapter_dir=folder)


def bare_subject(name: str, config: TrainConfig, out_dir: Path, **more: Any) -> Subject:
    """The model of the caller's config, evaluated as that says."""
    return Subject(
        name, config.model, config.quantization, config.eval, config.device, out_dir, **more
    )


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """`adapter_config.json` as PEFT saved it; empty where there is none, as in a whole model.

    Raises:
        UserError: it is not an adapter's config.
    """
    file = folder / ADAPTER_CONFIG
    if not file.is_file():
        return {}
    config = read_json(file)
    if not isinstance(config, dict) or not isinstance(config.get("peft_type"), str):
        raise UserError(f"{file} names no peft_type: it is not the config of a PEFT adapter.")
    return config


def adapter_hash(folder: Path, cache_dir: str | Path) -> str:
    """Content of an adapter, or of a whole model after full fine-tuning.

    Of an adapter's config without the path of the base model and PEFT's version.

    Args:
        cache_dir: remembers hashes.

    Raises:
        UserError: neither is there.
    """
    config = read_adapter_config(folder)
    if not config:
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds neither an adapter nor a model.")
        return fingerprint(folder, cache_dir)
    for where in ("base_model_name_or_path", "revision", "inference_mode", "peft_version"):
        config.pop(where, None)
    files = sorted(folder.glob("adapter_model.*"))
    if not files:
        raise UserError(f"{folder} has no adapter_model.safetensors: is it a whole adapter?")
    return hash_json([config, hash_files(files, cache_dir)])


def write_origin(adapter_dir: Path, config: TrainConfig, base_sha256: str) -> None:
    """Note beside an adapter what it was trained on, for those who load it elsewhere.

    Args:
        config: of the training.
        base_sha256: `mos.files.fingerprint` of the base model's folder.
    """
    origin = {"model": config.model.name, "model_sha256": base_sha256}
    write_json(adapter_dir / ORIGIN, {**origin, "quantization": config.quantization.dump()})


def read_origin(adapter_dir: Path, base_dir: Path, cache_dir: str | Path) -> dict[str, Any] | None:
    """What `write_origin` noted of an adapter, for a base to put it on; None if nothing is known.

    Raises:
        UserError: the adapter was trained on another base, by content.
    """
    file = adapter_dir / ORIGIN
    if not file.is_file():
        return None
    origin = read_json(file)
    if not isinstance(origin, dict) or not isinstance(origin.get("model_sha256"), str):
        raise UserError(f"{file} does not say what the adapter was trained on: was it edited?")
    trained_on, found = origin["model_sha256"], fingerprint(base_dir, cache_dir)
    if trained_on != found:
        raise UserError(
            f"{adapter_dir} was trained on another base model ({origin.get('model')}, content"
            f" {trained_on[:8]}) than {base_dir} ({found[:8]}): give that one with model= (mos"
            f" export: base=), or insist by moving {ORIGIN} out of the adapter's folder."
        )
    return origin
