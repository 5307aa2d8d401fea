"""The shape of a job's configuration, and its validation before anything heavy is loaded.

Hydra composes configs/; `validate` checks the result against the dataclasses below, the adapter
against its PEFT config, the trainer against transformers, and the combinations against each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mos.errors import UserError, did_you_mean, unknown
from mos.places import CONFIG_DIR

CORPORA = ("super_ni", "flan_v2", "cot", "code_alpaca", "messages")

# Set by the program, so that a run folder, its resumption and its logs agree.
OWN_TRAINING_ARGUMENTS = ("output_dir", "seed", "data_seed", "use_cpu", "report_to", "run_name")


@dataclass
class Scale:
    name: str
    note: str


@dataclass
class Model:
    name: str
    path: str
    revision: str | None
    pad_token: str | None
    architecture: dict[str, Any] | None


@dataclass
class Quantization:
    bits: int | None
    quant_type: str
    double_quant: bool
    compute_dtype: str


@dataclass
class Data:
    corpus: str
    source: str
    max_seq_length: int
    eval_size: int
    seed: int
    max_rows: int | None
    on_bad_row: str
    label_mask: str
    chat_tokens: bool


@dataclass
class Evaluation:
    engine: str
    weights: str
    chat: bool
    limit: int | None
    defer: bool
    allow_code_execution: bool
    dtype: str
    max_model_len: int | None
    gpu_memory_utilization: float
    batch_size: int
    benchmarks: dict[str, Any] = field(default_factory=dict)


@dataclass
class Logging:
    report_to: list[str]
    wandb_project: str
    wandb_entity: str | None
    wandb_mode: str


@dataclass
class Paths:
    data_dir: str
    output_dir: str
    cache_dir: str


@dataclass
class TrainConfig:
    """Everything that `python -m mos.train` reads; the YAML files document each key."""

    experiment: str
    seed: int
    device: str
    dry_run: bool
    overwrite: bool
    scale: Scale
    model: Model
    quantization: Quantization
    adapter: dict[str, Any]
    data: Data
    trainer: dict[str, Any]
    eval: Evaluation
    logging: Logging
    paths: Paths


CHOICES = {
    "device": ("auto", "cuda", "cpu"),
    "quantization.bits": (4, 8, None),
    "quantization.quant_type": ("nf4", "fp4"),
    "quantization.compute_dtype": ("bfloat16", "float16", "float32"),
    "data.corpus": CORPORA,
    "data.on_bad_row": ("error", "skip"),
    "data.label_mask": ("reference", "clean"),
    "eval.engine": ("auto", "vllm", "transformers"),
    "eval.weights": ("auto", "adapter", "merged", "original"),
    "eval.dtype": ("auto", "bfloat16", "float16", "float32"),
    "logging.wandb_mode": ("auto", "online", "offline"),
}
POSITIVE = ("data.max_seq_length", "data.max_rows", "eval.limit", "eval.batch_size")


def compose_config(overrides: Iterable[str] = (), name: str = "train") -> DictConfig:
    """Compose configs/<name>.yaml with command-line overrides, for notebooks, plans and tests."""
    with initialize_config_dir(str(CONFIG_DIR), version_base="1.3"):
        return compose(name, overrides=list(overrides))


def validate(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed config and return it resolved, as plain containers.

    Raises:
        UserError: naming the key, what was found, what was expected.
    """
    config = check_structure(cfg)
    for key, choices in CHOICES.items():
        require_choice(key, _get(config, key), choices)
    for key in POSITIVE:
        if (value := _get(config, key)) is not None and value < 1:
            raise UserError(f"{key}={value}: expected a positive number, or null where it may be.")
    _check_adapter(config)
    _check_trainer(config["trainer"])
    _check_benchmarks(config["eval"])
    _check_logging(config["logging"])
    return config


def check_structure(cfg: DictConfig) -> dict[str, Any]:
    """Resolve `cfg` and hold its keys and types against `TrainConfig`."""
    try:
        resolved = OmegaConf.create(
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        )
        typed = OmegaConf.merge(OmegaConf.structured(TrainConfig), resolved)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the config"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error
    return OmegaConf.to_container(typed, resolve=True)  # type: ignore[return-value]


def require_choice(key: str, value: Any, choices: Iterable[Any]) -> None:
    """Raise a UserError that lists the choices, unless `value` is one of them."""
    choices = list(choices)
    if value not in choices:
        names = ", ".join("null" if c is None else str(c) for c in choices)
        raise UserError(f"{key}={value}: expected one of {names}.{did_you_mean(value, choices)}")


def training_argument_names() -> set[str]:
    """Fields of transformers.TrainingArguments that a config may set."""
    from transformers import TrainingArguments

    return {f.name for f in fields(TrainingArguments) if f.init} - set(OWN_TRAINING_ARGUMENTS)


def _get(config: Mapping[str, Any], dotted: str) -> Any:
    value: Any = config
    for key in dotted.split("."):
        value = value[key]
    return value


def _check_adapter(config: Mapping[str, Any]) -> None:
    from mos.adapters import peft_config

    adapter = config["adapter"]
    peft = peft_config(adapter)
    learns_rows = adapter["method"] == "full" or hasattr(peft, "trainable_token_indices")
    if config["data"]["chat_tokens"] and not learns_rows:
        raise UserError(
            f"data.chat_tokens=true: method '{adapter['method']}' cannot learn the embeddings of"
            " new tokens. Keep the markers plain text, as the paper does, or choose mos, lora,"
            " prolora, tied_lora or full."
        )


def _check_trainer(trainer: Mapping[str, Any]) -> None:
    names = training_argument_names()
    for key in trainer:
        if key in OWN_TRAINING_ARGUMENTS:
            raise UserError(
                f"trainer.{key} is set by the program; see seed, device, logging, paths."
            )
        if key not in names:
            raise UserError(
                f"trainer.{key} is not a field of transformers.TrainingArguments."
                f"{did_you_mean(key, names)}"
            )
    for key in ("max_steps", "per_device_train_batch_size", "save_steps", "logging_steps"):
        value = trainer.get(key)
        if not isinstance(value, int) or value < 1:
            raise UserError(f"trainer.{key}={value}: expected a positive whole number.")
    if trainer["save_steps"] % trainer["logging_steps"]:
        raise UserError(
            f"trainer.save_steps={trainer['save_steps']} is not a multiple of"
            f" trainer.logging_steps={trainer['logging_steps']}: a resumed run would log other"
            " losses than a whole one."
        )


def _check_benchmarks(evaluation: Mapping[str, Any]) -> None:
    from eval import BENCHMARKS, benchmark_options

    for name, options in evaluation["benchmarks"].items():
        known = {"data_dir", "tasks", "limit", "shard", *benchmark_options(name)}
        for key in options:
            if key not in known:
                raise unknown("option", f"eval.benchmarks.{name}.{key}", known)
    runs_code = [name for name in evaluation["benchmarks"] if BENCHMARKS[name].runs_code]
    if runs_code and not evaluation["allow_code_execution"]:
        raise UserError(
            f"{runs_code[0]} runs programs that the model wrote. They run in a sandbox, but it is"
            " your machine: allow it with eval.allow_code_execution=true, or train only with"
            " eval=[base]."
        )


def _check_logging(logging: Mapping[str, Any]) -> None:
    from importlib.util import find_spec

    for tracker in logging["report_to"]:
        require_choice("logging.report_to", tracker, ("wandb", "tensorboard"))
        if find_spec(tracker) is None:
            raise UserError(
                f"logging.report_to={tracker}: the package is not installed;"
                " pip install 'mos-tuning[logging]'."
            )
