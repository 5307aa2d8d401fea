"""Sweeps: what they need before they start, and at the end what became of their members."""

from __future__ import annotations

import importlib.util
import math
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from mos.console import console, override, say
from mos.errors import UserError
from mos.files import read_json, write_json
from mos.run import Run
from mos.training.members import SWEEP, members_of

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


class SweepSummary(Callback):
    """Counts a sweep's members when it starts; says at its end what became of each."""

    at_work: ClassVar[DictConfig | None] = None  # the config of this process's sweep

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        trains = config.hydra.job.config_name == "train"
        if trains and "dry_run=true" in config.hydra.overrides.task:
            from mos.training.preview import preview

            raise SystemExit(1 if preview(config.hydra) else 0)
        OmegaConf.resolve(config.hydra.sweep)
        swept, members = _swept(config.hydra)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        sweep = {"members": members, "swept": swept, "started": time.time()}
        write_json(folder / SWEEP, sweep)
        SweepSummary.at_work = config

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        SweepSummary.at_work = None
        OmegaConf.resolve(config.hydra.sweep)
        close(Path(config.hydra.sweep.dir), config.paths)


@contextmanager
def closed_in_any_case() -> Iterator[None]:
    """Show what became of a sweep's members also where its launcher gives up.

    A launcher raises when the process of a member was killed. Slurm's other jobs go on.
    """
    try:
        yield
    except Exception as error:
        config = SweepSummary.at_work
        if config is None or not members_of(Path(config.hydra.sweep.dir)):
            raise
        say(f"the launcher gave up ({type(error).__name__}): {error}")
        close(Path(config.hydra.sweep.dir), config.paths)
        raise SystemExit(1) from None


def close(folder: Path, paths: Mapping[str, str]) -> None:
    """Print a line a member, and what is left to do.

    Args:
        folder: the sweep's.
        paths: the `paths` config group.

    Raises:
        SystemExit: some have failed.
    """
    members = [_as_it_is(member) for member in members_of(folder)]
    if members:
        console.print(_table(members))
    trained = [m for m in members if m["outcome"] == "trained" and m["reason"]]  # what is left
    if waiting := {Path(m["run"]).parents[1] for m in trained}:
        folders = ",".join(override("", path)[1:] for path in sorted(waiting))
        places = [override(f"paths.{key}", paths[key]) for key in ("cache_dir", "data_dir")]
        command = [f"runs=[{folders}]", *places]
        say(f"evaluate them all: python -m mos.evaluate {shlex.join(command)}")
    failed = [m for m in members if m["outcome"] in ("failed", "interrupted")]
    for member in failed:
        logs = Run(member["run"]).manifest.logs if member["run"] else []
        said = "; ".join([member["reason"], *logs[-2:]])
        say(f"{member['outcome']}: {' '.join(member['overrides'])}: {said}")
    total = read_json(folder / SWEEP)["members"]
    if failed:
        say(f"{len(failed)} of {total} failed; the same command runs only those again.")
    if left := total - len(members):
        say(f"{left} of {total} did not begin; the same command runs them.")
    if failed or left:
        raise SystemExit(1)


def _as_it_is(member: dict[str, Any]) -> dict[str, Any]:
    """A member's notes; one that ended without a word is told from one that is at work."""
    run = Run(member["run"]) if member["run"] else None
    if member["outcome"] != "running" or (run and run.busy):
        return member
    reason = "its process ended without a word"
    if run and run.state.reason:
        reason += f" ({run.state.reason})"
    return {**member, "outcome": "failed", "reason": reason}


def _swept(hydra: DictConfig) -> tuple[list[str], int]:
    """The keys that a sweep varies, and the number of its members."""
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    own = [f"{key}={value}" for key, value in (hydra.sweeper.get("params") or {}).items()]
    given = {o.key_or_group: o for o in parser.parse_overrides([*own, *hydra.overrides.task])}
    swept = [one for one in given.values() if one.is_sweep_override()]
    keys = [one.key_or_group for one in swept]
    if "n_trials" in hydra.sweeper:  # Optuna draws as many as it is told to
        return keys, hydra.sweeper.n_trials
    return keys, math.prod(len(list(one.sweep_string_iterator())) for one in swept)


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
