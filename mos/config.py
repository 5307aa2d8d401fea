"""The shape of a job's configuration, and its validation before anything heavy is loaded.

Hydra composes configs/. `validate` makes of the result the typed tree that everything takes: the
models below, the adapter held against the fields of its PEFT config, the trainer against
transformers.TrainingArguments, and each benchmark against the options of its class. Keys of ours
come first and are named at once; those of PEFT and transformers after the import of these, which
takes seconds.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, cast, overload

from hydra import compose, initialize_config_dir
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveInt,
    SerializeAsAny,
    ValidationInfo,
    create_model,
    model_validator,
)

from eval import options_model
from mos.adapters import METHODS, check_quantized_base, peft_config
from mos.errors import Number, Strict, UserError, check, dataclass_model, unknown
from mos.files import CONFIG_DIR, parse_yaml, read_text


def _corpus(name: str) -> str:
    from mos.data.corpora import CORPORA

    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return name


def _project(name: str) -> str:
    if found := set(name) & set("/\\#?%:"):
        raise ValueError(f"Weights & Biases takes no {' '.join(sorted(found))} in '{name}'.")
    return name


class Section(Strict):
    """A part of a config. What was not given is not in its dump, so that a run's id stays the same
    when a key with a default is added."""

    @model_validator(mode="before")
    @classmethod
    def _without_former_keys(cls, values: Any, info: ValidationInfo) -> Any:
        """Of a stored config, leave out what this version no longer knows."""
        if info.context != STORED or cls.model_config["extra"] == "allow":
            return values
        return {key: value for key, value in values.items() if key in cls.model_fields}

    def dump(self, exclude: set[str] | None = None) -> dict[str, Any]:
        """The plain values that were given, as they were written."""
        return self.model_dump(exclude_unset=True, exclude=exclude)

    def but(self, **changes: Any) -> Self:
        """A copy with other values, which are not checked again."""
        return self.model_copy(update=changes)


class Scale(Section):
    name: str
    note: str


class Model(Section):
    name: str
    path: str
    revision: str | None = None
    pad_token: str | None = None
    architecture: dict[str, Any] | None = None


class Quantization(Section):
    bits: Literal[4, 8, None]
    quant_type: Literal["nf4", "fp4"]
    double_quant: bool
    compute_dtype: Literal["bfloat16", "float16", "float32"]
    norms: Literal["float32", "bfloat16"] = "float32"


class Adapter(Section):
    """A method by name, and as further attributes the options that its PEFT config gets."""

    model_config = ConfigDict(extra="allow")

    method: str


def _source(given: Any) -> Any:
    if not given:
        raise UserError("data.source has no value: give a file, a folder or a data set of the hub.")
    return given


class Data(Section):
    corpus: Annotated[str, AfterValidator(_corpus)]
    source: Annotated[str | list[str], BeforeValidator(_source)]
    max_seq_length: PositiveInt
    eval_size: NonNegativeInt
    test_size: NonNegativeInt = 0
    seed: NonNegativeInt
    max_rows: PositiveInt | None
    on_bad_row: Literal["error", "skip"]
    label_mask: Literal["reference", "clean"]
    split: str | None = None
    weights: list[Annotated[Number, Field(gt=0)]] | None = None

    @model_validator(mode="after")
    def _one_weight_each(self) -> Self:
        if self.weights and (isinstance(self.source, str) or len(self.source) != len(self.weights)):
            raise UserError("data.weights: expected one for each of data.source=[...].")
        return self


class Benchmark(Section):
    """What is common to all benchmarks; the others are the options of its class."""

    data_dir: str
    tasks: list[str] | None = None
    limit: PositiveInt | None = None


def _benchmarks(given: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Each as the options of its own class, which raises a UserError by name."""
    return {
        name: check(options, benchmark_model(name), f"eval.benchmarks.{name}.", info.context)
        for name, options in given.items()
    }


class Evaluation(Section):
    engine: Literal["auto", "vllm", "transformers"]
    weights: Literal["auto", "adapter", "merged", "original"]
    chat: bool
    limit: PositiveInt | None
    defer: bool
    allow_code_execution: bool
    sandbox: Literal["namespaces", "restricted"] = "namespaces"
    dtype: Literal["auto", "bfloat16", "float16", "float32"]
    max_model_len: PositiveInt | None
    gpu_memory_utilization: Annotated[Number, Field(gt=0, le=1)]
    tensor_parallel: PositiveInt = 1
    batch_size: PositiveInt
    benchmarks: Annotated[dict[str, SerializeAsAny[Benchmark]], BeforeValidator(_benchmarks)]


CONTINUES = (
    "the same command continues a run from its newest checkpoint; overwrite=true starts anew"
)
# Fields of TrainingArguments that the program sets or that have no effect: what to do instead.
OVERRULED = {
    "output_dir": "set paths.output_dir",
    "seed": "set seed",
    "data_seed": "set seed",
    "use_cpu": "set device",
    "report_to": "set logging.report_to",
    "run_name": "it is the id of the run",
    "project": "set logging.wandb_project",
    "save_strategy": "set trainer.save_steps",
    "save_only_model": "set trainer.save_total_limit; without its state a run cannot be continued",
    "logging_strategy": "set trainer.logging_steps",
    "resume_from_checkpoint": CONTINUES,
    "ignore_data_skip": CONTINUES,
    "do_train": "mos.train trains",
    "do_eval": "set data.eval_size",
    "do_predict": "mos.evaluate runs the benchmarks",
    "disable_tqdm": "mos.train has a progress line of its own",
    "log_level": "the run's train.log holds all messages",
    "include_num_input_tokens_seen": "results.json has the tokens per second",
    "ddp_find_unused_parameters": "every trained parameter is used in every step",
    "length_column_name": "lengths are counted by the program",
    "auto_find_batch_size": "set trainer.per_device_train_batch_size",
    "logging_nan_inf_filter": "a loss that is not finite stops the run",
    "push_to_hub": "push the folder adapter/ of the run",
}


class Trainer(Section):
    """Ranges of the fields of TrainingArguments; the others have the types that it says."""

    max_steps: Annotated[int, Field(ge=-1)]
    num_train_epochs: Annotated[Number, Field(gt=0)] | None = None
    per_device_train_batch_size: PositiveInt
    per_device_eval_batch_size: PositiveInt = 1
    gradient_accumulation_steps: PositiveInt = 1
    learning_rate: Annotated[Number, Field(ge=0)] = 0.0
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    max_grad_norm: Annotated[Number, Field(ge=0)] = 0.0
    warmup_steps: Annotated[Number, Field(ge=0)] = 0.0
    label_smoothing_factor: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    eval_steps: PositiveInt | None = None
    save_steps: PositiveInt
    save_total_limit: PositiveInt | None = None
    logging_steps: PositiveInt
    dataloader_num_workers: NonNegativeInt = 0
    train_sampling_strategy: Literal["random", "sequential", "group_by_length"] = "random"
    load_best_model_at_end: bool = False
    early_stopping_patience: PositiveInt | None = None  # of transformers' EarlyStoppingCallback

    @model_validator(mode="after")
    def _cadence(self) -> Trainer:
        if self.early_stopping_patience and not self.load_best_model_at_end:
            raise ValueError(
                "trainer.early_stopping_patience stops once the held-out loss has not fallen that"
                " often, and keeps the best weights: add +trainer.load_best_model_at_end=true."
            )
        if self.load_best_model_at_end and self.save_steps != self.eval_steps:
            raise ValueError(
                f"trainer.load_best_model_at_end=true needs a checkpoint of each evaluation: set"
                f" trainer.save_steps={self.eval_steps}, the value of trainer.eval_steps."
            )
        if self.save_steps % self.logging_steps:
            raise ValueError(
                f"trainer.save_steps={self.save_steps} is not a multiple of"
                f" trainer.logging_steps={self.logging_steps}: a resumed run would log other"
                " losses than a whole one."
            )
        return self

    @model_validator(mode="after")
    def _length(self) -> Trainer:
        if self.max_steps == 0 or (self.max_steps == -1 and self.num_train_epochs is None):
            raise ValueError(
                f"trainer.max_steps={self.max_steps}: expected a positive whole number, or -1 with"
                " trainer.num_train_epochs=."
            )
        if self.max_steps > 0 and self.num_train_epochs is not None:
            raise ValueError(
                f"trainer.num_train_epochs={self.num_train_epochs:g} has no effect beside"
                f" trainer.max_steps={self.max_steps}: add trainer.max_steps=-1 to train by epochs."
            )
        return self


class Training(Trainer):
    """transformers' TrainingArguments, of which the fields of `Trainer` are named."""

    model_config = ConfigDict(extra="allow")


class Logging(Section):
    report_to: list[Literal["wandb", "tensorboard"]]
    wandb_project: Annotated[str, AfterValidator(_project)]
    wandb_entity: str | None
    wandb_mode: Literal["auto", "online", "offline"]


class Paths(Section):
    data_dir: str
    output_dir: str
    cache_dir: str


class TrainConfig(Section):
    """Everything that `python -m mos.train` reads; the YAML files document each key."""

    experiment: str
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    device: Literal["auto", "cuda", "cpu"]
    dry_run: bool
    overwrite: bool
    scale: Scale
    model: Model
    quantization: Quantization
    adapter: Adapter
    data: Data
    trainer: Training
    eval: Evaluation
    logging: Logging
    paths: Paths


class AdapterFiles(SearchPathPlugin):
    """Has `adapter=` find the rows of the paper's tables, and methods that other packages bring."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        main = next(e.path for e in search_path.get_path() if e.provider == "main")
        if Path(main.removeprefix("file://")) != CONFIG_DIR:
            return  # of a command whose `adapter` is a folder
        search_path.append("paper", f"{main}/paper")
        for method in entry_points(group="mos.methods"):
            package = method.module.partition(".")[0]
            search_path.append("mos.methods", f"pkg://{package}.configs")


Plugins.instance().register(AdapterFiles)


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
        values = _at_home(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
        return cast("dict[str, Any]", values)
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


C = TypeVar("C", bound=TrainConfig)
STORED = "stored"


def load_config(file: Path) -> TrainConfig:
    """The config that a run was started with, of this version or an earlier one.

    Raises:
        FileNotFoundError: there is none.
        UserError: it is damaged.
    """
    try:
        return check(parse_yaml(read_text(file)), TrainConfig, "", STORED)
    except (ValueError, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{file} is damaged ({error}): was it edited?") from error


@overload
def validate(cfg: DictConfig) -> TrainConfig: ...
@overload
def validate(cfg: DictConfig, kind: type[C]) -> C: ...
def validate(cfg: DictConfig, kind: type[TrainConfig] = TrainConfig) -> TrainConfig:
    """Check a composed config and return it as a typed tree.

    Args:
        kind: what the command takes.

    Raises:
        UserError: naming the key, what was found, what was expected.
    """
    config = typed(cfg, kind)
    _check_adapter(config)
    check_trainer(config.trainer.dump())
    if config.trainer.load_best_model_at_end and config.data.eval_size == 0:
        raise UserError("trainer.load_best_model_at_end=true needs held-out rows: data.eval_size=.")
    return config


def typed(cfg: DictConfig, kind: type[C]) -> C:
    """What `validate` returns, of which keys of PEFT and transformers are not checked: at once."""
    values = resolved(cfg)
    trainer = values.get("trainer")
    if isinstance(trainer, dict) and trainer.get("num_train_epochs") is None:
        # A config without the key is the same run as before there was one.
        trainer.pop("num_train_epochs", None)
    config = check(values, kind)
    held_out = config.data.eval_size + config.data.test_size
    if config.data.max_rows and held_out >= config.data.max_rows:
        raise UserError("data.max_rows: no row is left beside data.eval_size and data.test_size.")
    if getattr(config.adapter, "target_modules", True) == []:
        raise UserError("adapter.target_modules=[]: name layers, such as [q_proj,v_proj].")
    if config.device == "cpu" and getattr(config.trainer, "fp16", False):
        raise UserError("trainer.fp16=true needs a GPU: use trainer.bf16=true on a CPU.")
    return config


@cache
def benchmark_model(name: str) -> type[Benchmark]:
    """What a config may say of a benchmark."""
    return create_model(name, __base__=(Benchmark, options_model(name)))  # type: ignore[arg-type]


def _check_adapter(config: TrainConfig) -> None:
    peft_config(config.adapter.dump())
    method = config.adapter.method
    if config.quantization.bits is not None:
        check_quantized_base(method)
    if config.eval.benchmarks and not METHODS[method].merges:
        raise UserError(
            f"method '{method}' has an update that depends on the input, so that it can neither be"
            " merged nor served as LoRA, and no benchmark can be answered with it. Use eval=base"
            " and compare held-out losses (data.eval_size)."
        )


def trainer_model() -> type[BaseModel]:
    """The fields of transformers.TrainingArguments that a config may set."""
    from transformers import TrainingArguments  # which takes seconds

    return dataclass_model(TrainingArguments, Trainer)


def check_trainer(trainer: dict[str, Any]) -> None:
    for key in trainer:
        if key in OVERRULED:
            raise UserError(f"trainer.{key} is set by the program: {OVERRULED[key]}.")
    check(trainer, trainer_model(), "trainer.")
