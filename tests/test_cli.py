"""What every command line says: `--help`, and one message for each mistake."""

from __future__ import annotations

import sys

import pytest
from hydra.core.global_hydra import GlobalHydra

import mos.evaluate
import mos.export
import mos.inspect
import mos.plan
import mos.summarize
import mos.train

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
        ("train", ["adapter=mos,lora"], "add -m"),
        ("train", ["data.source=my (1).jsonl"], "If the value is meant as it stands"),
        ("evaluate", ["adapter=data/samples"], "mos.evaluate adapters=[data/samples]"),
        ("evaluate", ["eval.engine=vlllm"], "Did you mean 'vllm'"),
        ("summarize", ["runs=/nowhere"], "/nowhere"),
        ("inspect", ["what=date"], "Did you mean 'data'"),
    ],
)
def test_a_mistake_is_one_message_and_exit_status_2(run, command, arguments, message):
    code, out, err = run(command, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert "Traceback" not in out + err


def test_broken_yaml_is_one_message(run, tmp_path):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "own.yaml").write_text("method: lora\n r: [1\n")
    code, _, err = run("train", f"hydra.searchpath=[file://{tmp_path}]", "adapter=own")
    assert code == 2
    assert "own.yaml:2: no YAML" in err
