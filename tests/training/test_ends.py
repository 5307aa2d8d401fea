"""Trainings that cannot end well: each says why, and keeps what was good."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers.trainer
from accelerate.state import AcceleratorState
from transformers import TrainerCallback

from mos.config import compose_config, validate
from mos.errors import DataError, UserError, write_fault
from mos.run import Run
from mos.runs import find_runs
from mos.train import train
from mos.training.checkpoints import newest_valid, step_of
from mos.training.trainer import Diverged, StopOnSignal, training_arguments


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
    def twice_and_again() -> None:
        any(map(signal.raise_signal, [signal.SIGTERM] * 2))  # one, by way of another process
        time.sleep(1.1)
        signal.raise_signal(signal.SIGTERM)

    with (
        pytest.raises(KeyboardInterrupt, match="at once by SIGTERM"),
        StopOnSignal(Run(tmp_path)).listening(),
    ):
        twice_and_again()


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


@pytest.fixture
def apart(monkeypatch):
    """As on a GPU, the training has a process of its own, which trains on the CPU here."""
    monkeypatch.setattr("mos.train.choose_device", lambda config: "cuda")


def when_it_trains(folder: Path, act: Callable[[int], object]) -> None:
    """Call `act` with the process that trains a run in `folder`, once it does."""

    def wait() -> None:
        while not list(folder.rglob("loss.jsonl")):
            time.sleep(0.05)
        (child,) = multiprocessing.active_children()
        act(child.pid)

    threading.Thread(target=wait, daemon=True).start()


def test_a_training_in_its_own_process_leaves_what_one_in_this_leaves(tmp_path, job, apart, capfd):
    assert train(compose_config([*job, "trainer.max_steps=2"]))["train"]["steps"] == 2
    (run,) = find_runs(tmp_path)
    assert run.status == "trained"
    manifest = run.manifest
    assert all([manifest.command, manifest.versions, manifest.data, manifest.method])
    said = "trainable parameters, on cpu"
    assert said in (run.path / "train.log").read_text()
    assert said in capfd.readouterr().out


def test_an_error_in_the_training_s_process_keeps_its_words(tmp_path, job, apart):
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    with pytest.raises(DataError, match=r"rows\.jsonl:2") as raised:
        train(compose_config(job))
    assert raised.value.line == 2
    (run,) = find_runs(tmp_path)
    assert (run.state.status, run.state.reason) == ("failed", str(raised.value))


def test_a_signal_reaches_the_training_s_process_and_the_launcher(tmp_path, job, apart):
    def as_slurm(child: int) -> None:
        for process in (os.getpid(), child):
            os.kill(process, signal.SIGUSR2)

    requeued = []
    before = signal.signal(signal.SIGUSR2, lambda number, frame: requeued.append(number))
    when_it_trains(tmp_path, as_slurm)
    try:
        with pytest.raises(KeyboardInterrupt, match="stopped by SIGUSR2; step"):
            train(compose_config([*job, "trainer.max_steps=9999", "trainer.save_steps=9999"]))
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert requeued == [signal.SIGUSR2]
    (run,) = find_runs(tmp_path)
    assert run.status == "interrupted"
    step = step_of(newest_valid(run.checkpoint_dir))
    assert run.state.reason == f"stopped by SIGUSR2; step {step} of 9999 is kept"


def test_a_training_s_process_that_is_killed_is_one_message(tmp_path, job, apart):
    when_it_trains(tmp_path, lambda child: os.kill(child, signal.SIGKILL))
    with pytest.raises(UserError, match=r"killed by SIGKILL.*same command continues"):
        train(compose_config([*job, "trainer.max_steps=9999", "trainer.save_steps=9999"]))
    (run,) = find_runs(tmp_path)
    assert run.status == "failed"
    assert "SIGKILL" in run.state.reason


@pytest.mark.slow
def test_a_training_s_process_does_not_outlive_its_parent(tmp_path):
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, sys, time\n"
        "from mos.training.distributed import in_own_process\n"
        "def work(file):\n"
        "    open(file, 'w').write(str(os.getpid()))\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    in_own_process(work, sys.argv[1])\n"
    )
    file = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, str(script), str(file)])
    while not (file.exists() and file.read_text()):
        time.sleep(0.1)
    parent.kill()
    parent.wait()
    while Path("/proc", file.read_text()).exists():
        time.sleep(0.1)


@pytest.fixture
def four_gpus(monkeypatch):
    """torch as on a machine with four GPUs; whatever would touch one of them fails."""

    def touched(*_: object) -> None:
        pytest.fail("a process that only evaluates has touched the GPU")

    monkeypatch.setattr("mos.preflight.gpu_driver_is_there", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr("eval.engines.vllm.free_memory", lambda _: (39 << 30, 40 << 30))
    for name in ("_lazy_init", "mem_get_info", "set_device"):
        monkeypatch.setattr(torch.cuda, name, touched)


def test_the_process_that_evaluates_touches_no_gpu(tmp_path, job, four_gpus, monkeypatch):
    trained = []
    monkeypatch.setattr("mos.training.distributed.in_own_process", lambda *a: trained.append(a))
    train(compose_config([*job, "device=cuda"]))
    assert len(trained) == 1
    assert not torch.cuda.is_initialized()


def test_one_process_trains_on_one_gpu_and_says_so(tmp_path, job, four_gpus, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    config = validate(compose_config([*job, "trainer.bf16=false", "trainer.tf32=false"]))
    try:
        arguments = training_arguments(config, Run(tmp_path), "cuda")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    assert arguments.train_batch_size == config.trainer.per_device_train_batch_size
    assert arguments.n_gpu == 1
    assert "4 GPUs are visible" in capsys.readouterr().out
