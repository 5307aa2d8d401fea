"""Sweeps whose members are jobs of a scheduler, with processes of this machine in its place."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from mos.run import Run
from mos.runs import find_runs, read_losses

REPO = Path(__file__).parents[1]
SLURM = "hydra/launcher=slurm_local"
JOB = [
    "-m",
    "eval=base",
    "model=tiny_random",
    "adapter=lora",
    "device=cpu",
    "trainer.optim=adamw_torch",
    "data=messages",
    "data.eval_size=4",
]


@pytest.fixture
def start(tmp_path):
    """Start a sweep of small jobs, in `tmp_path`; it is ended with the test."""
    rows = [{"prompt": f"Count to {n}.", "completion": "." * n} for n in range(1, 41)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = [f"data.source={tmp_path}/rows.jsonl", f"paths.cache_dir={tmp_path}/cache"]
    started = []

    def begin(*overrides: str, python_path: str = "") -> subprocess.Popen:
        environment = {**os.environ, "PYTHONPATH": f"{REPO}:{python_path}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "mos.train", *JOB, *paths, *overrides]
        command.append(f"paths.output_dir={tmp_path}/outputs")
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # jobs outlive the launcher


def wait_for(sweep: subprocess.Popen, condition: Callable[[], object]) -> None:
    while not condition():
        assert sweep.poll() is None, sweep.communicate()
        time.sleep(0.05)


def steps_of(run: Run) -> int:
    return len(read_losses(run.path / "loss.jsonl"))


def pid(run: Run) -> int:
    return json.loads((run.path / "status.json").read_text())["pid"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_preempted_member_is_requeued_and_goes_on_one_without_grace_says_so(tmp_path, start):
    steps = "trainer.gradient_accumulation_steps=1,1000000"  # the second never ends
    lengths = ["trainer.max_steps=100", "trainer.save_steps=100", "trainer.logging_steps=1"]
    sweep = start(SLURM, steps, *lengths)

    def members() -> list[Run]:
        configs = (tmp_path / "outputs").glob("custom/*/*/config.yaml")
        runs = [Run(config.parent) for config in configs]
        return sorted(runs, key=lambda run: run.config.trainer.gradient_accumulation_steps)

    wait_for(sweep, lambda: len(members()) == 2 and all(map(steps_of, members())))
    short, endless = members()
    os.kill(pid(endless), signal.SIGTERM)
    wait_for(sweep, lambda: "SIGTERM" in endless.state.reason)
    os.kill(pid(endless), signal.SIGKILL)
    wait_for(sweep, lambda: steps_of(short) > 4)
    preempted = pid(short)
    for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm sends both
        os.kill(preempted, number)
    output, _ = sweep.communicate()

    assert short.status == "trained"
    assert short.manifest.train.steps == 100
    log = (short.path / "train.log").read_text()
    (kept,) = re.findall(r"interrupted: .*stopped by SIG\w+; step (\d+) of 100 is kept", log)
    assert f"continuing from checkpoint-{kept}" in log
    printed, errors = short.manifest.logs
    assert "Requeued job" in Path(printed).read_text()
    assert "this job is preempted" in Path(errors).read_text()
    assert (endless.state.status, endless.state.reason) == (
        "interrupted",
        "got SIGTERM; the step at work has no checkpoint yet",
    )
    assert sweep.returncode == 1
    assert "1 of 2 failed; the same command" in output
    assert f"its process ended without a word ({endless.state.reason})" in output
    assert endless.manifest.logs[1] in output


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_an_array_of_200_eight_at_once_trains_every_member_once(tmp_path, start):
    light = str(REPO / "tests" / "light_members")
    eight = "hydra.sweeper.max_batch_size=8"
    array = start(SLURM, "seed=range(200)", eight, python_path=light)
    again = start(SLURM, "seed=range(16)", eight, python_path=light)  # given twice, by mistake
    output, _ = array.communicate()
    again.communicate()
    assert (array.returncode, again.returncode) == (0, 0), output
    runs = find_runs(tmp_path / "outputs" / "custom")
    assert len(runs) == 200
    assert {run.status for run in runs} == {"trained"}
    assert {len((run.path / "trainings").read_text().split()) for run in runs} == {1}
    logs = [Path(run.manifest.logs[0]) for run in runs]
    for run, log in zip(runs, logs, strict=True):
        assert str(run.path) in log.read_text()
    assert len(set(logs)) == 200


@pytest.fixture
def ray_cluster() -> list[str]:
    """A cluster of this machine alone, which starts and ends with the command."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("NOT TESTED: Ray, it is not installed (pip install ray hydra-ray-launcher)")
    return [
        "hydra/launcher=cluster",
        "+hydra.launcher.ray.init.num_cpus=2",
        "+hydra.launcher.ray.init.include_dashboard=false",
        "hydra.launcher.ray.remote.num_cpus=1",
        "hydra.launcher.ray.remote.num_gpus=0",
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_member_lost_to_the_cluster_goes_on_and_the_sweep_ends_in_a_table(
    tmp_path, start, ray_cluster
):
    lengths = ["trainer.max_steps=60", "trainer.save_steps=5", "trainer.logging_steps=5"]
    sweep = start(*ray_cluster, "seed=0,1", *lengths)

    def members() -> list[Run]:
        configs = (tmp_path / "outputs").glob("custom/*/*/config.yaml")
        return [Run(config.parent) for config in sorted(configs)]

    wait_for(sweep, lambda: members() and steps_of(members()[0]) > 2)
    os.kill(pid(members()[0]), signal.SIGKILL)
    output, _ = sweep.communicate()

    assert sweep.returncode == 0, output
    runs = members()
    assert [(run.status, run.manifest.train.steps) for run in runs] == [("trained", 60)] * 2
    assert "continuing from checkpoint-" in (runs[0].path / "train.log").read_text()
    assert Path(runs[0].manifest.logs[0]).is_file()
    lines = output.splitlines()
    assert any("member 1 of 2: seed=0" in line for line in lines)
    table = [line for line in lines if line.strip().startswith("lora-")]
    assert ["trained" in line for line in table] == [True, True]
    assert len(lines) < 120, output  # nobody prints a config
