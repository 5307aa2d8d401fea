"""The wheel: what is in it, that it works with no checkout in sight, and its command `mos`."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import venv

import pytest
from hatchling.builders.wheel import WheelBuilder

from mos import __main__ as command
from tests.tiny_job import TINY


def test_it_holds_code_configs_and_samples(repo_dir):
    built = {
        file.distribution_path for file in WheelBuilder(str(repo_dir)).recurse_included_files()
    }
    places = {"mos": "mos", "eval": "eval", "configs": "mos/configs", "data/samples": "mos/samples"}
    for source, target in places.items():
        files = [path for path in (repo_dir / source).rglob("*") if path.is_file()]
        expected = {f"{target}/{path.relative_to(repo_dir / source)}" for path in files}
        assert {name for name in expected if "__pycache__" not in name} <= built
    assert {"mos/py.typed", "eval/py.typed", "mos/configs/train.yaml"} <= built


def test_the_command_lists_its_commands_and_names_a_near_miss(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mos", "--help"])
    command.main()
    listed = capsys.readouterr().out
    assert all(f"  {name} " in listed for name in command.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["mos", "trian"])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    assert "Did you mean 'train'" in capsys.readouterr().err


@pytest.mark.slow
def test_it_works_in_an_empty_folder(repo_dir, tmp_path):
    home, folder = tmp_path / "venv", tmp_path / "elsewhere"
    folder.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["XDG_CACHE_HOME"] = str(tmp_path / "cache")

    def run(*arguments) -> str:
        done = subprocess.run(
            arguments, cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    options = ("--no-deps", "--no-build-isolation", "-w", tmp_path)
    run(sys.executable, "-m", "pip", "wheel", *options, repo_dir)
    venv.create(home, with_pip=True)
    run(home / "bin/pip", "install", "--no-deps", *tmp_path.glob("*.whl"))
    (packages,) = home.glob("lib/*/site-packages")
    # The locked packages. Their own .pth files, which lead to the checkout, are not read this way.
    (packages / "locked.pth").write_text("\n".join(site.getsitepackages()))
    python, mos = home / "bin/python", home / "bin/mos"
    assert str(packages) in run(python, "-c", "import mos; print(mos.__file__)")

    run(mos, "train", "+experiment=superni_mmlu", "adapter.r=8", *TINY)
    (results,) = folder.glob("outputs/**/results.json")
    assert json.loads(results.read_text())["train"]["steps"] == 2
    assert (tmp_path / "cache/mos/models").is_dir()
    assert not (folder / "data").exists()

    summarize = (mos, "summarize", "runs=outputs", "out=summary", "partial=true")
    imported = run(python, "-X", "importtime", *summarize)
    assert "MoS" in (folder / "summary/table2.md").read_text()
    assert "mos.report.build\n" in imported
    assert " torch\n" not in imported
