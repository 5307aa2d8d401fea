"""Ends of a training other than its last step: a signal, a removed folder, divergence."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from mos.console import say
from mos.errors import UserError
from mos.run import Run
from mos.training.distributed import any_process, signals_taken


class Diverged(UserError):
    """A loss, a gradient norm or a weight is not finite any more."""


def check_finite(what: str, value: float, step: int, args: TrainingArguments) -> None:
    """
    Raises:
        Diverged: `value` is nan or infinite.
    """
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
    SIGUSR2 together. SIGKILL follows some time later.

    Args:
        run: its status tells of a signal before the checkpoint is written, in case the process is
            killed meanwhile.
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

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero and not self.run.path.is_dir():
            raise UserError(f"{self.run.path} was removed while its training was at work.")
        if any_process(bool(self.received)):
            self.received = self.received or ["a signal to another process"]
            control.should_log = control.should_save = control.should_training_stop = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.received:
            step = f"step {state.global_step} of {state.max_steps}"
            self.run.set_status("running", f"stopped by {self.received[0]}; {step} is kept")
