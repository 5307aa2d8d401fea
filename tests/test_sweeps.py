"""Sweeps of the command line, from jobs to the tables that they fill."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from mos.config import CONFIG_DIR, compose_config, validate
from mos.console import Labelled
from mos.errors import UserError
from mos.identity import open_run
from mos.list_runs import show_runs
from mos.methods import METHODS
from mos.run import Run
from mos.runs import find_runs
from mos.train import main
from mos.training.members import progress, take_gpu
from mos.training.sweep import SweepSummary, check_plugins, closed_in_any_case
from tests.tiny_job import TINY, run_cli


@pytest.fixture
def paths(tmp_path):
    return [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]


def test_a_dry_run_lists_each_member_with_its_run(monkeypatch, paths, capsys, tmp_path):
    sweep = ["-m", "+experiment=superni_mmlu", "adapter=lora,mos", "adapter.r=8,64", "seed=0,1,2"]
    monkeypatch.setattr(sys, "argv", ["mos.train", *sweep, "dry_run=true", *TINY, *paths])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1  # mos with r=64 does not fit the pools of the tiny model
    out = capsys.readouterr().out
    assert "12 members: 9 new, 3 cannot run" in out
    assert out.count("picks 252 different public shards") == 1
    for seed in range(3):
        job = ["+experiment=superni_mmlu", "adapter=lora", "adapter.r=8", f"seed={seed}"]
        run = open_run(validate(compose_config([*job, *TINY, *paths])))
        assert run.path.parent.name in out
    assert not (tmp_path / "outputs" / "superni_mmlu").exists()


def test_how_far_a_sweep_is_and_about_how_long_it_takes(tmp_path):
    def member(number: int, **entry) -> None:
        file = tmp_path / "members" / f"{number:05}.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(entry))

    now = time.time()
    (tmp_path / "sweep.json").write_text(json.dumps({"members": 10, "started": now - 120}))
    assert progress(tmp_path) == "0 of 10 done, 0 running, 10 left"
    member(0, outcome="trained", seconds=60.0)
    member(1, outcome="evaluated", seconds=0.1)  # it was complete before
    member(2, outcome="failed", seconds=60.0)
    member(3, outcome="running")
    # One after another, a minute each: six and, of the one at work, half.
    assert progress(tmp_path) == "3 of 10 done, 1 running, 6 left, about 0:06:30 to go"
    (tmp_path / "sweep.json").write_text(json.dumps({"members": 10, "started": now - 60}))
    assert progress(tmp_path).endswith("about 0:03:15 to go")  # two at once


def test_a_launcher_that_gives_up_still_leaves_a_table(tmp_path, monkeypatch, capsys):
    run = Run(tmp_path / "custom" / "lora-1" / "seed0")
    run.path.mkdir(parents=True)
    run.set_status("running", "got SIGTERM; the step at work has no checkpoint yet")
    run.update_manifest(logs=["job.out", "job.err"])
    killed = {"overrides": ["seed=0"], "outcome": "running", "run": str(run.path), "scores": {}}
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "00000.json").write_text(json.dumps({**killed, "reason": ""}))
    (tmp_path / "sweep.json").write_text(json.dumps({"members": 3, "started": 0}))
    config = OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}, "paths": {}})
    monkeypatch.setattr(SweepSummary, "at_work", config)
    with pytest.raises(SystemExit) as ended, closed_in_any_case():
        raise RuntimeError("a worker process was lost")
    assert ended.value.code == 1
    said = capsys.readouterr().out
    assert "the launcher gave up (RuntimeError): a worker process was lost" in said
    assert "│ seed=0 │ failed" in said
    assert f"without a word ({run.state.reason}); job.out; job.err" in said
    assert "2 of 3 did not begin" in said
    show_runs([run])
    assert f"lora-1/seed0: {run.state.reason}; job.out; job.err" in capsys.readouterr().out


def test_launchers_without_what_they_need_are_refused_by_name(monkeypatch):
    with pytest.raises(UserError, match="add -m"):
        check_plugins(["mos", "hydra/launcher=processes"])
    with pytest.raises(UserError, match="srun"):
        check_plugins(["mos", "-m", "hydra/launcher=slurm"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'mos-tuning\[joblib\]'"):
        check_plugins(["mos", "--multirun", "hydra/launcher=processes"])
    check_plugins(["mos", "-m", "seed=0,1"])


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
    monkeypatch.setattr("mos.training.members.DEVICES", tmp_path)
    for name in files:
        (tmp_path / name).touch()
    for number, gpu in enumerate(expected):
        environment = {"CUDA_VISIBLE_DEVICES": visible} if visible else {}
        monkeypatch.setattr(os, "environ", environment)
        take_gpu(number)
        take_gpu(number + 1)  # the next member that this process works on
        assert environment.get("CUDA_VISIBLE_DEVICES") == gpu


def test_lines_of_members_at_once_begin_with_their_number():
    stream = io.StringIO()
    Console(file=Labelled(stream, "[3] ")).print("one\ntwo")
    assert stream.getvalue() == "[3] one\n[3] two\n"


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
        assert again.stdout.count("trained") >= 2


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
    presets = sorted(file.stem for file in (CONFIG_DIR / "adapter").glob("table2_*.yaml"))
    trained = run_cli(
        "-m", "+experiment=superni_mmlu", "adapter=glob(table2_*)", "eval.defer=true", *TINY, *paths
    )
    assert trained.returncode == 0, trained.stdout + trained.stderr
    outputs = tmp_path / "outputs"
    evaluated = run_cli(f"runs='{outputs}/superni_mmlu/**'", paths[1], module="mos.evaluate")
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    assert evaluated.stdout.count("engine: starting") == 1
    runs = find_runs(str(outputs / "superni_mmlu"))
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
        "MoS", "LoRA", "rsLoRA", "DoRA", "PRoLoRA", "Tied LoRA", "VeRA", "MiSS", "RaSA", "VB-LoRA",
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
        f"runs={outputs}", f"out={summary}", "rows=method.label", "select.partial=true",
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
