"""The `trainer` config group: what a config may set of transformers.TrainingArguments."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from mos.errors import UserError
from mos.schema import Number, Strict, check, dataclass_model

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


class Trainer(Strict):
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


def trainer_model() -> type[BaseModel]:
    """The fields of transformers.TrainingArguments that a config may set."""
    from transformers import TrainingArguments  # which takes seconds

    return dataclass_model(TrainingArguments, Trainer)


def check_trainer(trainer: dict[str, Any]) -> None:
    for key in trainer:
        if key in OVERRULED:
            raise UserError(f"trainer.{key} is set by the program: {OVERRULED[key]}.")
    check(trainer, trainer_model(), "trainer.")
