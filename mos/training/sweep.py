"""Sweeps: what each member does and how far all are, and at the end what became of them.

A sweep's folder holds `sweep.json` (how many members, since when) and `members/<number>.json`, one
for each member that has begun; members may run one after another, at once, or on other machines.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from mos.console import console, errors, override, say
from mos.errors import UserError
from mos.files import parse_json, write_json
from mos.runs import Run

# Launchers and sweepers that an extra of this package installs, with the module they are in.
PLUGINS = {
    "hydra/launcher=processes": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=slurm_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=cluster": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}


def check_plugins(arguments: Sequence[str]) -> None:
    """Look at the launcher and the sweeper that a command line names, before Hydra does.

    Raises:
        UserError: there is no sweep, a package is not installed, no Slurm is here.
    """
    for given in PLUGINS.keys() & set(arguments):
        extra, module = PLUGINS[given]
        if not {"-m", "--multirun"} & set(arguments):
            raise UserError(f"{given} is for sweeps: add -m.")
        try:
            installed = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            installed = None
        if installed is None:
            raise UserError(
                f"{given}: its package is not installed. Install it with"
                f" pip install 'mos-tuning[{extra}]'."
            )
        if given.endswith("=slurm") and shutil.which("srun") is None:
            raise UserError(
                f"{given}: no Slurm here (no command srun). Give the command on a login node of"
                " the cluster; slurm_local runs the same path with processes of this machine."
            )


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
    if HydraConfig.get().runtime.choices["hydra/launcher"] == "processes":
        for shown, stream in ((console, sys.stdout), (errors, sys.stderr)):
            shown.file = Labelled(stream, f"[{number + 1}] ")  # type: ignore[assignment]
    sweep = _read(folder / "sweep.json")
    own = _own_overrides(HydraConfig.get().overrides.task, sweep)
    entry = {"started": time.time(), "outcome": "running", "run": "", "reason": "", "scores": {}}
    _write_member(folder, number, {**entry, "overrides": own})
    say(f"member {number + 1} of {sweep['members']}: {' '.join(own)}")


def end_member(outcome: str, run: Run | None = None, reason: str = "") -> None:
    """Note what became of this member, if it is one, and say how far the sweep is."""
    folder = sweep_dir()
    if folder is None:
        return
    number = HydraConfig.get().job.num
    entry = _read(_member_file(folder, number))
    entry |= {"outcome": outcome, "reason": reason, "seconds": time.time() - entry["started"]}
    if run is not None:
        entry |= {"run": str(run.path), "scores": _scores(run.results)}
    _write_member(folder, number, entry)
    say(f"member {number + 1}: {outcome}; {progress(folder)}")


def progress(folder: Path) -> str:
    """Members of a sweep that are done, running and left, and about how long that takes."""
    sweep, members = _read(folder / "sweep.json"), _members(folder)
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


class SweepSummary(Callback):
    """Counts a sweep's members when it starts; says at its end what became of each."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        if "dry_run=true" in config.hydra.overrides.task:
            from mos.training.preview import preview

            raise SystemExit(1 if preview(config.hydra) else 0)
        OmegaConf.resolve(config.hydra.sweep)
        swept, members = _swept(config.hydra)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        sweep = {"members": members, "swept": swept, "started": time.time()}
        write_json(folder / "sweep.json", sweep)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        OmegaConf.resolve(config.hydra.sweep)
        folder = Path(config.hydra.sweep.dir)
        members = _members(folder)
        if members:
            console.print(_table(members))
        if waiting := {Path(m["run"]).parents[1] for m in members if m["outcome"] == "trained"}:
            folders = ",".join(override("", path)[1:] for path in sorted(waiting))
            paths = [override(f"paths.{k}", config.paths[k]) for k in ("cache_dir", "data_dir")]
            command = [f"runs=[{folders}]", *paths]
            say(f"evaluate them all: python -m mos.evaluate {shlex.join(command)}")
        failed = [m for m in members if m["outcome"] in ("failed", "running")]
        for member in failed:
            reason = member["reason"] or "its process ended without a word"
            say(f"failed: {' '.join(member['overrides'])}: {reason}")
        if failed:
            total = _read(folder / "sweep.json")["members"]
            say(f"{len(failed)} of {total} failed; the same command runs only those again.")
            raise SystemExit(1)


def _swept(hydra: DictConfig) -> tuple[list[str], int]:
    """The keys that a sweep varies, and the number of its members."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    swept = [o for o in parser.parse_overrides(list(hydra.overrides.task)) if o.is_sweep_override()]
    keys = [one.key_or_group for one in swept]
    if "n_trials" in hydra.sweeper:  # Optuna draws as many as it is told to
        return keys, hydra.sweeper.n_trials
    return keys, math.prod(len(list(one.sweep_string_iterator())) for one in swept)


def _own_overrides(overrides: Sequence[str], sweep: Mapping[str, Any]) -> list[str]:
    """Those overrides of a member in which it differs from others."""
    return [o for o in overrides if o.partition("=")[0].lstrip("+~") in sweep["swept"]]


def _table(members: Sequence[Mapping[str, Any]]) -> Table:
    """A line a member, with its scores."""
    scores = list(dict.fromkeys(name for member in members for name in member["scores"]))
    table = Table("member", "outcome", *(Column(name, justify="right") for name in scores))
    table.add_column("run", no_wrap=True)
    for member in members:
        values = (member["scores"].get(name) for name in scores)
        shown = ["" if value is None else f"{value:.2f}" for value in values]
        table.add_row(
            " ".join(member["overrides"]), member["outcome"], *shown, Run(member["run"]).name
        )
    return table


def _scores(results: Mapping[str, Any]) -> dict[str, float]:
    return {
        f"{benchmark} {name}": value
        for benchmark, metrics in results.get("metrics", {}).items()
        for name, value in metrics.items()
        if name not in ("stderr", "n") and isinstance(value, int | float)
    }


def _members(folder: Path) -> list[dict[str, Any]]:
    return [_read(file) for file in sorted((folder / "members").glob("*.json"))]


def _member_file(folder: Path, number: int) -> Path:
    return folder / "members" / f"{number:05}.json"


def _write_member(folder: Path, number: int, entry: Mapping[str, Any]) -> None:
    file = _member_file(folder, number)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, entry)


def _read(file: Path) -> dict[str, Any]:
    return parse_json(file.read_text("utf-8"))


class Labelled:
    """A text stream that begins each line with a label; no terminal, so nothing is redrawn on it.

    Args:
        stream: where the lines go.
        label: what they begin with.
    """

    def __init__(self, stream: IO[str], label: str) -> None:
        self.stream, self.label = stream, label
        self.at_start = True

    def write(self, text: str) -> int:
        for line in text.splitlines(keepends=True):
            self.stream.write(self.label * self.at_start + line)
            self.at_start = line.endswith("\n")
        return len(text)

    def flush(self) -> None:
        self.stream.flush()

    def isatty(self) -> bool:
        return False
