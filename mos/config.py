"""The shape of a job's configuration, and its validation before anything heavy is loaded.

Hydra composes configs/. `validate` holds the result against the models below, the adapter against
the fields of its PEFT config, the trainer against transformers.TrainingArguments, and each
benchmark against the options of its class. It imports neither torch nor PEFT, so that a
wrong value is named at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    create_model,
)

from eval import options_model
from mos.adapters import METHODS, check_adapter, check_quantized_base
from mos.errors import UserError, unknown
from mos.places import CONFIG_DIR
from mos.schema import Strict, check
from mos.trainer_config import check_trainer


def _corpus(name: str) -> str:
    from mos.data.corpora import CORPORA

    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return name


def _project(name: str) -> str:
    if found := set(name) & set("/\\#?%:"):
        raise ValueError(f"Weights & Biases takes no {' '.join(sorted(found))} in '{name}'.")
    return name


class Scale(Strict):
    name: str
    note: str


class Model(Strict):
    name: str
    path: str
    revision: str | None
    pad_token: str | None
    architecture: dict[str, Any] | None


class Quantization(Strict):
    bits: Literal[4, 8, None]
    quant_type: Literal["nf4", "fp4"]
    double_quant: bool
    compute_dtype: Literal["bfloat16", "float16", "float32"]
    norms: Literal["float32", "bfloat16"] = "float32"


class Data(Strict):
    corpus: Annotated[str, AfterValidator(_corpus)]
    source: str
    max_seq_length: PositiveInt
    eval_size: NonNegativeInt
    test_size: NonNegativeInt
    seed: NonNegativeInt
    max_rows: PositiveInt | None
    on_bad_row: Literal["error", "skip"]
    label_mask: Literal["reference", "clean"]
    chat_tokens: bool


class Benchmark(Strict):
    """What is common to all benchmarks; the others are the options of its class."""

    data_dir: str
    tasks: list[str] | None = None
    limit: PositiveInt | None = None
    shard: Annotated[list[NonNegativeInt], Field(min_length=2, max_length=2)] | None = None


class Evaluation(Strict):
    engine: Literal["auto", "vllm", "transformers"]
    weights: Literal["auto", "adapter", "merged", "original"]
    chat: bool
    limit: PositiveInt | None
    defer: bool
    allow_code_execution: bool
    sandbox: Literal["namespaces", "restricted"]
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    max_model_len: PositiveInt | None
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)]
    tensor_parallel: PositiveInt
    data_parallel: PositiveInt | Literal["auto"]
    batch_size: PositiveInt
    base_mismatch: Literal["refuse", "allow"]
    benchmarks: dict[str, dict[str, Any]]


class Logging(Strict):
    report_to: list[Literal["wandb", "tensorboard"]]
    wandb_project: Annotated[str, AfterValidator(_project)]
    wandb_entity: str | None
    wandb_mode: Literal["auto", "online", "offline"]


class Paths(Strict):
    data_dir: str
    output_dir: str
    cache_dir: str


class TrainConfig(Strict):
    """Everything that `python -m mos.train` reads; the YAML files document each key."""

    experiment: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cuda", "cpu"]
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


def compose_config(overrides: Iterable[str] = (), name: str = "train") -> DictConfig:
    """Compose configs/<name>.yaml, or that of configs/<name>/, with command-line overrides."""
    hydra = GlobalHydra.instance()
    outer, hydra.hydra = hydra.hydra, None  # of a command that is running
    try:
        with initialize_config_dir(str(folder_of(name)), version_base="1.3"):
            return compose(name, overrides=list(overrides))
    finally:
        hydra.hydra = outer


def folder_of(name: str) -> Path:
    """Where the config of a command is: in configs/, or in a folder of its own."""
    return CONFIG_DIR / name if (CONFIG_DIR / name).is_dir() else CONFIG_DIR


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """A composed config as plain containers; `~/` at the start of a value is the home folder.

    Raises:
        UserError: a value that is still to be given (`???`), or refers to a key that is not there.
    """
    try:
        return _at_home(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise UserError(f"{error.full_key} has no value: give one, {error.full_key}=...") from None
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None) or "the config"
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from None


def _at_home(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _at_home(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_at_home(item) for item in value]
    is_path = isinstance(value, str) and (value == "~" or value.startswith("~/"))
    return str(Path(value).expanduser()) if is_path else value


def validate(cfg: DictConfig) -> dict[str, Any]:
    """Check a composed config and return it resolved, as plain containers.

    Raises:
        UserError: naming the key, what was found, what was expected.
    """
    config = resolved(cfg)
    check(config, TrainConfig)
    _check_adapter(config)
    check_trainer(config["trainer"])
    if config["trainer"].get("load_best_model_at_end") and config["data"]["eval_size"] == 0:
        raise UserError("trainer.load_best_model_at_end=true needs held-out rows: data.eval_size=.")
    for name, options in config["eval"]["benchmarks"].items():
        check(options, benchmark_model(name), f"eval.benchmarks.{name}.")
    return config


@cache
def benchmark_model(name: str) -> type[BaseModel]:
    """What a config may say of a benchmark."""
    return create_model(name, __base__=(Benchmark, options_model(name)))


def _check_adapter(config: Mapping[str, Any]) -> None:
    adapter = config["adapter"]
    check_adapter(adapter)
    method = adapter["method"]
    if config["quantization"]["bits"] is not None:
        check_quantized_base(method)
    if config["eval"]["benchmarks"] and not METHODS[method].merges:
        raise UserError(
            f"method '{method}' has an update that depends on the input, so that it can neither be"
            " merged nor served as LoRA, and no benchmark can be answered with it. Use eval=base"
            " and compare held-out losses (data.eval_size)."
        )
    if config["data"]["chat_tokens"] and method not in (known := _learns_rows()):
        raise UserError(
            f"data.chat_tokens=true: method '{method}' cannot learn the embeddings of new tokens."
            f" Keep the markers plain text, as the paper does, or choose {', '.join(known)}."
        )


def _learns_rows() -> list[str]:
    return [
        name
        for name, method in METHODS.items()
        if name == "full" or "trainable_token_indices" in method.options.model_fields
    ]
