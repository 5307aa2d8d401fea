"""Sweeps: one failure does not stop the others, and the end says what became of each member."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from mos.console import console, say
from mos.files import write_json

MEMBERS = "members"


def in_sweep() -> bool:
    """Whether this job is a member of a `-m` sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_dir() -> Path | None:
    """The folder of the sweep that this job is a member of."""
    return Path(HydraConfig.get().sweep.dir) if in_sweep() else None


def record_member(outcome: str, run_path: str | Path, reason: str = "") -> None:
    """Leave this member's outcome where the end of the sweep finds it."""
    folder = sweep_dir()
    if folder is None:
        return
    job = HydraConfig.get().job
    (folder / MEMBERS).mkdir(parents=True, exist_ok=True)
    entry = {
        "overrides": list(HydraConfig.get().overrides.task),
        "outcome": outcome,
        "run": str(run_path),
        "reason": reason,
    }
    write_json(folder / MEMBERS / f"{job.num:05}.json", entry)


class SweepSummary(Callback):
    """When a sweep ends, print a line a member; a failed member makes the exit status 1."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        OmegaConf.resolve(config.hydra.sweep)
        files = sorted((Path(config.hydra.sweep.dir) / MEMBERS).glob("*.json"))
        members = [json.loads(file.read_text()) for file in files]
        shared = set.intersection(*(set(m["overrides"]) for m in members)) if members else set()
        table = Table("member", "outcome", Column("run", overflow="fold"))
        for member in members:
            own = [o for o in member["overrides"] if o not in shared]
            table.add_row(" ".join(own), member["outcome"], member["run"])
        console.print(table)
        failed = [m for m in members if m["outcome"] == "failed"]
        for member in failed:
            say(f"failed: {' '.join(member['overrides'])}: {member['reason']}")
        if failed:
            say(f"{len(failed)} of {len(members)} failed; the same command runs only those again.")
            raise SystemExit(1)
