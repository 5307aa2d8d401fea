"""A run that was killed and continued is, to the bit, the run that was never killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import transformers.trainer
from transformers import TrainerCallback

from mos.config import compose_config
from mos.run import Run
from mos.runs import find_runs, read_losses
from mos.train import train
from mos.training import fit
from mos.training.checkpoints import newest_valid

# 32 training examples in batches of 4: an epoch has 8 steps, so 12 steps cross into the second.
JOB = [
    "eval=[base]",
    "model=tiny_random",
    "adapter.r=8",
    "device=cpu",
    "trainer.max_steps=12",
    "trainer.save_steps=3",
    "trainer.eval_steps=6",
    "trainer.logging_steps=1",
    "trainer.optim=adamw_torch",
    "data=messages",
    "data.eval_size=8",
]


def job(folder: Path, cache: Path, *overrides: str) -> list[str]:
    data = cache / "rows.jsonl"
    return [
        *JOB,
        f"data.source={data}",
        f"paths.output_dir={folder}",
        f"paths.cache_dir={cache}",
        *overrides,
    ]


def finish(overrides: list[str]) -> Run:
    train(compose_config(overrides))
    output = next(o for o in overrides if o.startswith("paths.output_dir=")).partition("=")[2]
    (run,) = find_runs(output)
    assert run.status == "trained"
    return run


def kill(where: str, step: int, overrides: list[str]) -> Run:
    script = Path(__file__).with_name("killed_run.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, str(script), where, str(step), *overrides],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    output = next(o for o in overrides if o.startswith("paths.output_dir=")).partition("=")[2]
    (run,) = find_runs(output)
    assert run.status == "interrupted"
    assert not run.results
    return run


def what_was_learnt(run: Run) -> tuple[bytes, list[dict]]:
    lines = [json.loads(line) for line in (run.path / "loss.jsonl").read_text().splitlines()]
    for line in lines:
        del line["seconds"]
    return (run.adapter_dir / "adapter_model.safetensors").read_bytes(), lines


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    rows = [{"prompt": f"Count to {n}.", "completion": " ".join("." * n)} for n in range(1, 41)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    return finish(job(tmp_path_factory.mktemp("whole"), cache))


def check(where: str, step: int, tmp_path: Path, cache: Path, whole: Run, *overrides) -> Run:
    overrides = job(tmp_path, cache, *overrides)
    kill(where, step, overrides)
    continued = finish(overrides)
    weights, losses = what_was_learnt(whole)
    continued_weights, continued_losses = what_was_learnt(continued)
    assert continued_losses == losses
    assert continued_weights == weights
    assert continued.manifest.train.examples == whole.manifest.train.examples == 48
    return continued


def test_killed_between_checkpoints_in_the_second_epoch(tmp_path, cache, whole):
    check("after_step", 11, tmp_path, cache, whole)


def stop_at(monkeypatch, step: int, overrides: list[str], *numbers: int) -> Run:
    """Train until signals (SIGTERM) that come within an optimizer step."""

    class Signal(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == step - 1:
                for number in numbers or [signal.SIGTERM]:
                    os.kill(os.getpid(), number)

    with monkeypatch.context() as patch:
        callbacks = [*transformers.trainer.DEFAULT_CALLBACKS, Signal]
        patch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", callbacks)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            train(compose_config(overrides))
    (run,) = find_runs(next(o for o in overrides if "output_dir" in o).partition("=")[2])
    return run


@pytest.mark.parametrize("requeues", [False, True])
def test_a_signal_leaves_a_checkpoint_of_the_step_at_work(
    requeues, tmp_path, cache, whole, monkeypatch
):
    overrides = job(tmp_path, cache)
    if requeues:  # Slurm sends both, and a launcher requeues its job at the second
        requeued = []
        signal.signal(signal.SIGUSR2, lambda *_: sys.exit(requeued.append(144)))
        run = stop_at(monkeypatch, 5, overrides, signal.SIGTERM, signal.SIGUSR2)
        signal.signal(signal.SIGUSR2, signal.SIG_DFL)
        assert requeued == [144]
    else:
        run = stop_at(monkeypatch, 5, overrides)
    assert (run.state.status, run.state.reason) == (
        "interrupted",
        "stopped by SIGTERM; step 5 of 12 is kept",
    )
    assert newest_valid(run.checkpoint_dir).name == "checkpoint-5"
    assert what_was_learnt(finish(overrides)) == what_was_learnt(whole)


def test_early_stopping_keeps_the_best_weights_also_over_a_restart(tmp_path, cache, monkeypatch):
    # A loss that falls counts as worse here: the first evaluation is the best.
    early = [
        "+trainer.load_best_model_at_end=true", "+trainer.early_stopping_patience=2",
        "+trainer.greater_is_better=true", "trainer.eval_steps=2", "trainer.save_steps=2",
    ]  # fmt: skip
    whole = finish(job(tmp_path / "whole", cache, *early))
    assert whole.manifest.train.steps == 6
    best = whole.checkpoint_dir / "checkpoint-2" / "adapter_model.safetensors"
    assert what_was_learnt(whole)[0] == best.read_bytes()
    measured = json.loads((whole.path / "eval" / "heldout" / "metrics.json").read_text())
    logged = [line for line in read_losses(whole.path / "loss.jsonl") if "eval_loss" in line]
    assert [line["step"] for line in logged] == [0, 2, 4, 6]
    assert measured["step"] == 2
    assert measured["metrics"]["loss"] == logged[1]["eval_loss"]

    overrides = job(tmp_path / "stopped", cache, *early)
    stop_at(monkeypatch, 5, overrides)
    assert what_was_learnt(finish(overrides)) == what_was_learnt(whole)

    monkeypatch.setattr(fit, "save_adapter", lambda *args: 1 / 0)  # at the end, before the adapter
    overrides = job(tmp_path / "failed", cache, *early)
    with pytest.raises(ZeroDivisionError):
        train(compose_config(overrides))
    monkeypatch.undo()
    assert what_was_learnt(finish(overrides)) == what_was_learnt(whole)


def test_an_adapter_that_is_written_again_keeps_what_a_user_put_there(tmp_path, cache, monkeypatch):
    overrides = job(tmp_path, cache, "trainer.max_steps=3", "trainer.eval_steps=3")
    monkeypatch.setattr(fit, "record", lambda *args, **kwargs: 1 / 0)  # the adapter is written
    with pytest.raises(ZeroDivisionError):
        train(compose_config(overrides))
    monkeypatch.undo()
    (run,) = find_runs(tmp_path)
    (run.adapter_dir / "mine.txt").write_text("mine")
    finish(overrides)
    assert not (run.adapter_dir / "mine.txt").exists()
    (kept,) = run.path.glob("adapter.old-*/mine.txt")
    assert kept.read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "step"),
    [
        ("after_step", 1),
        ("after_step", 8),
        ("after_step", 9),
        ("during_save", 6),
        ("before_seal", 12),
        ("before_adapter", 0),
    ],
)
def test_killed_anywhere(where, step, tmp_path, cache, whole):
    run = check(where, step, tmp_path, cache, whole)
    log = (run.path / "train.log").read_text()
    if where in ("during_save", "before_seal"):
        assert f"checkpoint-{step} is not used: it was not finished" in log


@pytest.mark.slow
@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit", "adamw_torch"])
def test_other_optimizers_get_their_state_back(optim, tmp_path, cache):
    whole = finish(job(tmp_path / "whole", cache, f"trainer.optim={optim}"))
    check("after_step", 7, tmp_path / "killed", cache, whole, f"trainer.optim={optim}")


def test_a_complete_training_is_not_repeated(cache, whole):
    before = what_was_learnt(whole)
    stamp = whole.adapter_dir.stat().st_mtime_ns
    finish(job(whole.path.parents[2], cache))
    assert whole.adapter_dir.stat().st_mtime_ns == stamp
    assert what_was_learnt(whole) == before


@pytest.mark.slow
def test_gradient_accumulation_resumes_too(tmp_path, cache):
    extra = ["trainer.gradient_accumulation_steps=3", "trainer.max_steps=6"]
    whole = finish(job(tmp_path / "whole", cache, *extra))
    overrides = job(tmp_path / "killed", cache, *extra)
    kill("after_step", 5, overrides)
    assert what_was_learnt(finish(overrides)) == what_was_learnt(whole)
