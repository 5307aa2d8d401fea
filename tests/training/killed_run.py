"""Run a training job that kills itself: `python killed_run.py <where> <step> <override>...`.

Not a test: tests/training/test_resume.py starts it. `where` is one of `KILLS`.
"""

from __future__ import annotations

import os
import signal
import sys

from transformers import TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

import mos.training.fit as fit
import mos.training.trainer as trainer
from mos.config import compose_config
from mos.train import train


def die(*args, **kwargs) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after_step(step: int) -> None:
    class Killer(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                die()

    DEFAULT_CALLBACKS.append(Killer)


def during_save(step: int) -> None:
    """After the adapter, before the optimizer's state."""
    save = trainer.CrashSafeTrainer._save_optimizer_and_scheduler

    def save_or_die(self, folder):
        return die() if self.state.global_step == step else save(self, folder)

    trainer.CrashSafeTrainer._save_optimizer_and_scheduler = save_or_die


def before_seal(step: int) -> None:
    seal = trainer.seal
    trainer.seal = lambda folder: die() if folder.name.endswith(f"-{step}") else seal(folder)


def before_adapter(step: int) -> None:
    """Training is over, its adapter is not on disk."""
    fit.save_adapter = die


KILLS = {f.__name__: f for f in (after_step, during_save, before_seal, before_adapter)}

if __name__ == "__main__":
    KILLS[sys.argv[1]](int(sys.argv[2]))
    train(compose_config(sys.argv[3:]))
