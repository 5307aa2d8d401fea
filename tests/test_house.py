"""scripts/house.py holds the size of mos and eval."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "scripts/house.py"


@pytest.mark.parametrize(
    ("lines", "files", "found"), [(3, 2, ""), (2, 2, "3 lines"), (3, 1, "2 files")]
)
def test_growth_is_refused(tmp_path, lines, files, found):
    for folder in ("scripts", "mos", "eval/engines"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "mos/one.py").write_text("a = 1\nb = 2\n")
    (tmp_path / "eval/engines/two.py").write_text("c = 3\n")
    held = f"[tool.mos.house]\nlines = {lines}\nfiles = {files}\n"
    (tmp_path / "pyproject.toml").write_text(held)
    command = [sys.executable, "scripts/house.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == bool(found)
    assert found in done.stderr


def test_a_clone_holds_no_links():
    """They would point to folders of the machine that committed them."""
    repo = SCRIPT.parent.parent
    command = ["git", "-C", repo, "ls-files", "--stage"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    assert not [line for line in listed if line.startswith("120000")]
