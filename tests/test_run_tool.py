"""`mos run -- TOOL ...`: other tools' command lines know the methods."""

from __future__ import annotations

import sys

import pytest

from mos import __main__ as command

SCRIPT = """
import sys
import peft
import beside
assert peft.PeftType.MOS in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING
print(__name__, sys.argv[1:], beside.here)
"""


@pytest.fixture
def mos_run(monkeypatch):
    def run(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["mos", "run", *arguments])
        monkeypatch.setattr(sys, "path", list(sys.path))
        command.main()

    return run


def test_a_script_gets_its_arguments_and_its_folder(mos_run, tmp_path, capsys):
    (tmp_path / "tool.py").write_text(SCRIPT)
    (tmp_path / "beside.py").write_text("here = True")
    mos_run("--", str(tmp_path / "tool.py"), "--flag", "--", "x=1")
    assert capsys.readouterr().out == "__main__ ['--flag', '--', 'x=1'] True\n"


def test_an_installed_command_and_a_module(mos_run, capsys):
    with pytest.raises(SystemExit) as stopped:
        mos_run("--", "ruff-no-such-tool")
    assert stopped.value.code == 2
    assert "'ruff-no-such-tool'" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        mos_run("--", "pygmentize", "-V")  # of pygments, which rich needs
    assert not stopped.value.code
    assert "Pygments" in capsys.readouterr().out
    mos_run("--", "sysconfig")
    assert "Platform:" in capsys.readouterr().out
