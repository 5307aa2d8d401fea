"""The HF Trainer with what a crash-safe, exactly repeatable run needs beside it, and its callbacks:
the loss log, the progress line, and ends other than the last step.
"""

from __future__ import annotations

import json
import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils.constants import FSDP_MODEL_NAME, OPTIMIZER_NAME
from datasets import Dataset
from peft import PeftModel
from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, IntervalStrategy

from eval.engines import products_in
from mos.config import TrainConfig
from mos.console import Bar, console, say
from mos.data.dataset import TrainingData
from mos.errors import UserError
from mos.files import seal, write_atomically
from mos.run import Run
from mos.training.checkpoints import check_same_state, leaves, page_state, rotate
from mos.training.distributed import any_process, signals_taken
from mos.training.heldout import HeldOut, example_scores


class Diverged(UserError):
    """A loss, a gradient norm or a weight is not finite any more."""


def check_finite(what: str, value: float, step: int, args: TrainingArguments) -> None:
    """Raises Diverged if `value` is nan or infinite."""
    if not math.isfinite(value):
        raise Diverged(
            f"training diverged at step {step}: the {what} is {value}. Checkpoints from before are"
            f" kept. Lower trainer.learning_rate (now {args.learning_rate:g}), or bound the"
            f" gradients with trainer.max_grad_norm (now {args.max_grad_norm:g}; 0 is no bound)."
        )


class StopOnSignal(TrainerCallback):
    """SIGINT, SIGTERM and SIGHUP end the training after the step at work, with a checkpoint of it.

    So does a signal by which a launcher requeues its job; the launcher gets it after that. The same
    signal again ends the training at once; a different one does not, for Slurm sends SIGTERM and
    SIGUSR2 together. The run's status tells of a signal before the checkpoint is written, for
    SIGKILL follows some time later.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.received: list[str] = []  # names of signals

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals while the body trains.

        Raises:
            KeyboardInterrupt: the body ended because of a signal; its text says after which step.
        """
        with signals_taken(self._receive):
            yield
            if self.received:
                raise KeyboardInterrupt(self.run.state.reason)

    def _receive(self, number: int, frame: Any) -> None:
        name = signal.Signals(number).name
        if name in self.received:
            raise KeyboardInterrupt(f"stopped at once by {name}; steps since the last checkpoint")
        self.received.append(name)
        if len(self.received) > 1:
            return
        self.run.set_status("running", f"got {name}; the step at work has no checkpoint yet")
        say(f"{name}: stopping after this step, with a checkpoint; {name} again stops at once")

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.is_world_process_zero and not self.run.path.is_dir():
            raise UserError(f"{self.run.path} was removed while its training was at work.")
        if any_process(bool(self.received)):
            self.received = self.received or ["a signal to another process"]
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **kwargs) -> None:
        if self.received:
            step = f"step {state.global_step} of {state.max_steps}"
            self.run.set_status("running", f"stopped by {self.received[0]}; {step} is kept")


class LossLog(TrainerCallback):
    """loss.jsonl, a line a log: step, losses, learning rate, examples and seconds so far.

    It is the trainer's `log_history`, which each checkpoint has: that of a resumed run reads as if
    it had never been killed. `examples_at` tells how many examples a number of steps has seen.
    """

    KEYS = ("step", "loss", "eval_loss", "grad_norm", "learning_rate", "examples", "seconds")

    def __init__(self, path: Path, examples_at: Callable[[int], int]) -> None:
        self.path, self.examples_at = path, examples_at

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        done = self.lines(state)
        self.seconds_before = done[-1].get("seconds", 0.0) if done else 0.0
        self.started = time.monotonic()
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in done))

    def lines(self, state: TrainerState) -> list[dict[str, Any]]:
        """What the log says up to a state of the training."""
        return [
            # A float16 scaler meets infinite norms, for which JSON has no form.
            {key: entry[key] for key in self.KEYS if key in entry and math.isfinite(entry[key])}
            for entry in state.log_history
            if "loss" in entry or "eval_loss" in entry
        ]

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs or "eval_loss" in logs:
            examples, seconds = self.examples_at(state.global_step), round(self.seconds(), 3)
            state.log_history[-1] |= {"examples": examples, "seconds": seconds}
            if state.is_world_process_zero:
                with self.path.open("a") as handle:
                    handle.write(json.dumps(self.lines(state)[-1], allow_nan=False) + "\n")

    def seconds(self) -> float:
        """Training time so far, earlier sessions of the same run included."""
        return self.seconds_before + time.monotonic() - self.started


class ProgressLine(TrainerCallback):
    """A bar of the training and one of each evaluation; where there is no terminal, ten lines."""

    def __init__(self) -> None:
        self.training: Any = None  # a Bar, as the other
        self.held_out: Any = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.training = Bar("training", state.max_steps, state.global_step)

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.training.move(state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        text = "  ".join(f"{k} {logs[k]:.4f}" for k in ("loss", "eval_loss") if k in logs)
        tenth = state.global_step % max(state.max_steps // 10, 1) == 0 and not console.is_terminal
        if "eval_loss" in logs or (text and tenth):
            self.training.say(text)
        elif text:
            self.training.move(state.global_step, text)

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs) -> None:
        self.held_out = self.held_out or Bar("held-out loss", len(eval_dataloader))
        self.held_out.move(int(self.held_out.task.completed) + 1)

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        if self.held_out:
            self.held_out.close()
        self.held_out = None

    def on_predict(self, args, state, control, metrics, **kwargs) -> None:
        self.on_evaluate(args, state, control)

    def close(self) -> None:
        for bar in filter(None, (self.held_out, self.training)):
            bar.close()


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
    """A Trainer whose runs survive kills, repeat to the bit, and stop when they diverge.

    Attributes:
        heldout: the last evaluation, example by example; None before the first.
        kept_checkpoints: how many are kept; None keeps all.
    """

    loss_log: LossLog
    progress: ProgressLine
    heldout: HeldOut | None = None
    kept_checkpoints: int | None = None
    # Each of many types in transformers.
    train_dataset: Any
    eval_dataset: Any
    model: Any
    optimizer: Any
    lr_scheduler: Any

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        self.step_loss = super().training_step(model, inputs, num_items_in_batch)
        return self.step_loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        step = self.state.global_step + 1
        check_finite("loss", float(self.step_loss), step, self.args)
        if self.accelerator.scaler is None:  # a float16 scaler skips such steps itself
            check_finite("gradient norm", float(norm), step, self.args)
        return norm

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """What single examples came to takes the place of logits and labels."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            nll, tokens, exact = example_scores(model, inputs)
        return None, (nll, exact), tokens

    def keep_heldout(self, evaluated: EvalPrediction) -> dict[str, float]:
        """`compute_metrics` of this trainer: what becomes `eval_loss`."""
        in_order = np.argsort(self._eval_order)
        nll, exact, tokens = (
            values[in_order].tolist() for values in (*evaluated.predictions, evaluated.label_ids)
        )
        self.heldout = HeldOut(self.state.global_step, nll, tokens, exact)
        check_finite("held-out loss", self.heldout.loss, self.state.global_step, self.args)
        return {"loss": self.heldout.loss}

    def _get_eval_sampler(self, eval_dataset):
        """The longest first: batches have little padding."""
        lengths = [len(ids) for ids in eval_dataset["input_ids"]]
        self._eval_order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
        return self._eval_order

    def _get_train_sampler(self, train_dataset=None):
        if self.args.train_sampling_strategy != "group_by_length":
            return super()._get_train_sampler(train_dataset)
        # Grouped by what one step takes over all processes, so that their number changes nothing.
        step = self.args.gradient_accumulation_steps * self.args.world_size
        return EpochSeededSampler(
            self.args.train_batch_size * step,
            lengths=self.train_dataset["length"][:],
            dataset=self.train_dataset,
            seed=self.args.seed,
        )

    def finished(self, checkpoint: Path) -> bool:
        """Whether the training that left a checkpoint was at its end, early or not."""
        state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        stopping = state.stateful_callbacks.get(EarlyStoppingCallback.__name__)
        stopped = stopping is not None and (
            stopping["attributes"]["early_stopping_patience_counter"]
            >= stopping["args"]["early_stopping_patience"]
        )
        return state.global_step >= state.max_steps or stopped

    def restore(self, checkpoint: Path) -> None:
        """Take over a finished training: `train` would do one more step."""
        self._load_from_checkpoint(str(checkpoint))
        self.state = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        if self.args.load_best_model_at_end:
            best = checkpoint.with_name(f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}")
            self.state.best_model_checkpoint = str(best)  # the run may have been moved
            self._load_best_model()
        self.loss_log.on_train_begin(self.args, self.state, self.control)

    def measure(self, rows: Dataset) -> HeldOut:
        """The losses of the weights that the training ended with.

        The last losses of the evaluation's rows are taken if they are of these weights.
        """
        best = self.args.load_best_model_at_end
        step = (self.state.best_global_step if best else None) or self.state.global_step
        known = self.heldout
        if rows is self.eval_dataset and known is not None and known.step == step:
            return known
        self.predict(rows)
        assert self.heldout is not None
        return replace(self.heldout, step=step)

    def _save_checkpoint(self, model, trial) -> None:
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                largest = float(weight.detach().abs().max())
                check_finite(f"largest of {name}", largest, self.state.global_step, self.args)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            folder = Path(str(self.args.output_dir))
            seal(folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")
            best = self.state.best_global_step if self.args.load_best_model_at_end else None
            rotate(folder, self.kept_checkpoints, best)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None) -> None:
        of_fsdp = (Path(resume_from_checkpoint) / f"{FSDP_MODEL_NAME}.bin").is_file()
        if of_fsdp and not self.is_fsdp_enabled and isinstance(self.model, PeftModel):
            adapter = self.model.active_adapters[0]
            self.model.load_adapter(resume_from_checkpoint, adapter, is_trainable=True)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint) -> None:
        if checkpoint is None or self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        read = partial(torch.load, map_location="cpu", weights_only=True)
        whole, sharded = (Path(checkpoint) / f"{OPTIMIZER_NAME}.{end}" for end in ("pt", "bin"))
        if sharded.is_file():  # FSDP wrote it: states under the names of parameters
            set_optimizer_state_dict(self.model, self.optimizer.optimizer, read(sharded))
        else:
            # transformers reads it onto the GPU under DDP. What was paged memory keeps its mark
            # there, and bitsandbytes crashes on it.
            state = read(whole)
            for _, value in leaves(state):
                if isinstance(value, torch.Tensor):
                    vars(value).pop("is_paged", None)
            self.optimizer.load_state_dict(state)
            page_state(getattr(self.optimizer, "optimizer", self.optimizer))
            check_same_state(read(whole), self.optimizer.state_dict(), self.args.optim)
        self.lr_scheduler.load_state_dict(read(Path(checkpoint) / SCHEDULER_NAME))


def training_arguments(config: TrainConfig, run: Run, device: str) -> TrainingArguments:
    """The `trainer` config group as transformers' arguments.

    Raises:
        UserError: values that transformers refuses.
    """
    options = config.trainer.dump()
    # A part of the state of a run, as the optimizer's.
    options["restore_callback_states_from_checkpoint"] = True
    options.pop("early_stopping_patience", None)
    if device == "cpu":
        # Only read on a GPU; transformers refuses it elsewhere.
        options.pop("tf32", None)
        if options.get("bf16"):
            options["bf16"] = products_in("bfloat16", device) == "bfloat16"
    if options.get("gradient_checkpointing"):
        # Reentrant checkpointing gives shared pools silently wrong gradients under DDP.
        options.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    options.setdefault("eval_strategy", "steps")
    try:
        arguments = TrainingArguments(
            **options,
            output_dir=str(run.checkpoint_dir),
            seed=config.seed,
            use_cpu=device == "cpu",
            report_to=list(config.logging.report_to),
            run_name=run.id,
            save_strategy="steps",
            disable_tqdm=True,
            log_level="error",
            logging_nan_inf_filter=False,  # hides what the trainer stops at
            include_num_input_tokens_seen="non_padding",
            ddp_find_unused_parameters=False,
        )
    except (TypeError, ValueError) as error:
        raise UserError(f"trainer: {error}") from error
    if arguments.n_gpu > 1:
        say(
            f"{arguments.n_gpu} GPUs are visible, and one process trains on the first. For all:"
            " accelerate launch (docs/scaling.md), or hydra/launcher=processes for a sweep."
        )
        arguments._n_gpu = 1  # the Trainer would take a batch for each
    return arguments


def build_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    data: TrainingData,
    arguments: TrainingArguments,
    run: Run,
    stop: StopOnSignal,
    patience: int | None = None,
) -> CrashSafeTrainer:
    """A Trainer over prepared data that logs to, and keeps its checkpoints in, the run folder."""
    if data.eval is None:
        arguments.eval_strategy = IntervalStrategy.NO
        arguments.eval_on_start = False
    examples = len(data.train)
    batch = (
        arguments.train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    )
    if arguments.max_steps < 0:
        arguments.max_steps = math.ceil(arguments.num_train_epochs * math.ceil(examples / batch))
    # Rotated here, after the seal.
    kept_checkpoints, arguments.save_total_limit = arguments.save_total_limit, None
    arguments.logging_steps = min(arguments.logging_steps, arguments.max_steps)
    loss_log = LossLog(run.path / "loss.jsonl", lambda step: examples_seen(step, examples, batch))
    progress = ProgressLine()
    trainer = CrashSafeTrainer(
        model=model,
        args=arguments,
        train_dataset=data.train,
        eval_dataset=data.eval,
        data_collator=data.collator,
        processing_class=tokenizer,
        callbacks=[loss_log, progress, stop],
    )
    trainer.loss_log, trainer.progress = loss_log, progress
    trainer.kept_checkpoints = kept_checkpoints
    trainer.compute_metrics = trainer.keep_heldout
    trainer.remove_callback(PrinterCallback)
    if patience is not None:
        trainer.add_callback(EarlyStoppingCallback(patience))
    return trainer


def examples_seen(step: int, examples: int, batch: int) -> int:
    """Examples seen after `step` optimizer steps; the last batch of an epoch may be smaller."""
    steps_per_epoch = math.ceil(examples / batch)
    epochs, rest = divmod(step, steps_per_epoch)
    return epochs * examples + min(rest * batch, examples)
