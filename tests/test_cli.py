"""What every command line says: `--help`, and one message for each mistake."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from subprocess import PIPE

import pytest
from hydra.core.global_hydra import GlobalHydra

import mos.evaluate
import mos.export
import mos.inspect
import mos.plan
import mos.summarize
import mos.train

REPO = Path(__file__).parents[1]
COMMANDS = {
    "train": mos.train,
    "evaluate": mos.evaluate,
    "summarize": mos.summarize,
    "plan": mos.plan,
    "export": mos.export,
    "inspect": mos.inspect,
}


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command; returns its exit status, output and errors."""

    def run(command: str, *arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [f"mos.{command}", *arguments])
        GlobalHydra.instance().clear()
        code = 0
        try:
            COMMANDS[command].main()
        except SystemExit as stopped:
            code = stopped.code
        return code, *capsys.readouterr()

    return run


@pytest.mark.parametrize(
    ("command", "documented"),
    [
        ("train", "# Peak learning rate; the paper chose it at LoRA r=8.\n  learning_rate: 0.0002"),
        ("evaluate", "# Put prompts into the chat format.\n  chat: own"),
        ("summarize", "runs: outputs"),
        ("plan", "# table or json.\nformat: table"),
        ("export", "adapter/ of a run.\nadapter: ???"),
        ("inspect", "examples: 2"),
    ],
)
def test_help_shows_the_keys_with_their_comments(run, command, documented):
    code, out, err = run(command, "--help", *["trainer=paper"] * (command == "train"))
    assert code == 0, err
    assert documented in out
    assert out.startswith(f"python -m mos.{command}: ")


def test_help_is_of_what_is_chosen(run):
    _, out, _ = run("train", "--help", "adapter=table2_tied_lora_r280")
    assert "# Rank of the shared update.\n  r: 280" in out
    assert "model: custom, llama2_13b" in out


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("train", ["trainer.max_stps=3"], "'trainer.max_stps'. Did you mean 'max_steps'?"),
        ("train", ["adaptr=lora"], "'adaptr'. Did you mean 'adapter'?"),
        ("train", ["adapter=lroa"], "adapter: 'lroa'. Did you mean 'lora'?"),
        ("train", ["eval=[base,mmul]"], "eval: 'mmul'. Did you mean 'mmlu'?"),
        ("train", ["+experimnt=superni_mmlu"], "'experimnt'. Did you mean 'experiment'?"),
        ("train", ["adapter=mos,lora"], "a sweep: -m adapter=mos,lora"),
        ("train", ["data=[superni,cot]"], "one data a run, or a sweep: -m data=superni,cot"),
        ("train", ["+experiment=[superni_mmlu,cot_gsm8k]"], "one experiment a run"),
        ("train", ["logging=[wandb,tensorboard]"], "logging.report_to=[wandb,tensorboard]"),
        ("train", ["eval=mmlu"], "eval=[base,mmlu]"),
        ("evaluate", ["runs=[]"], "runs=[] selects nothing"),
        ("evaluate", ["runs="], "runs= selects nothing"),
        ("evaluate", ["benchmarks=[]"], "benchmarks=[] selects nothing"),
        ("summarize", ["runs=[]"], "selects nothing"),
        ("train", ["data.source=my (1).jsonl"], "If the value is meant as it stands"),
        ("train", ["--max_steps", "4"], "'--max_steps': expected key=value (max_steps=4,"),
        ("train", ["trainer.max_steps", "=", "4"], "without spaces around '='"),
        ("train", ["trainer.max_steps=", "4"], "without spaces around '='"),
        ("train", ["superni_mmlu"], "(+experiment=superni_mmlu?)"),
        ("train", ["-m", "adapter=lora,mos", "lora"], "(adapter=lora?)"),
        ("summarize", ["outputs/sweep"], "(runs=outputs/sweep?)"),
        ("evaluate", ["adapter=data/samples"], "mos.evaluate adapters=[data/samples]"),
        ("evaluate", ["eval.engine=vlllm"], "Did you mean 'vllm'"),
        ("summarize", ["runs=/nowhere"], "/nowhere"),
        ("inspect", ["what=date"], "Did you mean 'data'"),
        ("train", ["data=messages", "eval=base"], "data.source has no value: give a file"),
        ("train", ["data.source=[a,b]", "data.weights=[1]"], "one for each of data.source"),
        ("train", ["data.source=[a,b]", "data.weights=[1,0]"], "data.weights.1=0: expected"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(run, command, arguments, message):
    code, out, err = run(command, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err


def test_a_file_of_ones_own_is_a_run(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.jsonl").write_text('{"prompt": "p", "completion": "c"}\n' * 2)
    Path("mine.yaml").write_text(
        "defaults: [train, override model: tiny_random, override data: messages,"
        " override eval: base, override adapter: lora, _self_]\n"
        "data: {source: mine.jsonl, eval_size: 1}\nadapter: {r: 4}\nexperiment: mine\n"
    )
    Path("bare.yaml").write_text("data: {source: mine.jsonl}\n")
    own = ["--config-dir", ".", "--config-name"]
    code, out, err = run("train", *own, "mine", "dry_run=true", "device=cpu")
    assert (code, "LoRA r=4, tiny-random" in out) == (0, True), err
    assert "run: outputs/mine/lora-r4-" in out
    code, out, err = run("train", *own, "mine", "--help")
    assert (code, "# auto takes a GPU where there is one" in out) == (0, True), err
    quiet = ["hydra/hydra_logging=none", "hydra/job_logging=none"]  # for the tests that follow
    code, _, err = run("train", *own, "bare", *quiet)
    assert code == 2
    assert "begins with `defaults: [train, _self_]`" in err


@pytest.mark.parametrize("empty", ["+experiment=glob(nothing*)", "seed=range(0)"])
def test_a_sweep_of_nothing_is_refused(run, empty, tmp_path):
    code, _, err = run("train", "-m", empty, f"paths.output_dir={tmp_path}")
    assert code == 2
    assert "no members" in err
    assert "\n" not in err.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [(["train"], 2, "usage: mos train"), (["--version"], 0, "mos 0."), ([], 0, "usage: mos")],
)
def test_what_is_said_without_a_job(arguments, code, words, tmp_path):
    command = [sys.executable, "-m", "mos", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, text=True, stdout=PIPE)
    assert (done.returncode, list(tmp_path.iterdir())) == (code, [])
    assert words in done.stdout


def test_broken_yaml_is_one_message(run, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "own.yaml").write_text("method: lora\n r: [1\n")
    code, _, err = run("train", f"hydra.searchpath=[file://{tmp_path}]", "adapter=own")
    assert code == 2
    assert "own.yaml:2: no YAML" in err
