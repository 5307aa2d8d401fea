"""Members of a sweep: what each does and how far all are, in the sweep's folder.

It holds `sweep.json` (how many members, since when) and `members/<number>.json`, one for each
member that has begun; members may run one after another, at once, or on other machines.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from mos.console import fail, label_lines, say, show_traceback
from mos.errors import UserError
from mos.files import read_json, write_json
from mos.run import Run

# Launchers whose members share a terminal.
AT_ONCE = ("processes", "cluster")
DEVICES = Path("/dev")
SWEEP = "sweep.json"


def in_sweep() -> bool:
    """Whether this job is a member of a `-m` sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_dir() -> Path | None:
    """The folder of the sweep that this job is a member of."""
    return Path(HydraConfig.get().sweep.dir) if in_sweep() else None


def start_member() -> None:
    """Say which member of how many this is, if it is one, and note that it has begun."""
    folder = sweep_dir()
    if folder is None:
        return
    number = HydraConfig.get().job.num
    launcher = HydraConfig.get().runtime.choices["hydra/launcher"]
    if launcher in AT_ONCE:
        label_lines(f"[{number + 1}] ")
    if launcher == "processes":
        take_gpu(number)
    sweep = read_json(folder / SWEEP)
    own = _own_overrides(HydraConfig.get().overrides.task, sweep)
    entry = {"started": time.time(), "outcome": "running", "run": "", "reason": "", "scores": {}}
    _write_member(folder, number, {**entry, "overrides": own})
    say(f"member {number + 1} of {sweep['members']}: {' '.join(own)}")


def take_gpu(number: int) -> None:
    """Leave this process, and those it starts, one of the GPUs that it may use: by turns.

    A process that works on one member after another keeps the GPU of its first.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(DEVICES.glob("nvidia[0-9]*")))
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range(there)]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]


def note_run(run: Run) -> None:
    """Note which run this member works on, if it is one, for those who look after it was killed."""
    if folder := sweep_dir():
        number = HydraConfig.get().job.num
        entry = read_json(_member_file(folder, number))
        _write_member(folder, number, {**entry, "run": str(run.path)})


def end_member(outcome: str, run: Run | None = None, reason: str = "") -> None:
    """Note what became of this member, if it is one, and say how far the sweep is."""
    folder = sweep_dir()
    if folder is None:
        return
    number = HydraConfig.get().job.num
    entry = read_json(_member_file(folder, number))
    entry |= {"outcome": outcome, "reason": reason, "seconds": time.time() - entry["started"]}
    if run is not None:
        rows = results.rows() if (results := run.results) else []
        scores = {f"{row.benchmark} {row.metric}": row.value for row in rows}
        entry |= {"run": str(run.path), "scores": scores}
    _write_member(folder, number, entry)
    say(f"member {number + 1}: {outcome}; {progress(folder)}")


def progress(folder: Path) -> str:
    """Members of a sweep that are done, running and left, and about how long that takes."""
    sweep, members = read_json(folder / SWEEP), members_of(folder)
    running = sum(member["outcome"] == "running" for member in members)
    done = len(members) - running
    left = sweep["members"] - len(members)
    text = f"{done} of {sweep['members']} done, {running} running, {left} left"
    # A member that was complete before takes no time, and tells nothing about the others.
    took = [m["seconds"] for m in members if m.get("seconds", 0) > 1]
    if took and left + running:
        at_once = max(1.0, sum(took) / (time.time() - sweep["started"]))
        seconds = statistics.fmean(took) * (left + running / 2) / at_once
        text += f", about {timedelta(seconds=round(seconds))} to go"
    return text


def members_of(folder: Path) -> list[dict[str, Any]]:
    """What each member that has begun noted, in their order."""
    return [read_json(file) for file in sorted((folder / "members").glob("*.json"))]


def fail_member(error: Exception) -> None:
    """Note that this member failed, and show why, so that the others go on.

    Raises:
        Exception: the error, where there is no sweep.
    """
    known = isinstance(error, UserError)
    end_member("failed", reason=str(error) if known else f"{type(error).__name__}: {error}")
    if not in_sweep():
        raise error
    if known:
        fail(str(error))
    else:
        show_traceback()


def _own_overrides(overrides: Sequence[str], sweep: Mapping[str, Any]) -> list[str]:
    """Those overrides of a member in which it differs from others."""
    return [o for o in overrides if o.partition("=")[0].lstrip("+~") in sweep["swept"]]


def _member_file(folder: Path, number: int) -> Path:
    return folder / "members" / f"{number:05}.json"


def _write_member(folder: Path, number: int, entry: Mapping[str, Any]) -> None:
    file = _member_file(folder, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, entry)
