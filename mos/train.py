"""Train one adapter and evaluate it: `python -m mos.train +experiment=superni_mmlu`.

    compose -> validate -> model -> adapter -> data -> Trainer -> evaluate -> results

The run folder says how far a run is (mos/runs.py); the same command continues it from there.
"""

from __future__ import annotations

import gc
import math
import shlex
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mos.cli import command
from mos.config import TrainConfig, validate
from mos.console import (
    config_tree,
    console,
    is_main_process,
    launched_processes,
    logged_to,
    override,
    quiet_libraries,
    say,
)
from mos.environment import command_of_job, log_files
from mos.errors import UserError, write_fault
from mos.evaluation.subjects import CALLERS
from mos.identity import finished_run, open_run
from mos.preflight import check_card, check_shapes, choose_device, missing
from mos.run import Run
from mos.runs import results_table
from mos.schema import check
from mos.training.sweep import as_member, in_sweep, in_turn, note_member, sweep_dir
from mos.training.tracking import tracked


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
    config = validate(cfg)
    say(f"scale={config.scale.name}: {config.scale.note}")
    if not (config.overwrite or config.dry_run) and (run := finished_run(config)):
        return report(run)

    if (in_sweep() or not config.dry_run) and (problems := missing(config)):
        raise UserError("\n".join(problems))

    run = open_run(config)
    note_member(runs=[str(run.path)])
    if config.dry_run and not in_sweep():
        print_plan(config, run)
        return None
    if config.overwrite or not run.complete:
        check_shapes(config)
    if config.dry_run:
        say(f"{run.path}: {run.status}")
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
        say(f"complete: {run.path / 'results.json'} (overwrite=true starts anew)")
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
        run.update_manifest(command=command_of_job(), logs=[*logs])
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
    from mos.training.fit import fit

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
            say(f"interrupted: {run.path} is kept ({reason}); the same command continues it")
            raise
        except BaseException as error:
            known = isinstance(error, UserError)
            reason = str(error) if known else f"{type(error).__name__}: {error}"
            with suppress(OSError):
                run.set_status("failed", reason)
            fault = error.strerror if isinstance(error, OSError) else write_fault(error)
            if fault and not known:
                raise UserError(
                    f"{getattr(error, 'filename', None) or run.path} cannot be written ({fault})."
                    " What was finished is kept; the same command continues from there."
                ) from error
            raise


def print_plan(config: TrainConfig, run: Run) -> None:
    """What a dry run shows: the config, the run's folder and state, costs, what is missing."""
    from mos.plan import plan, plan_table

    console.print(config_tree(config.dump(), "config"))
    console.print(plan_table([plan(config)]))
    say(f"run: {run.path} ({run.status})")
    for problem in missing(config):
        say(f"missing: {problem}")
    say("dry run: nothing was done")


@command("train")
def main(cfg: DictConfig) -> float:
    """Train.

    Returns:
        The held-out loss, which sweepers such as Optuna minimise; infinite where there is none.
    """
    loss = None
    with as_member():
        if (run := run_job(cfg)) and (trained := run.manifest.train):
            loss = trained.eval_loss
    return math.inf if loss is None else loss


if __name__ == "__main__":
    # Launchers pickle `main` with what it refers to, which in __main__ would go by value.
    from mos.train import main as importable_main

    importable_main()
