"""What a person and a later program see of a training run: a progress line and loss.jsonl."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback, TrainerState

from mos.console import console
from mos.files import write_atomically
from mos.runs import read_losses


class LossLog(TrainerCallback):
    """One JSON line per log: step, loss or eval_loss, learning rate, examples and seconds so far.

    A resumed run cuts the lines past its checkpoint, so that the file reads as if never killed.

    Args:
        path: loss.jsonl of the run.
        examples_at: number of training examples seen after a number of optimizer steps.
    """

    def __init__(self, path: Path, examples_at: Any) -> None:
        self.path, self.examples_at = path, examples_at
        self.seconds_before = 0.0

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.take_up(state)

    def take_up(self, state: TrainerState) -> None:
        """Go on from a step; from step 0, a run that left no checkpoint starts anew."""
        step = state.global_step
        kept = [line for line in read_losses(self.path) if step and line["step"] <= step]
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.started = time.monotonic()
        if state.is_world_process_zero:
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        known = {
            name: logs[name]
            for name in ("loss", "eval_loss", "grad_norm", "learning_rate")
            if name in logs and math.isfinite(logs[name])  # a float16 scaler meets infinite norms
        }
        if not state.is_world_process_zero or not ({"loss", "eval_loss"} & known.keys()):
            return
        line = {
            "step": state.global_step,
            **known,
            "examples": self.examples_at(state.global_step),
            "seconds": round(self.seconds(), 3),
        }
        with self.path.open("a") as handle:
            handle.write(json.dumps(line, allow_nan=False) + "\n")

    def on_save(self, args, state, control, **kwargs) -> None:
        # The checkpoint must not know steps that the log has lost.
        if state.is_world_process_zero and self.path.is_file():
            with self.path.open("a") as handle:
                os.fsync(handle.fileno())

    def seconds(self) -> float:
        """Training time so far, earlier sessions of the same run included."""
        return self.seconds_before + time.monotonic() - self.started


class ProgressLine(TrainerCallback):
    """A progress bar with the loss on a terminal, ten plain lines elsewhere."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self.bar: Progress | None = None
        if not state.is_world_process_zero:
            return
        if console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[loss]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self.bar.start()
            self.task = self.bar.add_task(
                "", total=state.max_steps, completed=state.global_step, loss=""
            )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=state.global_step)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if not state.is_world_process_zero or not logs:
            return
        text = "  ".join(f"{k} {logs[k]:.4f}" for k in ("loss", "eval_loss") if k in logs)
        if self.bar is not None and "loss" in logs:
            self.bar.update(self.task, loss=text)
        elif text and (
            "eval_loss" in logs or state.global_step % max(state.max_steps // 10, 1) == 0
        ):
            console.print(f"  step {state.global_step}/{state.max_steps}  {text}", highlight=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self.bar is not None:
            self.bar.stop()
