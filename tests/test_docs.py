"""Commands, links and code of README.md and the pages stand as they are printed."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob
from peft import PeftModel, get_peft_model

from mos.__main__ import COMMANDS
from mos.config import CONFIG_DIR, compose_config, validate
from mos.train import train
from tests.adapters.tiny import tiny_llama

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OWN_DATA = (ROOT / "docs" / "own_data.md").read_text("utf-8")
HYDRA = ("train", "evaluate", "summarize", "plan", "export", "inspect")


def commands() -> list[str]:
    """The lines of shell blocks that call mos, and commands in the running text."""
    found = []
    for page in PAGES:
        if page.name.startswith("add_a_"):
            continue  # they have tests of their own
        text = page.read_text("utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
        lines = [line for block in blocks for line in block.splitlines()]
        text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
        lines += re.findall(r"`([^`]*)`", text)
        found += [line for line in lines if re.match(r"mos |python -m mos[.]", line)]
    words = {" ".join(re.sub(r"<([^>]*)>", r"its_\1", line).split()) for line in found}
    return sorted(line for line in words if "..." not in line and "$" not in line)


def first_of_each(arguments: list[str]) -> list[str]:
    """Overrides of the first member of a sweep."""
    chosen = []
    for override in OverridesParser.create().parse_overrides(arguments):
        key, value = override.get_key_element(), override.value()
        if isinstance(value, Glob):
            files = CONFIG_DIR.rglob(f"{key.removeprefix('+')}/*.yaml")
            chosen.append(f"{key}={value.filter(sorted(file.stem for file in files))[0]}")
        elif override.is_sweep_override():
            chosen.append(f"{key}={next(iter(override.sweep_string_iterator()))}")
        else:
            chosen.append(override.input_line)
    return chosen


@pytest.mark.parametrize("line", commands())
def test_a_command_is_one_that_mos_takes(line):
    words = shlex.split(line.replace("python -m mos.", "mos "), comments=True)[1:]
    assert words[0] in {*COMMANDS, "run", "--help", "--version"}
    flags = ("-m", "--help", "--cfg", "job", "--config-dir", ".", "--config-name", "mine")
    if words[0] in HYDRA:
        arguments = [word for word in words[1:] if word not in flags]
        name = words[0] if words[0] != "run" else "train"
        cfg = compose_config(first_of_each(arguments), name)
        if name == "train":
            validate(cfg)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
    missing = [x for x in links if "://" not in x and not (page.parent / x).exists()]
    assert not missing


@pytest.mark.parametrize("page", ["README.md", "docs/peft.md"])
def test_code_runs_as_it_stands(page):
    [block] = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text("utf-8"), re.DOTALL)
    names = {"model": tiny_llama()}
    exec(block, names)
    model = names["model"]
    model = model if isinstance(model, PeftModel) else get_peft_model(model, names["config"])
    widths = [sum(m.weight.shape) for n, m in tiny_llama().named_modules() if n.endswith("proj")]
    assert model.get_nb_trainable_parameters()[0] == 8 * sum(widths)  # as LoRA of rank 8


def test_own_data_from_a_file_of_ten_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shell, _ = re.findall(r"```bash\n(.*?)```", OWN_DATA, re.DOTALL)
    made, _, rest = shell.partition("mos inspect")
    subprocess.run(["bash", "-ec", made], check=True)
    [line] = re.findall(r"^mos train (.*)$", "mos inspect" + rest, re.MULTILINE)
    fast = [
        "model=tiny_random",
        "adapter.r=8",
        "trainer.max_steps=2",
        f"paths.output_dir={tmp_path}",
    ]
    results = train(compose_config([*shlex.split(line), *fast]))
    assert results["metrics"]["heldout"]["n"] == 2
    assert results["train"]["eval_loss"] > 0
