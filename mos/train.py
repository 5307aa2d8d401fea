"""Train one adapter and evaluate it: `python -m mos.train +experiment=superni_mmlu`.

    compose -> validate -> model -> adapter -> data -> Trainer -> evaluate -> results

The run folder says how far a run is (mos/runs.py); the same command continues it from there.
"""

from __future__ import annotations

import gc
import math
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mos.cli import command
from mos.config import TrainConfig, validate
from mos.console import (
    INTERRUPTED,
    Labelled,
    config_tree,
    console,
    exit_on_user_error,
    is_main_process,
    logged_to,
    override,
    quiet_libraries,
    say,
)
from mos.environment import log_files
from mos.errors import UserError, write_fault
from mos.identity import finished_run, open_run
from mos.preflight import check_shapes, choose_device, missing
from mos.run import Run
from mos.runs import results_table
from mos.training.members import (
    end_member,
    fail_member,
    in_sweep,
    note_run,
    start_member,
    sweep_dir,
)
from mos.training.sweep import check_plugins
from mos.training.tracking import tracked

# Settings that an evaluation takes from who starts it, not from the run.
OF_THIS_MACHINE = ("sandbox", "tensor_parallel")


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
    config = validate(cfg)
    say(f"scale={config.scale.name}: {config.scale.note}")
    if not (config.overwrite or config.dry_run) and (run := finished_run(config)):
        return report(run)

    if not config.dry_run and (problems := missing(config)):
        raise UserError("\n".join(problems))

    # Torch and its companions take seconds to import, which a finished run need not wait for.
    from mos.training.distributed import agreed
    from mos.training.fit import fit

    run = open_run(config)
    note_run(run)
    if config.dry_run:
        print_plan(config, run)
        return None
    if config.overwrite or not run.complete:
        check_shapes(config)

    device = choose_device(config)
    if not is_main_process():
        if agreed(False, device):
            fit(config, run)
        return None
    with run.claimed() as ours:
        if ours and config.overwrite and (kept := run.set_aside()):
            say(f"the earlier run is kept at {kept}")
        if ours and not run.complete:
            with outcome_recorded(run):
                if agreed(not run.trained, device):
                    train_adapter(config, run)
                elif run.results is None:  # it was damaged, and is made again
                    run.write_results()
                evaluate_apart(config, run)
        else:
            agreed(False, device)
        if not ours:
            say(f"{run.path} is at work in another process: skipped")
            end_member("at work elsewhere", run)
            return None
        return report(run)


def report(run: Run) -> dict[str, Any] | None:
    """Show what a run has come to; returns its results if they are complete."""
    state, results, complete = run.state, run.results, run.complete
    if results and not in_sweep():  # whose table at the end has the scores of all members
        console.print(results_table(results))
    if complete:
        say(f"complete: {run.path / 'results.json'} (overwrite=true starts anew)")
    elif not in_sweep():
        say(f"{state.status}: {run.path}" + (f" ({state.reason})" if state.reason else ""))
    end_member(state.status, run, state.reason)
    return results.content() if results and complete else None


def train_adapter(config: TrainConfig, run: Run) -> None:
    """Train what is left to train, under the trackers that the config names."""
    from mos.training.fit import fit

    quiet_libraries()
    run.set_status("running")
    run.write_config(config)
    run.update_manifest(logs=[*dict.fromkeys([*run.manifest.logs, *log_files()])])
    say(f"run: {run.path} (its whole config is in config.yaml)")
    sweep = sweep_dir()
    with tracked(config, run, group=sweep.name if sweep else None):
        fit(config, run)
    run.set_status("trained")
    gc.collect()


def evaluate_apart(config: TrainConfig, run: Run) -> None:
    """Evaluate in a process of its own: vLLM takes all of the memory, and may die with it."""
    from mos.training.distributed import plain_environment

    if not config.eval.benchmarks:
        return
    overrides = [
        override("runs", run.path),
        override("paths.cache_dir", config.paths.cache_dir),
        override("paths.data_dir", config.paths.data_dir),
        f"eval.allow_code_execution={str(config.eval.allow_code_execution).lower()}",
        *(f"eval.{key}={getattr(config.eval, key)}" for key in OF_THIS_MACHINE),
    ]
    for name, options in config.eval.benchmarks.items():
        if Path(options.data_dir) != Path(config.paths.data_dir, name):
            overrides.append(override(f"+eval.benchmarks.{name}.data_dir", options.data_dir))
    if config.eval.defer:
        by_hand = shlex.join(["python", "-m", "mos.evaluate", *overrides])
        run.set_status("trained", f"to be evaluated: {by_hand}")
        return
    command = [sys.executable, "-m", "mos.evaluate", *overrides]
    # Where lines are labelled, the evaluation's pass through here to get their label.
    output = subprocess.PIPE if isinstance(console.file, Labelled) else None
    with subprocess.Popen(
        command, env=plain_environment(), stdout=output, stderr=output and subprocess.STDOUT
    ) as evaluation:
        try:
            for line in evaluation.stdout or ():
                console.out(line.decode(errors="replace").rstrip("\n"), highlight=False)
            code = evaluation.wait()
        except BaseException:
            evaluation.terminate()
            evaluation.wait()  # it keeps what it has, and ends its engine
            raise
    if code == INTERRUPTED:
        raise KeyboardInterrupt("the evaluation was stopped by a signal")
    if code:
        raise UserError(
            f"the evaluation stopped (exit status {code}); the trained adapter is kept in"
            f" {run.adapter_dir}. The same command continues from there."
        )


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
    from mos.plan import plan
    from mos.plan_tables import plan_table
    from mos.preflight import missing

    console.print(config_tree(config.dump(), "config"))
    console.print(plan_table(plan(config)))
    say(f"run: {run.path} ({run.status})")
    for problem in missing(config):
        say(f"missing: {problem}")
    say("dry run: nothing was done")


@command("train")
def main(cfg: DictConfig) -> float:
    """Train; in a sweep, note what became of this member and let the others go on.

    Returns:
        The evaluation loss, which sweepers such as Optuna minimise; infinite where there is none.
    """
    start_member()
    try:
        trained = (train(cfg) or {}).get("train") or {}
        return math.inf if trained.get("eval_loss") is None else trained["eval_loss"]
    except (KeyboardInterrupt, SystemExit):
        end_member("interrupted")
        raise
    except Exception as error:
        fail_member(error)
    return math.inf


if __name__ == "__main__":
    with exit_on_user_error():
        check_plugins(sys.argv)
    # Launchers pickle `main` with what it refers to, which in __main__ would go by value.
    from mos.train import main as importable_main

    importable_main()
