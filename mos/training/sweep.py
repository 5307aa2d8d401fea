"""Sweeps: what they need before they start, what each member notes, what became of all of them.

A sweep's folder holds `sweep.json` (the number of members and what they vary) and, for each member
that has begun, `members/<number>.json`: its overrides, its runs and its error. Members may run one
after another, at once, or on other machines.
"""

from __future__ import annotations

import importlib.util
import math
import os
import shlex
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mos.console import fail, launched_processes, override, say, show_traceback, signals_got
from mos.errors import UserError
from mos.files import read_json, write_json
from mos.run import Run
from mos.runs import show_runs

# Launchers and sweepers that an extra of this package installs, with the module they are in.
PLUGINS = {
    "hydra/launcher=processes": ("joblib", "hydra_plugins.hydra_joblib_launcher"),
    "hydra/launcher=slurm": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=slurm_local": ("submitit", "hydra_plugins.hydra_submitit_launcher"),
    "hydra/launcher=cluster": ("ray", "hydra_plugins.hydra_ray_launcher"),
    "hydra/sweeper=optuna": ("optuna", "hydra_plugins.hydra_optuna_sweeper"),
}
SWEEP = "sweep.json"
NO_WORD = "its process ended without a word"
DEVICES = Path("/dev")


def check_sweep(arguments: list[str]) -> None:
    """Refuse, before Hydra reads it, what a command line says of a sweep and cannot be.

    The members of a dry run are taken out of their launcher's hands, and leave nothing: its
    arguments are changed.
    """
    sweep = bool({"-m", "--multirun"} & set(arguments))
    if sweep and launched_processes() > 1:
        raise UserError("accelerate launch and torchrun start the processes of one run: omit -m.")
    if sweep and "dry_run=true" in arguments:
        launchers = ("hydra/launcher", "hydra.launcher.", "+hydra.launcher.")
        kept = [argument for argument in arguments if not argument.startswith(launchers)]
        arguments[:] = [*kept, "hydra.sweep.dir=${mos.scratch:}"]
    for given in PLUGINS.keys() & set(arguments):
        extra, module = PLUGINS[given]
        if not sweep:
            raise UserError(f"{given} is for sweeps: add -m.")
        if not (importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(module)):
            raise UserError(
                f"{given}: its package is not installed. Install it with"
                f" pip install 'mos-tuning[{extra}]'."
            )
        if given.endswith("=slurm") and shutil.which("srun") is None:
            raise UserError(
                f"{given}: no Slurm here (no command srun). Give the command on a login node of"
                " the cluster; slurm_local runs the same path with processes of this machine."
            )


class SweepStart(Callback):
    """Notes how many members a sweep has when it starts."""

    at_work: ClassVar[DictConfig | None] = None  # the config of this process's sweep

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        OmegaConf.resolve(config.hydra.sweep)
        swept, members = _swept(config.hydra)
        if not members:  # Hydra makes a warning of an Exception here
            fail("this sweep has no members: a range or a glob of it is empty.")
            raise SystemExit(UserError.exit_status)
        folder = Path(config.hydra.sweep.dir)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SWEEP, {"members": members, "swept": swept})
        SweepStart.at_work = config


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


def in_sweep() -> bool:
    """Whether this job is a member of a `-m` sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def sweep_dir() -> Path | None:
    """The folder of the sweep that this job is a member of."""
    return Path(HydraConfig.get().sweep.dir) if in_sweep() else None


def in_turn() -> bool:
    """Whether this job is a member of a sweep whose members this process works on in turn."""
    return in_sweep() and HydraConfig.get().runtime.choices["hydra/launcher"] == "basic"


@contextmanager
def as_member() -> Iterator[None]:
    """Around a job: if it is a member of a sweep, its error is shown and noted, not raised."""
    if (folder := sweep_dir()) is None:
        yield
        return
    job, sweep = HydraConfig.get(), read_json(folder / SWEEP)
    number, of, swept = job.job.num, sweep["members"], sweep["swept"]
    own = [o for o in job.overrides.task if o.partition("=")[0].lstrip("+~") in swept]
    if job.runtime.choices["hydra/launcher"] == "processes":
        take_gpu(number)
    note_member(overrides=own, runs=[], evaluation=None, plan=None, error=NO_WORD)
    say(f"member {number + 1} of {of}: {' '.join(own)}")
    try:
        if signals_got:
            raise KeyboardInterrupt
        yield
    except (KeyboardInterrupt, SystemExit):
        note_member(error="stopped by a signal")
        raise
    except UserError as error:
        note_member(error=str(error))
        fail(str(error))
    except Exception as error:
        note_member(error=f"{type(error).__name__}: {error}")
        show_traceback()
    else:
        note_member(error="")


def note_member(**entries: Any) -> None:
    """Put entries into the notes of this member, if it is one, for the end of its sweep.

    `runs` are paths of what it works on; `evaluation`, the overrides of `mos evaluate` with which
    they are to be evaluated then; `plan`, hours and gigabytes that a dry run counts.
    """
    if folder := sweep_dir():
        file = folder / "members" / f"{HydraConfig.get().job.num:05}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {**(read_json(file) if file.exists() else {}), **entries})


def take_gpu(number: int) -> None:
    """Leave this process, and those it starts, one of the GPUs that it may use: by turns.

    A process that works on one member after another keeps the GPU of its first.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    there = len(list(DEVICES.glob("nvidia[0-9]*")))
    gpus = visible.split(",") if visible else [str(gpu) for gpu in range(there)]
    if len(gpus) > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]


@contextmanager
def sweep_ended() -> Iterator[None]:
    """Around a command: if it is a sweep, the end of it, also where its launcher gives up.

    A launcher raises when the process of a member was killed; Slurm's other jobs go on. Exits with
    1 if some members have failed.
    """
    given_up = None
    try:
        yield
    except Exception as error:
        if SweepStart.at_work is None:
            raise
        given_up = error
    config, SweepStart.at_work = SweepStart.at_work, None
    if config is None:
        return
    folder = Path(config.hydra.sweep.dir)
    members = [read_json(file) for file in sorted((folder / "members").glob("*.json"))]
    if given_up is not None:
        if not members:
            raise given_up
        say(f"the launcher gave up ({type(given_up).__name__}): {given_up}")
    if not close(members, read_json(folder / SWEEP)["members"], config):
        raise SystemExit(1)


def close(members: list[dict[str, Any]], of: int, config: DictConfig) -> bool:
    """Evaluate what waits for it, show the runs of a sweep and what failed; whether all is well."""
    evaluated = _evaluate(members, config.eval.defer)
    paths = dict.fromkeys(path for member in members for path in member["runs"])
    if config.dry_run:
        plans = [member["plan"] for member in members if member["plan"]]
        hours, size = sum(hours or 0 for hours, _ in plans), sum(size for _, size in plans)
        say(f"about {hours:.2g} h of training and {size:.2g} GB in all")
        say("dry run: nothing was done")
    elif runs := [Run(path) for path in paths if Path(path).is_dir()]:
        from mos.report.pivot import show_sweeps  # imports pandas

        show_runs(runs, reasons=False)
        show_sweeps([run for run in runs if (run.path / "results.json").is_file()])
    failures = [(member, failure) for member in members if (failure := _failure(member))]
    for member, failure in failures:
        say(f"failed: {' '.join(member['overrides'])}: {failure}")
    if failures:
        say(f"{len(failures)} of {of} failed; the same command runs only those again.")
    if left := of - len(members):
        say(f"{left} of {of} did not begin; the same command runs them.")
    return evaluated and not failures and not left


def _evaluate(members: list[dict[str, Any]], by_hand: bool) -> bool:
    """Evaluate the runs that wait for it in one engine, or say how; whether that went well."""
    waiting: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for member in members:
        if member["evaluation"] is not None and Run(member["runs"][0]).status == "trained":
            waiting[tuple(member["evaluation"])] += member["runs"]
    well = True
    for overrides, runs in waiting.items():
        # Quoted one by one: a path may hold what Hydra would read as the end of a list.
        listed = ",".join(override("", run)[1:] for run in dict.fromkeys(runs))
        arguments = [f"runs=[{listed}]", *overrides]
        if by_hand:
            say(f"evaluate them all: python -m mos.evaluate {shlex.join(arguments)}")
            continue
        from mos.training.distributed import evaluate_apart  # imports torch

        try:
            evaluate_apart(arguments)
        except UserError as error:
            fail(str(error))
            well = False
    return well


def _failure(member: dict[str, Any]) -> str:
    """Why a member did not come to its end; "" if it did, or is at work."""
    runs = [Run(path) for path in member["runs"]]
    said = [member["error"]]
    if member["error"] == NO_WORD:
        if any(run.busy for run in runs):
            return ""
        said += [run.state.reason for run in runs]
    if member["error"] and len(runs) == 1:
        said += runs[0].manifest.logs[-2:]
    return "; ".join(filter(None, said))
