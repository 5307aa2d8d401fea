"""The HF Trainer with what a crash-safe, exactly repeatable run needs beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from mos.data.dataset import TrainingData
from mos.errors import UserError
from mos.runs import Run
from mos.training.callbacks import LossLog, ProgressLine
from mos.training.checkpoints import seal

OPTIMIZER_FILE = "optimizer.pt"


class EpochSeededSampler(LengthGroupedSampler):
    """Length-grouped batches whose order depends on the seed and the epoch alone.

    transformers draws it from the global generator, whose state at the start of an epoch a resumed
    run does not have.
    """

    def __init__(self, *args: Any, seed: int, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        self.generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        return super().__iter__()


class CrashSafeTrainer(Trainer):
    """Seals its checkpoints, repeats its batches, and refuses an optimizer state that changed.

    Attributes:
        lengths: tokens of each training example.
        loss_log: what writes loss.jsonl.
    """

    lengths: list[int]
    loss_log: LossLog

    def _get_train_sampler(self, train_dataset=None):
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # Grouped by what one step takes over all processes, so that their number changes nothing.
        step = self.args.gradient_accumulation_steps * self.args.world_size
        return EpochSeededSampler(
            self.args.train_batch_size * step,
            lengths=self.lengths,
            dataset=dataset,
            seed=self.args.seed,
        )

    def restore(self, checkpoint: Path) -> None:
        """Take over a finished training: `train` would do one more step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        self.loss_log.take_up(self.state)

    def _save_checkpoint(self, model, trial) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            seal(Path(str(self.args.output_dir)) / name)
        self.accelerator.wait_for_everyone()

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or self.optimizer is None:
            return
        if (file := Path(checkpoint) / OPTIMIZER_FILE).is_file():
            saved = torch.load(file, map_location="cpu", weights_only=True)
            check_same_state(saved, self.optimizer.state_dict(), self.args.optim)


def check_same_state(saved: Mapping[str, Any], loaded: Mapping[str, Any], optim: str) -> None:
    """Compare the optimizer's state after loading with what was saved, tensor by tensor.

    bitsandbytes' paged and 8-bit optimizers have lost state on resume in several versions; a run
    that goes on with another state is worse than one that stops.

    Raises:
        UserError: the state did not survive, and what to set instead.
    """
    for index, state in saved["state"].items():
        for name, value in state.items():
            other = loaded["state"].get(index, {}).get(name)
            if isinstance(value, torch.Tensor):
                same = (
                    isinstance(other, torch.Tensor)
                    and other.dtype == value.dtype
                    and torch.equal(other.cpu(), value)
                )
            else:
                same = not isinstance(value, int | float) or other == value
            if not same:
                raise UserError(
                    f"trainer.optim={optim} did not get its state back from the checkpoint"
                    f" ({name} of parameter {index}): this run cannot be continued exactly. Start"
                    " it anew with overwrite=true, and use trainer.optim=adamw_torch where runs"
                    " get interrupted."
                )


def training_arguments(config: Mapping[str, Any], run: Run, device: str) -> TrainingArguments:
    """The `trainer` config group as transformers' arguments."""
    options = dict(config["trainer"])
    if device == "cpu":
        # Only read on a GPU; transformers refuses it elsewhere.
        options.pop("tf32", None)
    if options.get("gradient_checkpointing"):
        # Reentrant checkpointing gives shared pools silently wrong gradients under DDP.
        options.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    options.setdefault("eval_strategy", "steps")
    try:
        return TrainingArguments(
            **options,
            output_dir=str(run.checkpoint_dir),
            seed=config["seed"],
            use_cpu=device == "cpu",
            report_to=list(config["logging"]["report_to"]),
            run_name=run.id,
            save_strategy="steps",
            disable_tqdm=True,
            log_level="error",
            include_num_input_tokens_seen="non_padding",
            ddp_find_unused_parameters=False,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    config: Mapping[str, Any],
    run: Run,
    device: str,
) -> CrashSafeTrainer:
    """A Trainer over prepared data that logs to, and keeps its checkpoints in, the run folder."""
    arguments = training_arguments(config, run, device)
    if data.eval is None:
        arguments.eval_strategy = IntervalStrategy.NO
    trainer = CrashSafeTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
        processing_class=tokenizer,
    )
    trainer.lengths = data.train["length"][:]
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    batch = (
        arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    )
    trainer.loss_log = LossLog(
        run.path / "loss.jsonl", lambda step: examples_seen(step, len(data.train), batch)
    )
    trainer.add_callback(trainer.loss_log)
    trainer.add_callback(ProgressLine())
    return trainer


def examples_seen(step: int, examples: int, batch: int) -> int:
    """Examples seen after `step` optimizer steps; the last batch of an epoch may be smaller."""
    steps_per_epoch = math.ceil(examples / batch)
    epochs, rest = divmod(step, steps_per_epoch)
    return epochs * examples + min(rest * batch, examples)
