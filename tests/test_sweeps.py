"""Sweeps of the command line, from jobs to the tables that they fill."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from mos.adapters import METHODS
from mos.config import CONFIG_DIR, compose_config, validate
from mos.errors import UserError
from mos.run import Run, open_run
from mos.runs import find_runs
from mos.train import main
from mos.training.sweep import NO_WORD, SweepStart, check_sweep, sweep_ended, take_gpu
from tests.tiny_job import TINY, run_cli


@pytest.fixture
def paths(tmp_path):
    return [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]


@pytest.fixture
def sweep(monkeypatch):
    """The command `mos train -m`, in this process; returns its exit status."""

    def run(*arguments: str) -> object:
        monkeypatch.setattr(sys, "argv", ["mos.train", "-m", *arguments])
        try:
            main()
        except SystemExit as ended:
            return ended.code
        return 0

    yield run
    HydraConfig.instance().cfg = None  # the next test is no member


def test_a_dry_run_lists_each_member_with_its_run(sweep, paths, capsys, tmp_path):
    members = ["+experiment=superni_mmlu", "adapter=lora,mos", "adapter.r=8,1", "seed=0,1"]
    slurm = ["hydra/launcher=slurm", "hydra.launcher.partition=gpu"]  # gets no job
    # The rank of MoS is at least its equivalent rank, 8.
    assert sweep(*members, *slurm, "dry_run=true", *TINY, *paths) == 1
    out = capsys.readouterr().out
    assert "member 8 of 8: adapter=mos adapter.r=1 seed=1" in out
    assert "failed: adapter=mos adapter.r=1 seed=1: " in out
    assert "2 of 8 failed" in out
    assert out.count(" parameters, ") == 6
    assert " h of training and " in out
    for seed in range(2):
        job = ["+experiment=superni_mmlu", "adapter=lora", "adapter.r=8", f"seed={seed}"]
        run = open_run(validate(compose_config([*job, *TINY, *paths])))
        assert f"{run.path}: new" in out
    assert not (tmp_path / "outputs").exists()


def test_members_in_turn_are_evaluated_together_at_the_end(sweep, paths, tmp_path, monkeypatch):
    def fail(arguments: list[str]) -> None:
        asked.append(arguments)
        raise UserError("the engine died")

    asked: list[list[str]] = []
    monkeypatch.setattr("mos.training.distributed.evaluate_apart", fail)
    members = ["+experiment=superni_mmlu", "adapter=none", "seed=0,1", *TINY, *paths]
    assert [sweep(*members), sweep(*members)] == [1, 1]  # what failed is asked for again
    runs = find_runs(tmp_path / "outputs" / "superni_mmlu")
    assert [run.status for run in runs] == ["trained"] * 2
    assert asked[0] == asked[1]
    assert asked[0][0] == f"runs=[{runs[0].path},{runs[1].path}]"
    assert sweep(*members, "eval.defer=true") == 0
    assert len(asked) == 2


def test_a_launcher_that_gives_up_still_leaves_a_table(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "custom" / "lora-1" / "seed0")
    run.path.mkdir(parents=True)
    run.set_status("running", "got SIGTERM; the step at work has no checkpoint yet")
    run.update_manifest(logs=["job.out", "job.err"])
    killed = {"overrides": ["seed=0"], "runs": [str(run.path)], "evaluation": None}
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "00000.json").write_text(json.dumps({**killed, "error": NO_WORD}))
    (tmp_path / "sweep.json").write_text(json.dumps({"members": 3, "swept": ["seed"]}))
    at_work = {"hydra": {"sweep": {"dir": str(tmp_path)}}, "dry_run": False}
    config = OmegaConf.create({**at_work, "eval": {"defer": False}})
    monkeypatch.setattr(SweepStart, "at_work", config)
    with pytest.raises(SystemExit) as ended, sweep_ended():
        raise RuntimeError("a worker process was lost")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "the launcher gave up (RuntimeError): a worker process was lost" in said
    assert re.search(rf"interrupted .*{run.path}", said)
    reason = f"failed: seed=0: {NO_WORD}; {run.state.reason}; job.out; job.err"
    assert reason in said
    assert "1 of 3 failed" in said
    assert "2 of 3 did not begin" in said


def test_launchers_without_what_they_need_are_refused_by_name(monkeypatch):
    with pytest.raises(UserError, match="add -m"):
        check_sweep(["mos", "hydra/launcher=processes"])
    with pytest.raises(UserError, match="srun"):
        check_sweep(["mos", "-m", "hydra/launcher=slurm"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mos-tuning\[joblib\]'"):
        check_sweep(["mos", "--multirun", "hydra/launcher=processes"])
    check_sweep(["mos", "-m", "seed=0,1"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="the processes of one run"):
        check_sweep(["mos", "-m", "seed=0,1"])


@pytest.mark.parametrize(
    ("visible", "files", "expected"),
    [
        (None, ["nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"], ["0", "1", "0"]),
        ("4,GPU-af,6", ["nvidia0"], ["4", "GPU-af", "6"]),
        ("3", ["nvidia0", "nvidia3"], ["3", "3", "3"]),
        (None, ["nvidia0"], [None, None, None]),
    ],
)
def test_processes_have_a_gpu_each_and_keep_it(visible, files, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("mos.training.sweep.DEVICES", tmp_path)
    for name in files:
        (tmp_path / name).touch()
    for number, gpu in enumerate(expected):
        environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
        monkeypatch.setattr(os, "environ", environment)
        take_gpu(number)
        take_gpu(number + 1)  # the next member that this process works on
        assert environment.get("CUDA_VISIBLE_DEVICES") == gpu


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["basic", "processes", "slurm_local"])
def test_a_sweep_goes_on_past_a_failure_and_finishes_the_rest_later(launcher, tmp_path, paths):
    # r=64 does not fit the pools of the tiny model.
    command = ["-m", "+experiment=superni_mmlu", "adapter.r=4,64,8", "eval.defer=true"]
    command += [*TINY, *paths]
    if launcher != "basic":
        command.append(f"hydra/launcher={launcher}")
    first = run_cli(*command)
    assert first.returncode == 1, first.stdout + first.stderr
    assert "1 of 3 failed" in first.stdout
    assert "adapter.r=64" in first.stdout
    assert len(find_runs(str(tmp_path / "outputs" / "superni_mmlu"))) == 2
    if launcher == "basic":
        again = run_cli(*command)
        assert "1 of 3 failed" in again.stdout
        assert "run: " not in again.stdout  # nothing is trained twice


@pytest.mark.slow
def test_optuna_searches_for_the_lowest_held_out_loss(tmp_path, paths):
    pytest.importorskip(
        "hydra_plugins.hydra_optuna_sweeper", reason="NOT TESTED: Optuna, it is not installed"
    )
    search = ["hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1"]
    rate = "trainer.learning_rate=tag(log,interval(1e-5,1e-2))"
    done = run_cli("-m", "+experiment=superni_mmlu", "eval=base", *search, rate, *TINY, *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "member 3 of 3" in done.stdout
    losses = [
        run.results.metrics["heldout"].metrics["loss"]
        for run in find_runs(str(tmp_path / "outputs" / "superni_mmlu"))
    ]
    assert len(losses) == 3
    (best,) = (tmp_path / "outputs" / "sweeps").rglob("optimization_results.yaml")
    assert OmegaConf.load(best).best_value == pytest.approx(min(losses))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_preset_of_table_2_trains_and_fills_its_row(tmp_path, paths):
    presets = sorted(file.stem for file in (CONFIG_DIR / "paper" / "adapter").glob("table2_*.yaml"))
    done = run_cli("-m", "+experiment=superni_mmlu", "adapter=glob(table2_*)", *TINY, *paths)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("engine: starting") == 1
    runs = find_runs(tmp_path / "outputs" / "superni_mmlu")
    assert [run.status for run in runs] == ["evaluated"] * len(presets)
    labels = {run.results.method.label for run in runs}
    assert {"LoRA", "VeRA", "Tied LoRA", "PRoLoRA", "MoS", "MoS -pd", "Vanilla (chat)"} < labels


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_method_trains_in_one_sweep(tiny_model_dir, tmp_path, paths):
    """The adapter files as they are; VB-LoRA's vectors need widths divisible by 64."""
    base = shutil.copytree(tiny_model_dir, tmp_path / "wide")
    config = LlamaConfig.from_pretrained(base, num_key_value_heads=2)
    LlamaForCausalLM(config).bfloat16().save_pretrained(base)
    methods = [*METHODS, "rslora", "dora"]
    trained = run_cli(
        "-m", "+experiment=superni_mmlu", f"adapter={','.join(methods)}", "eval=base",
        "quantization=none", *TINY, f"model.path={base}",
        "model.architecture=null", *paths,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stdout + trained.stderr
    runs = find_runs(str(tmp_path / "outputs" / "superni_mmlu"))
    assert len(runs) == len(methods)
    assert {run.manifest.method.label for run in runs} == {
        "MoS", "LoRA", "rsLoRA", "DoRA", "PRoLoRA", "Tied LoRA", "VeRA", "MiSS", "VB-LoRA",
        "Uni-LoRA", "Lily", "RandLoRA", "LoKr", "HiRA", "Vanilla (chat)", "Full fine-tuning",
    }  # fmt: skip
    for run in runs:
        mos, command, *alone = run.manifest.command
        assert [mos, command] == ["mos", "train"]
        assert open_run(validate(compose_config(alone))).path == run.path
        if run.manifest.method.trainable_parameters:
            train = run.manifest.train
            assert run.complete, run.path
            assert train.steps == 2, run.path
            assert train.eval_loss != train.eval_loss_before, run.path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_sweep_that_is_killed_twice_ends_in_a_table(tmp_path, paths):
    sweep = [
        "-m", "+experiment=superni_mmlu,cot_gsm8k", "adapter=lora,mos", "adapter.r=4", "seed=0,1",
        "eval.defer=true", "trainer.max_steps=6", *TINY[:5], *TINY[6:], *paths,
    ]  # fmt: skip
    outputs = tmp_path / "outputs"
    for finished in (1, 4):
        kill_when(outputs, finished, sweep)
    done = run_cli(*sweep)
    assert done.returncode == 0, done.stdout + done.stderr
    runs = find_runs(f"{outputs}/*/*/*")
    assert [run.status for run in runs] == ["trained"] * 8
    assert {run.manifest.train.steps for run in runs} == {6}
    evaluated = run_cli(f"runs='{outputs}/*/*/*'", paths[1], module="mos.evaluate")
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    summary = tmp_path / "summary"
    table = run_cli(
        f"runs={outputs}", f"out={summary}", "rows=method.label", "partial=true",
        "plots=false", module="mos.summarize",
    )  # fmt: skip
    assert table.returncode == 0, table.stdout + table.stderr
    text = "".join(file.read_text() for file in summary.glob("*.md"))
    assert "LoRA" in text
    assert "MoS" in text


def kill_when(outputs: Path, finished: int, sweep: list[str]) -> None:
    """Start the sweep and kill it, without warning, while it works on what follows `finished`."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "mos.train", *sweep], stdout=subprocess.DEVNULL, env=environment
    )
    deadline = time.monotonic() + 400
    while len(list(outputs.rglob("loss.jsonl"))) <= finished and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert any(run.status == "interrupted" for run in find_runs(f"{outputs}/*/*/*"))
