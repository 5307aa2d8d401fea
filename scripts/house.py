"""The size of mos and eval against `[tool.mos.house]` of pyproject.toml; a part of `make lint`."""

import sys
import tomllib
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
allowed = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["mos"]["house"]
files = [path for package in ("mos", "eval") for path in (REPO / package).rglob("*.py")]
size = {"lines": sum(path.read_bytes().count(b"\n") for path in files), "files": len(files)}
if grown := [
    f"{size[what]:,} {what} (allowed: {allowed[what]:,})"
    for what in size
    if size[what] > allowed[what]
]:
    sys.exit(
        f"mos and eval have {', '.join(grown)}. Take something away, or raise [tool.mos.house] in"
        " pyproject.toml by a commit that says what was bought."
    )
