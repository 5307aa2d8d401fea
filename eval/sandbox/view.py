"""What the sandbox shows of the machine's file system: libraries, and nothing else."""

from __future__ import annotations

import os
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .inside.limits import Limits
from .inside.namespaces import FOLDER

# Third-party packages that programs may import, and what these import themselves. Not the whole
# environment: it holds benchmarks with their answers.
LIBRARIES = ("numpy", "scipy", "pandas", "dateutil", "pytz", "six", "sympy", "mpmath")

PYTHON = os.path.realpath(sys.executable)
"""The interpreter itself, of which a virtual environment has but a link."""


@dataclass(frozen=True)
class View:
    """Paths that programs may read.

    Attributes:
        readable: folders of the interpreter's and the system's libraries.
        hidden: folders within them, of installed packages, that are not for reading.
        libraries: the packages that are, wherever they lie.
        site: the folders that hold these packages.
    """

    readable: list[str]
    hidden: list[str]
    libraries: list[str]
    site: list[str]


def view() -> View:
    standard = {
        sysconfig.get_path("stdlib"),
        sysconfig.get_path("platstdlib", vars={"platbase": sys.base_exec_prefix}),
        f"{sys.base_prefix}/lib",
    }
    system = {"/lib", "/lib64", "/usr/lib", "/usr/lib64"}
    hidden = {
        str(folder)
        for path in standard
        for name in ("site-packages", "dist-packages")
        for folder in [Path(path, name), *Path(path).glob(f"python3*/{name}")]
        if folder.is_dir()
    }
    tops = []
    for name in LIBRARIES:
        spec = find_spec(name)
        if spec is not None and spec.origin is not None:
            origin = Path(spec.origin)
            tops.append(origin.parent if origin.name == "__init__.py" else origin)
    return View(
        readable=sorted(path for path in standard | system if Path(path).is_dir()),
        hidden=sorted(hidden),
        libraries=[str(p) for top in tops for p in (top, Path(f"{top}.libs")) if p.exists()],
        site=sorted({str(top.parent) for top in tops}),
    )


def bubblewrap(program: str, shown: View, code: str, limits: Limits) -> list[str]:
    """The start of a command that runs in bubblewrap's namespaces and sees only what is shown.

    For systems that grant namespaces to `bwrap` alone. `code` is the folder of the server.
    """
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    for path in [PYTHON, code, *shown.readable]:
        command += ["--ro-bind", path, path]
    for path in shown.hidden:
        command += ["--tmpfs", path]
    for path in shown.libraries:
        command += ["--ro-bind", path, path]
    for path in shown.hidden:
        command += ["--remount-ro", path]
    command += ["--dev", "/dev", "--proc", "/proc"]
    command += ["--size", str(limits.folder_mb << 20), "--tmpfs", FOLDER]
    if not any(path.startswith("/tmp/") for path in [PYTHON, code, *shown.libraries]):
        command += ["--symlink", FOLDER, "/tmp"]
    return command
