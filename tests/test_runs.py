"""A run's identity, its state under kills, and its results on disk."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from mos.config import compose_config, validate
from mos.errors import DataError, MissingFileError, UserError
from mos.run import Run, open_run
from mos.runs import find_runs, read_losses, show_runs
from tests.report.synthetic import write_run


def run_for(tmp_path, *overrides: str) -> Run:
    paths = [f"paths.output_dir={tmp_path}/out", f"paths.cache_dir={tmp_path}/cache"]
    config = validate(compose_config(["+experiment=superni_mmlu", *paths, *overrides]))
    return open_run(config)


def test_the_path_tells_experiment_method_and_seed(tmp_path):
    run = run_for(tmp_path, "seed=3")
    experiment, label, seed = run.path.relative_to(tmp_path / "out").parts
    assert (experiment, seed) == ("superni_mmlu", "seed3")
    assert label.startswith("mos-r32-")
    assert len(label.rpartition("-")[2]) == 8


@pytest.mark.parametrize(
    "override",
    [
        "eval.gpu_memory_utilization=0.5",
        "device=cpu",
        "logging=tensorboard",
        "trainer.logging_steps=1",
        "trainer.save_steps=10",
        "eval.batch_size=3",
        "seed=1",
    ],
)
def test_what_does_not_shape_the_result_keeps_the_id(tmp_path, override):
    assert run_for(tmp_path).path.parent == run_for(tmp_path, override).path.parent


@pytest.mark.parametrize(
    ("overrides", "folder"),
    [
        (["scale=paper"], "custom/mos-r32-e18956e7"),
        (
            ["+experiment=study_cot", "scale=study", "adapter=table2_mos_r8"],
            "study_cot/mos-r8-1095a312",
        ),
    ],
)
def test_runs_keep_the_ids_that_earlier_versions_gave_them(overrides, folder):
    config = validate(compose_config([*overrides, "paths.data_dir=/nowhere"]))
    assert open_run(config).path == Path("outputs") / folder / "seed0"


@pytest.mark.parametrize(
    "override",
    [
        "adapter.r=16",
        "trainer.max_steps=3",
        "trainer.learning_rate=1e-4",
        "data.max_seq_length=64",
        "quantization=none",
        "model=tiny_random",
        "eval.limit=5",
        "eval.benchmarks.mmlu.answer_cue=open_instruct",
    ],
)
def test_what_shapes_the_result_changes_the_id(tmp_path, override):
    assert run_for(tmp_path).path.parent != run_for(tmp_path, override).path.parent


def test_data_count_by_content_not_by_place(tmp_path, samples_dir):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(samples_dir, copy)
    here = run_for(tmp_path)
    moved = run_for(tmp_path, f"paths.data_dir={copy}")
    assert here.path == moved.path
    task = next((copy / "natural-instructions" / "tasks").glob("*.json"))
    task.write_text(task.read_text() + " ")
    assert run_for(tmp_path, f"paths.data_dir={copy}").path != here.path


def _hold(path: str, ready) -> None:
    run = Run(path)
    with run.claimed():
        run.set_status("running")
        ready.set()
        time.sleep(60)


def test_a_killed_run_reads_as_interrupted_and_a_live_one_as_running(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold, args=(str(tmp_path / "run"), ready))
    process.start()
    assert ready.wait(120)
    run = Run(tmp_path / "run")
    assert run.status == "running"
    with run.claimed() as ours:
        assert not ours
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert run.status == "interrupted"
    with run.claimed() as ours:
        assert ours


def test_overwriting_keeps_what_was_there(tmp_path):
    run = Run(tmp_path / "run")
    with run.claimed():
        run.set_status("evaluated")
        kept = [run.set_aside()]
        assert json.loads((kept[0] / "status.json").read_text())["status"] == "evaluated"
        assert run.status == "new"
        assert run.set_aside() is None
        run.set_status("failed")
        (run.path / "mine.txt").write_text("mine")
        kept.append(run.set_aside())  # in the same second
        assert (kept[1] / "mine.txt").read_text() == "mine"
        assert [path.name for path in run.path.iterdir()] == [".lock"]
    with pytest.raises(UserError):
        find_runs(tmp_path)


def test_a_run_that_was_set_aside_in_part_is_not_taken_for_a_new_one(tmp_path, monkeypatch):
    run = Run(tmp_path / "run")
    run.path.mkdir()
    for name in ("config.yaml", "checkpoint", "train.log"):
        (run.path / name).write_text(name)
    run.set_status("evaluated")
    rename, moved = Path.rename, []

    def killed(path, target):
        moved.append(path)
        if len(moved) == 3:
            raise KeyboardInterrupt
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            run.set_aside()
    assert run.set_aside() is not None
    assert list(run.path.iterdir()) == []
    aside = [path.name for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(aside) == ["checkpoint", "config.yaml", "status.json", "train.log"]


def test_an_unwritable_output_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match=r"paths\.output_dir"),
        Run(tmp_path / "file" / "r").claimed(),
    ):
        pass


def test_find_runs_at_any_depth_without_those_set_aside(tmp_path):
    for name in ("a/x-1/seed0", "a/x-1/seed1", "b/y-2/seed0", "a/x-1/seed0.old-20260101-000000"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    (tmp_path / "b/y-2/seed0/wandb/files").mkdir(parents=True)
    (tmp_path / "b/y-2/seed0/wandb/files/config.yaml").write_text("{}\n")
    (tmp_path / "b/circle").symlink_to(tmp_path)

    def found(*where: str) -> list[str]:
        return [str(run.path.relative_to(tmp_path)) for run in find_runs(where)]

    assert found(str(tmp_path)) == ["a/x-1/seed0", "a/x-1/seed1", "b/y-2/seed0"]
    assert found(f"{tmp_path}/a/**", f"{tmp_path}/b/y*/**") == found(str(tmp_path))
    assert found(f"{tmp_path}/*/x-1/*") == ["a/x-1/seed0", "a/x-1/seed1"]
    with pytest.raises(MissingFileError, match="no such folder"):
        found(str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(MissingFileError, match="no run folder below"):
        found(str(tmp_path), str(tmp_path / "empty"))


def test_a_run_below_a_name_with_brackets_is_found(tmp_path):
    (tmp_path / "[v1]" / "seed0").mkdir(parents=True)
    (tmp_path / "[v1]" / "seed0" / "config.yaml").write_text("seed: 0\n")
    assert [run.path.name for run in find_runs(tmp_path / "[v1]" / "seed0")] == ["seed0"]


@pytest.mark.parametrize("above", ["exp-seed42", "seed42"])
def test_names_of_folders_above_a_run_say_nothing(tmp_path, above):
    run = tmp_path / above / "custom" / "lora-1" / "seed0"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("seed: 0\n")
    assert [found.path for found in find_runs(tmp_path / above)] == [run]


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_flock_a_lock_file_serves_and_that_is_said(tmp_path, number, monkeypatch, capsys):
    def no_flock(handle, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_flock)
    run, other = Run(tmp_path / "seed0"), Run(tmp_path / "seed0")
    with run.claimed() as ours, other.claimed() as theirs:
        run.set_status("running")
        assert (ours, theirs) == (True, False)
        assert other.status == "running"
    assert "no flock" in capsys.readouterr().out
    assert other.status == "interrupted"
    killed = subprocess.Popen(["true"])
    killed.wait()
    (run.path / ".lock.pid").write_text(f"{killed.pid}\n{socket.gethostname()}\n")
    assert other.status == "interrupted"
    with other.claimed() as ours:
        assert ours


def test_losses_are_read_up_to_a_line_that_a_kill_cut(tmp_path):
    file = tmp_path / "loss.jsonl"
    assert read_losses(file) == []
    file.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo')
    assert read_losses(file) == [{"step": 1, "loss": 2.5}]
    file.write_text('{"step": 1, "lo\n{"step": 2, "loss": 2.0}\n')
    with pytest.raises(DataError, match=r"loss\.jsonl:1"):
        read_losses(file)


def test_the_list_of_runs_tells_them_apart_and_marks_the_best(tmp_path, capsys, monkeypatch):
    """In 80 columns, with paths that every command takes."""
    monkeypatch.setenv("COLUMNS", "80")
    for experiment in ("one", "two"):
        for label, loss in (("MoS", 0.0016), ("LoRA", 0.0021)):
            metrics = {"heldout": {"loss": loss, "n": 4, "lower_is_better": ["loss"]}}
            write_run(tmp_path, label, 8, experiment=experiment, metrics=metrics)
    runs = find_runs(tmp_path)
    show_runs(runs)
    lines = capsys.readouterr().out.splitlines()
    for run in runs:
        (line,) = (line for line in lines if str(run.path) in line)
        best = "mos" in run.path.parent.name
        assert ("loss 0.0016* " if best else "loss 0.0021 ") in line
        assert [found.path for found in find_runs(line.split()[-1])] == [run.path]
