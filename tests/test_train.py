"""The command line from end to end on a tiny model, and what it says to bad input."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from huggingface_hub import ModelCard
from transformers import AutoTokenizer

from mos import runs
from mos.config import compose_config
from mos.data.chat import render_chat
from mos.errors import UserError
from mos.evaluation import chat
from mos.export import merge, to_lora
from mos.models.loading import load_base
from mos.models.sources import resolve_model
from mos.run import Run
from mos.runs import find_runs
from mos.train import train
from mos.training.distributed import evaluate_apart
from tests import tiny_job
from tests.tiny_job import run_cli

TINY = ["+experiment=superni_mmlu", "adapter.r=8", *tiny_job.TINY, "data.test_size=6"]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    folder = tmp_path_factory.mktemp("train")
    return [f"paths.output_dir={folder}/outputs", f"paths.cache_dir={folder}/cache"]


@pytest.fixture(scope="module")
def results(paths):
    return train(compose_config([*TINY, *paths]))


def test_a_run_ends_in_results_of_schema_1(results, paths):
    (run,) = find_runs(paths[0].partition("=")[2])
    assert run.status == "evaluated"
    assert run.results.content() == results
    assert results["schema"] == 1
    assert (results["experiment"], results["scale"]) == ("superni_mmlu", "local")
    assert results["method"]["label"] == "MoS"
    assert results["method"]["rank"] == 8
    assert results["method"]["trainable_parameters"] == 65_536
    file = run.adapter_dir / "adapter_model.safetensors"
    assert results["method"]["adapter_bytes"] == file.stat().st_size
    assert results["train"]["steps"] == 2
    assert set(results["metrics"]) == {"heldout", "mmlu", "tydiqa"}
    held_out = json.loads((run.path / "eval" / "heldout" / "metrics.json").read_text())
    assert (held_out["n"], held_out["step"]) == (6, 2)
    assert results["metrics"]["heldout"]["loss"] != results["train"]["eval_loss"]
    assert results["train"]["eval_loss_before"] > results["train"]["eval_loss"]
    assert results["metrics"]["mmlu"]["n"] == 4
    assert "4" in results["metrics"]["mmlu"]["partial"]
    assert {"f1", "exact_match"} <= set(results["metrics"]["tydiqa"])
    card = ModelCard.load(run.adapter_dir / "README.md")  # written again after the evaluation
    scores = {(score.dataset_name, score.metric_type) for score in card.data.eval_results}
    assert {name for name, _ in scores} == set(results["metrics"])
    assert {("tydiqa", "f1"), ("heldout", "loss")} <= scores
    assert "Framework versions" not in card.text  # PEFT's own card, a form to fill in
    for name in ("config.yaml", "manifest.json", "train.log", "loss.jsonl"):
        assert (run.path / name).is_file()
    records = (run.path / "eval" / "mmlu" / "records.jsonl").read_text().splitlines()
    assert len(records) == 4
    assert {"id", "prompt_sha256", "output", "parsed", "target", "scores"} <= set(
        json.loads(records[0])
    )


@pytest.fixture
def run(results, paths) -> Run:
    (run,) = find_runs(paths[0].partition("=")[2])
    return run


def test_a_copied_run_is_refused_and_one_of_other_code_is_named(run, paths, capsys, monkeypatch):
    job = [*TINY, *paths]
    copy = run.path.with_name("seed7")
    shutil.copytree(run.path, copy)
    try:
        for status in ("evaluated", "interrupted"):
            Run(copy).set_status(status)
            with pytest.raises(UserError, match=f"seed7 holds the run {run.id}, copied"):
                train(compose_config([*job, "seed=7"]))
    finally:
        shutil.rmtree(copy)
    train(compose_config(job))
    assert "made by" not in capsys.readouterr().out
    monkeypatch.setattr("mos.run.code_identity", lambda method: "changed")
    train(compose_config(job))
    assert "(made by mos 0." in capsys.readouterr().out


def command(module, monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["mos", *map(str, arguments)])
    module.main()


def test_runs_lists_states_scores_and_reasons(run, tmp_path, monkeypatch, capsys):
    failed = Run(tmp_path / "lora-r2-0" / "seed0")
    failed.path.mkdir(parents=True)
    failed.set_status("failed", "the disk was full")
    (tmp_path / "broken" / "seed1").mkdir(parents=True)
    (tmp_path / "broken" / "seed1" / "status.json").write_text("[")
    command(runs, monkeypatch, run.path, tmp_path)
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if line.rstrip().endswith(str(run.path))]
    assert "evaluated" in line
    assert "heldout loss" in out
    assert "lora-r2-0/seed0: the disk was full" in out
    assert "broken/seed1" in out


def test_one_run_and_its_records_are_shown(run, monkeypatch, capsys):
    command(runs, monkeypatch, run.path)
    out = capsys.readouterr().out
    assert "evaluated" in out
    assert all(f" {metric} " in out for metric in ("f1", "exact_match", "loss"))
    command(runs, monkeypatch, run.path, "mmlu", "n=1")
    out = capsys.readouterr().out
    assert all(word in out for word in ("prompt", "<|user|>", "output", "parsed", "target"))
    command(runs, monkeypatch, run.path, "mmlu", "wrong", "n=9")
    assert capsys.readouterr().out.count("exact_match 0") <= 4
    with pytest.raises(SystemExit):
        command(runs, monkeypatch, run.path, "mmul")
    assert "Did you mean 'mmlu'" in capsys.readouterr().err


def test_chat_answers_in_the_terminal_greedily(run, monkeypatch, capsys):
    said = []
    for place, penalty in ((run.path, 1.0), (run.adapter_dir, 50.0)):

        def load(*given, penalty=penalty):
            model = load_base(*given)
            model.generation_config.repetition_penalty = penalty  # as some bases come with
            return model

        monkeypatch.setattr("mos.models.loading.load_base", load)
        monkeypatch.setattr(sys, "stdin", io.StringIO("Hello\n\nHello\n"))
        with pytest.raises(EOFError):
            chat.converse(place, max_tokens=12)
        said.append(capsys.readouterr().out.partition("you:")[2])
        assert said[-1].count("you:") == 3
    assert said[0] == said[1]


def test_an_adapter_s_files_are_in_order_and_for_those_who_may_read_its_folder(run):
    """So that equal runs have equal files, and a colleague can load them."""
    named = json.loads((run.adapter_dir / "adapter_config.json").read_text())["target_modules"]
    assert named == sorted(named)
    usual = run.adapter_dir.stat().st_mode & 0o666
    assert {file.stat().st_mode & 0o777 for file in run.adapter_dir.iterdir()} == {usual}


def test_adapter_exports_and_merged_models_speak_the_format_of_training(run, paths, tmp_path):
    base = resolve_model("random:tiny", paths[1].partition("=")[2])
    exported = to_lora(run.adapter_dir, tmp_path / "lora")
    merged = merge(base, run.adapter_dir, tmp_path / "merged")
    messages = [
        {"role": "system", "content": " s "},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": " a "},
        {"role": "user", "content": "r"},
    ]
    for folder in (run.adapter_dir, exported, merged):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert text == "<s>" + render_chat(messages)


def test_asking_again_does_nothing_and_says_so(results, paths, capsys):
    assert train(compose_config([*TINY, *paths])) == results
    assert "complete:" in capsys.readouterr().out


def test_a_finished_sweep_is_told_without_torch(results, paths, tmp_path, monkeypatch):
    (tmp_path / "torch.py").write_text("raise RuntimeError('it takes seconds')")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    done = run_cli("-m", "seed=0", *TINY, *paths)
    assert done.returncode == 0, done.stderr
    assert "complete:" in done.stdout


def test_a_dry_run_of_the_paper_needs_neither_gpu_nor_weights(paths, capsys):
    assert (
        train(compose_config(["+experiment=superni_mmlu", "scale=paper", "dry_run=true"])) is None
    )
    out = capsys.readouterr().out
    assert "19,988,480" in out
    assert "dry run" in out


def test_the_paper_scale_without_gpu_stops_at_once(paths):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match="asks for a GPU"):
        train(compose_config(["+experiment=superni_mmlu", "scale=paper", *paths]))


def test_epochs_are_steps_once_the_data_is_known(tmp_path, paths):
    job = [*TINY, paths[1], f"paths.output_dir={tmp_path}", "data.max_rows=24", "eval=base"]
    train(compose_config([*job, "trainer.max_steps=-1", "trainer.num_train_epochs=2"]))
    (run,) = find_runs(str(tmp_path))
    # 10 examples beside the 14 that are held out: 3 batches of 4 an epoch.
    assert run.manifest.train.steps == 6
    assert run.manifest.train.examples == 20


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.max_stps=3"], ["max_stps"]),
        (["adapter=mosaic"], ["mosaic", "mos"]),
        (["model=custom", "model.path=/nonexistent"], ["/nonexistent", "not a model"]),
    ],
)
def test_bad_input_gets_one_message_and_a_nonzero_exit(overrides, words, paths):
    keys = {o.partition("=")[0] for o in overrides}
    kept = [o for o in [*TINY, *paths] if o.partition("=")[0] not in keys]
    done = run_cli(*kept, *overrides)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("paths.data_dir=/nowhere", "/nowhere"),
        ("paths.output_dir=/proc/outputs", r"paths\.output_dir=/proc/outputs cannot be written"),
        ("paths.cache_dir=/proc/cache", r"paths\.cache_dir=/proc/cache cannot be written"),
        ("data.eval_size=60", "no row is left"),
        ("adapter.target_modules=[]", r"adapter\.target_modules=\[\]: name layers"),
        ("+trainer.fp16=true", r"fp16=true needs a GPU"),
    ],
)
def test_what_cannot_be_used_is_named_before_there_is_a_run(override, message, paths):
    with pytest.raises(UserError, match=message):
        train(compose_config([*TINY, *paths, "seed=1", override]))


def test_a_broken_line_of_data_is_named(tmp_path, paths):
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a", \n')
    job = [*TINY, *paths, "data=messages", f"data.source={data}"]
    with pytest.raises(UserError, match=r"rows\.jsonl:2"):
        train(compose_config(job))
    (run,) = [r for r in find_runs(paths[0].partition("=")[2]) if r.status == "failed"]
    assert "rows.jsonl:2" in run.state.reason
    assert not run.results


def test_an_engine_that_cannot_be_had_is_named_before_the_training(tmp_path, paths, monkeypatch):
    monkeypatch.setattr("eval.engines.vllm_package", lambda: None)
    output = tmp_path / "outputs"
    job = [*TINY, paths[1], f"paths.output_dir={output}", "eval.engine=vllm"]
    with pytest.raises(UserError, match=r"eval\.engine=vllm: vLLM is not installed"):
        train(compose_config(job))
    assert not [*output.rglob("loss.jsonl"), *output.rglob("adapter")]


def test_an_interrupted_run_says_how_to_go_on(tmp_path, paths):
    output = tmp_path / "outputs"
    job = [*TINY, paths[1], f"paths.output_dir={output}", "trainer.max_steps=100000"]
    process = subprocess.Popen(
        [sys.executable, "-m", "mos.train", *job],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline = time.monotonic() + 200
    while not list(output.rglob("loss.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    try:
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130, out
    assert "the same command continues it" in out
    (run,) = find_runs(str(output))
    assert run.status == "interrupted"
    assert not run.results


def test_a_signal_ends_the_evaluation_s_process_too(tmp_path, monkeypatch):
    child, pid = tmp_path / "python", tmp_path / "pid"
    child.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 300\n")
    child.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(child))

    def interrupt(*_):
        if pid.exists():
            raise KeyboardInterrupt
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        interrupt()
        with pytest.raises(KeyboardInterrupt):
            evaluate_apart([f"runs={tmp_path}"])
    finally:
        signal.signal(signal.SIGALRM, before)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
