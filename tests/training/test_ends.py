"""Trainings that cannot end well: each says why, and keeps what was good."""

from __future__ import annotations

import json
import resource
import shutil
import signal

import pytest
import torch
import transformers.trainer
from transformers import TrainerCallback

from mos.config import compose_config
from mos.errors import UserError, write_fault
from mos.run import Run
from mos.runs import find_runs
from mos.train import train
from mos.training.checkpoints import newest_valid, step_of
from mos.training.stopping import Diverged, StopOnSignal


@pytest.fixture
def job(tmp_path):
    rows = [{"prompt": f"Say {n}", "completion": f"It is {n}."} for n in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "eval=[base]",
        "model=tiny_random",
        "adapter=lora",
        "adapter.r=8",
        "device=cpu",
        "trainer.optim=adamw_torch",
        "trainer.max_steps=6",
        "trainer.save_steps=1",
        "trainer.logging_steps=1",
        "data=messages",
        "data.eval_size=4",
        f"data.source={tmp_path}/rows.jsonl",
        f"paths.output_dir={tmp_path}/outputs",
        f"paths.cache_dir={tmp_path}/cache",
    ]


def at_step(monkeypatch, step: int, act, when: str = "on_step_begin") -> None:
    """Let `act(model)` happen after `step` optimizer steps, at an event of the trainer."""

    class Actor(TrainerCallback):
        def on_event(self, args, state, control, model=None, **kwargs):
            if state.global_step == step:
                act(model)

    setattr(Actor, when, Actor.on_event)

    callbacks = [*transformers.trainer.DEFAULT_CALLBACKS, Actor]
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", callbacks)


def spoil(model) -> None:
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).fill_(torch.nan)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(
    tmp_path, job, monkeypatch
):
    at_step(monkeypatch, 3, spoil)
    with pytest.raises(Diverged, match=r"step 4: the loss is nan.*trainer\.learning_rate"):
        train(compose_config(job))
    (run,) = find_runs(tmp_path)
    assert run.status == "failed"
    assert "step 4" in run.state.reason
    assert step_of(newest_valid(run.checkpoint_dir)) == 3
    assert not run.adapter_dir.exists()
    assert not run.results
    json.loads((run.path / "loss.jsonl").read_text().splitlines()[-1], parse_constant=pytest.fail)


def test_weights_that_the_last_step_spoilt_are_not_saved(tmp_path, job, monkeypatch):
    at_step(monkeypatch, 6, spoil, when="on_step_end")
    with pytest.raises(Diverged, match="step 6: the largest of"):
        train(compose_config([*job, "data.eval_size=0"]))
    (run,) = find_runs(tmp_path)
    assert step_of(newest_valid(run.checkpoint_dir)) == 5
    assert not run.adapter_dir.exists()


def test_a_folder_that_is_removed_meanwhile_is_one_message(tmp_path, job, monkeypatch):
    at_step(monkeypatch, 2, lambda model: shutil.rmtree(tmp_path / "outputs"))
    with pytest.raises(UserError, match="removed while"):
        train(compose_config(job))


def test_a_full_disk_is_one_message_and_the_checkpoint_before_is_kept(tmp_path, job, monkeypatch):
    """A limit on the size of files makes the same errors as a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    small = (60_000, before[1])
    at_step(monkeypatch, 3, lambda _: resource.setrlimit(resource.RLIMIT_FSIZE, small))
    try:
        with pytest.raises(UserError, match=r"cannot be written \(File too large\)"):
            train(compose_config([*job, "trainer.save_total_limit=1"]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    (run,) = find_runs(tmp_path)
    assert "File too large" in run.state.reason
    assert step_of(newest_valid(run.checkpoint_dir)) == 3
    with pytest.raises(RuntimeError) as full:
        torch.save({"state": torch.zeros(100_000)}, "/dev/full")
    assert write_fault(full.value)


def test_without_held_out_rows_nothing_is_measured(tmp_path, job):
    train(compose_config([*job, "data.eval_size=0"]))
    (run,) = find_runs(tmp_path)
    assert run.status == "trained"
    assert run.manifest.train.eval_loss is None
    assert not (run.path / "eval").exists()


def test_the_same_signal_twice_ends_a_training_at_once(tmp_path):
    with (
        pytest.raises(KeyboardInterrupt, match="at once by SIGTERM"),
        StopOnSignal(Run(tmp_path)).listening(),
    ):
        any(map(signal.raise_signal, [signal.SIGTERM] * 2))


def test_a_launcher_that_does_not_requeue_its_job_any_more_says_so(tmp_path):
    def refuse(number, frame):
        raise RuntimeError("not requeued: timed-out too many times")

    before = signal.signal(signal.SIGUSR2, refuse)
    with (
        pytest.raises(UserError, match=r"SIGUSR2; .*too many times"),
        StopOnSignal(Run(tmp_path)).listening(),
    ):
        signal.raise_signal(signal.SIGUSR2)
    assert signal.signal(signal.SIGUSR2, before) is refuse
