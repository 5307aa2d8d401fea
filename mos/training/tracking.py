"""Weights & Biases and TensorBoard: one tracker run a job, under the run's own id."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mos.config import TrainConfig
from mos.console import is_main_process, say
from mos.run import Run


@contextmanager
def tracked(config: TrainConfig, run: Run, group: str | None) -> Iterator[None]:
    """Point the trackers of `logging.report_to` at this run, and close them with its outcome.

    Args:
        config: validated config.
        run: its id is the tracker's.
        group: name of the sweep, or None.
    """
    logging = config.logging
    if "tensorboard" in logging.report_to:
        os.environ["TENSORBOARD_LOGGING_DIR"] = str(run.path / "tensorboard")
    if "wandb" not in logging.report_to or not is_main_process():
        yield
        return
    import wandb

    mode: Any = logging.wandb_mode
    if mode == "auto":
        mode = "online" if wandb.api.api_key else "offline"
    tracker = wandb.init(
        project=logging.wandb_project,
        entity=logging.wandb_entity,
        id=run.id,
        name=f"{config.experiment}/{run.path.parent.name}/{run.path.name}",
        group=group,
        mode=os.environ.get("WANDB_MODE", mode),
        dir=str(run.path),
        config=config.dump(),
        resume="allow",
        settings=wandb.Settings(silent=True),
    )
    if tracker.url:
        say(f"wandb: online, {tracker.url}")
    else:
        say(f"wandb: offline; upload with: wandb sync {Path(tracker.dir).parent}")
    exit_code = 1
    try:
        yield
        exit_code = 0
    finally:
        tracker.finish(exit_code=exit_code)
