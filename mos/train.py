"""Train one adapter and evaluate it: `python -m mos.train +experiment=superni_mmlu`.

    compose -> validate -> model -> adapter -> data -> Trainer -> evaluate -> results

The run folder says how far a run is (mos/runs.py); the same command continues it from there.
"""

from __future__ import annotations

import gc
import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from mos.__main__ import command
from mos.config import TrainConfig, typed, validate
from mos.console import (
    console,
    is_main_process,
    launched_processes,
    logged_to,
    override,
    quiet_libraries,
    say,
    working,
)
from mos.errors import UserError, check, write_fault
from mos.evaluation.subjects import CALLERS
from mos.files import CONFIG_DIR, hash_json
from mos.preflight import check_card, check_shapes, choose_device, missing
from mos.run import Run, code_identity, command_of_job, finished_run, log_files, open_run
from mos.runs import results_table
from mos.training.sweep import as_member, in_sweep, in_turn, note_member, sweep_dir

USAGE = """usage: mos train +experiment=NAME [key=value ...]
       mos train data=messages data.source=FILE eval=base [key=value ...]
       mos train -m +experiment=NAME KEY=VALUE,VALUE ...       a sweep

dry_run=true shows what it will take; mos train --help lists the keys."""


def train(cfg: DictConfig) -> dict[str, Any] | None:
    """Run the job that a composed config describes, or what is left of it.

    Args:
        cfg: configs/train.yaml composed with overrides, e.g. by `mos.config.compose_config`.

    Returns:
        The content of results.json; None for a dry run, a run that another process has, or one
        whose evaluation is deferred.

    Raises:
        UserError: a wrong config, missing data or weights, a device that is not there.
    """
    run = run_job(cfg)
    return run.results.content() if run and run.complete and run.results else None


def run_job(cfg: DictConfig) -> Run | None:
    """As `train`; the run, if this process has come to the end of it."""
    config = typed(cfg, TrainConfig)
    if not in_sweep() or HydraConfig.get().job.num == 0:
        say(f"scale={config.scale.name}: {config.scale.note}")
    if not (config.overwrite or config.dry_run) and (run := finished_run(config)):
        note_member(runs=[str(run.path)])
        run.check_own()
        return report(run)
    with nullcontext() if "torch" in sys.modules else working("importing torch and PEFT"):
        config = validate(cfg)

    if (in_sweep() or not config.dry_run) and (problems := missing(config)):
        raise UserError("\n".join(problems))

    run = open_run(config)
    note_member(runs=[str(run.path)])
    if not config.overwrite:
        run.check_own()
    if config.dry_run and not in_sweep():
        print_plan(config, run)
        return None
    if config.overwrite or config.dry_run or not run.complete:
        parameters = check_shapes(config)
    if config.dry_run:
        print_member(config, run, parameters)
        return None
    if config.overwrite or not run.trained:
        check_card(config)

    with run.claimed() if is_main_process() else nullcontext(False) as ours:
        if ours and config.overwrite and (kept := run.set_aside()):
            say(f"the earlier run is kept at {kept}")
        unfinished = ours and not run.complete
        wanted = unfinished and not run.trained
        with outcome_recorded(run) if unfinished else nullcontext():
            train_adapter(config, run, wanted)
            if unfinished:
                if not wanted and run.results is None:
                    run.write_results()  # they were damaged, and are made again
                evaluate(config, run)
        if ours:
            return report(run)
    if is_main_process():
        say(f"{run.path} is at work in another process: skipped")
    return None


def report(run: Run) -> Run:
    """Say what a run has come to."""
    state = run.state
    if (results := run.results) and not in_sweep():
        console.print(results_table(results))
    if run.complete:
        by = f"made by {made_by}, another code; " if (made_by := run.made_by) else ""
        say(f"complete: {run.path / 'results.json'} ({by}overwrite=true starts anew)")
    else:
        reason = f" ({state.reason})" if state.reason and not in_sweep() else ""
        say(f"{state.status}: {run.path}{reason}")
    return run


def train_adapter(config: TrainConfig, run: Run, wanted: bool) -> None:
    """Train what is left to train, if the first process wants it. All of a launcher call this once.

    On a GPU, and among several processes, that is done in a process of its own: this one evaluates,
    or starts the next member of a sweep, and must not hold memory of the GPU then.
    """
    # Torch and its companions take seconds to import, which a finished run need not wait for.
    from mos.training.distributed import in_own_process
    from mos.training.fit import record_bare

    bare, alone = config.adapter.method == "none", launched_processes() == 1
    if not wanted and (bare or alone):
        return
    if wanted:
        quiet_libraries()
        run.set_status("running")
        run.write_config(config)
        logs = dict.fromkeys([*run.manifest.logs, *log_files()])
        code = code_identity(config.adapter.method)
        run.update_manifest(run=run.id, code=code, command=command_of_job(), logs=[*logs])
        say(f"run: {run.path} (its whole config is in config.yaml)")
    sweep = sweep_dir()
    group = sweep.name if sweep else None
    if bare:
        record_bare(config, run)
    elif alone and choose_device(config) == "cpu":
        _train(config, run, wanted, group)
    else:
        in_own_process(_train_here, config.dump(), run.path, wanted, group)
    if wanted:
        run.set_status("trained")
        gc.collect()


def _train_here(values: dict[str, Any], folder: Path, wanted: bool, group: str | None) -> None:
    with logged_to(folder / "train.log") if is_main_process() else nullcontext():
        _train(check(values, TrainConfig), Run(folder), wanted, group)


def _train(config: TrainConfig, run: Run, wanted: bool, group: str | None) -> None:
    from mos.training.distributed import agreed
    from mos.training.fit import fit, tracked

    quiet_libraries()
    if agreed(wanted, choose_device(config)):
        with tracked(config, run, group):
            fit(config, run)


def evaluate(config: TrainConfig, run: Run) -> None:
    """Evaluate a run; where others come after it, leave that to the one engine for all of them."""
    if not config.eval.benchmarks:
        return
    overrides = [
        override("paths.cache_dir", config.paths.cache_dir),
        override("paths.data_dir", config.paths.data_dir),
        *(f"eval.{key}={str(getattr(config.eval, key)).lower()}" for key in CALLERS),
    ]
    for name, options in config.eval.benchmarks.items():
        if Path(options.data_dir) != Path(config.paths.data_dir, name):
            overrides.append(override(f"+eval.benchmarks.{name}.data_dir", options.data_dir))
    arguments = [override("runs", run.path), *overrides]
    if config.eval.defer or in_turn():
        by_hand = shlex.join(["python", "-m", "mos.evaluate", *arguments])
        run.set_status("trained", f"to be evaluated: {by_hand}")
        note_member(evaluation=overrides)
        return
    from mos.training.distributed import evaluate_apart

    evaluate_apart(arguments)


@contextmanager
def outcome_recorded(run: Run) -> Iterator[None]:
    """Write train.log, and status.json where the body ends otherwise than by its end.

    Raises:
        UserError: in place of what says that a file cannot be written (a full disk, a folder that
            is gone).
    """
    with logged_to(run.path / "train.log"):
        try:
            yield
        except (KeyboardInterrupt, SystemExit) as stop:  # the latter of a launcher that requeues
            reason = str(stop) if isinstance(stop, KeyboardInterrupt) else run.state.reason
            reason = reason or "stopped by a signal"
            run.set_status("interrupted", reason)
            kept = f"interrupted: {run.path} is kept ({reason}); the same command continues it"
            if isinstance(stop, KeyboardInterrupt):
                raise KeyboardInterrupt(kept) from stop
            say(kept)
            raise
        except BaseException as error:
            known = isinstance(error, UserError)
            with suppress(OSError):
                reason = str(error) if known else f"{type(error).__name__}: {error}"
                run.set_status("failed", reason)
            fault = error.strerror if isinstance(error, OSError) else write_fault(error)
            if known or not fault:
                raise
            place = getattr(error, "filename", None) or run.path
            raise UserError(
                f"{place} cannot be written ({fault}); the same command goes on."
            ) from error


def print_plan(config: TrainConfig, run: Run) -> None:
    """What a dry run shows: the run's folder and state, costs, what is missing."""
    from mos.plan import plan, plan_table

    with working(f"counting {config.adapter.method} on {config.model.name}"):
        table = plan_table([plan(config)])
    console.print(table)
    say(f"run: {run.path} ({run.status})")
    for problem in missing(config):
        say(f"missing: {problem}")
    say("dry run: nothing was done (--cfg job in its place prints the whole config)")


def print_member(config: TrainConfig, run: Run, parameters: int | None) -> None:
    """What a dry run shows of a member of a sweep.

    Members of one base and batch take about the time of the first of them: the base's products are
    nearly all, and simulating a step takes seconds.
    """
    from mos.plan import plan

    hours, gigabytes = 0.0, 0.0
    if parameters:
        batch = [getattr(config.trainer, name, None) for name in BATCH]
        key = hash_json([config.model.dump(), config.quantization.dump(), config.device, *batch])
        if key not in _plans:
            _plans[key] = plan(config)
        of_first = _plans[key]
        hours = (of_first["seconds"] or math.nan) / 3600
        own = of_first["disk"]["adapter"] + of_first["disk"]["checkpoints"]
        gigabytes = own * parameters / of_first["trainable_parameters"] / 1e9
    counted = "unknown shapes" if parameters is None else f"{parameters:,} parameters"
    note_member(plan=[None if math.isnan(hours) else hours, gigabytes])
    say(f"  {counted}, {hours:.2g} h, {gigabytes:.2g} GB; {run.path}: {run.status}")


# What the time of a training depends on beside its model.
BATCH = ("per_device_train_batch_size", "gradient_accumulation_steps", "max_steps")
_plans: dict[str, dict[str, Any]] = {}


@command("train")
def main(cfg: DictConfig) -> float:
    """Train; returns the held-out loss, which Optuna minimises, infinite where there is none."""
    loss = None
    with as_member():
        if (run := run_job(cfg)) and (trained := run.manifest.train):
            loss = trained.eval_loss
    return math.inf if loss is None else loss


if __name__ == "__main__":
    if len(sys.argv) == 1:
        known = ", ".join(sorted(file.stem for file in (CONFIG_DIR / "experiment").glob("*.yaml")))
        print(f"{USAGE}\n\nexperiments: {known}")
        sys.exit(2)
    # Launchers pickle `main` with what it refers to, which in __main__ would go by value.
    from mos.train import main as importable_main

    importable_main()
