"""Make .venv with the pinned packages of a lock file. Needs nothing but Python and pip.

    python3 scripts/setup.py [cpu|cuda]

Without an argument: CUDA where an NVIDIA driver answers, else CPU. A second call that finds the
same lock installed returns at once; one that was interrupted is finished by the next.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import socket
import subprocess
import sys
import venv
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
VENV = REPO / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".mos-setup"

# Only PyTorch's own index has the CPU build for Linux on the open internet.
TORCH_CPU_HOST = "download.pytorch.org"
TORCH_CPU_INDEX = f"https://{TORCH_CPU_HOST}/whl/cpu"


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - older Pythons get a clear word
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
    kind = sys.argv[1] if len(sys.argv) > 1 else ("cuda" if has_nvidia_driver() else "cpu")
    lock = REPO / "requirements" / f"{kind}.lock"
    if not lock.is_file():
        sys.exit(f"no {lock}: expected cpu or cuda.")
    # The project's own metadata (commands, plugins) is installed too.
    metadata = (REPO / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(lock.read_bytes() + metadata).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == wanted:
        return
    print(f"setting up .venv from requirements/{kind}.lock (once, some minutes)", flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True, clear=VENV.exists())
    if kind == "cpu":
        install_cpu_torch(pinned(lock, "torch"))
    pip("install", "--no-compile", "--no-deps", "-r", str(lock))
    pip("install", "--no-compile", "--no-deps", "--no-build-isolation", "-e", str(REPO))
    compile_modules()
    STAMP.write_text(wanted)


def has_nvidia_driver() -> bool:
    """Whether nvidia-smi is there and finds a GPU."""
    if shutil.which("nvidia-smi") is None:
        return False
    return subprocess.run(["nvidia-smi", "-L"], capture_output=True).returncode == 0


def pinned(lock: Path, package: str) -> str:
    """`package==version` as the lock has it."""
    return next(line for line in lock.read_text().splitlines() if line.startswith(f"{package}=="))


def install_cpu_torch(requirement: str) -> None:
    """Install torch without CUDA's gigabytes, from wherever pip finds such a build first."""
    report = pip(
        "install",
        "--dry-run",
        "--ignore-installed",
        "--no-deps",
        "--report",
        "-",
        requirement,
        capture=True,
    )
    metadata = json.loads(report)["install"][0]["metadata"]
    needs_cuda = any(
        "nvidia" in need or "cuda" in need for need in metadata.get("requires_dist", [])
    )
    index: list[str] = []
    if needs_cuda and sys.platform == "linux":
        if reachable(TORCH_CPU_HOST):
            index = ["--index-url", TORCH_CPU_INDEX]
        else:
            print(f"{TORCH_CPU_HOST} is out of reach: taking torch's larger CUDA build", flush=True)
    pip("install", "--no-compile", "--no-deps", *index, requirement)


def compile_modules() -> None:
    """Compile the modules, with all cores; pip would take one.

    Else they are compiled at each import where nothing may be kept: under PYTHONDONTWRITEBYTECODE,
    and in the sandbox, whose programs would be charged for it.
    """
    folders = [*VENV.glob("lib/*/site-packages"), REPO / "mos", REPO / "eval"]
    # A quarter of the code, which nobody here imports.
    skipped = r"/tests/|/transformers/models/.*/modeling_(?!auto|llama)"
    # Some packages have templates, which are no modules.
    compiling = ["-m", "compileall", "-qq", "-j", "0", "-x", skipped]
    subprocess.run([str(PYTHON), *compiling, *map(str, folders)])


def reachable(host: str) -> bool:
    """Whether a connection opens within three seconds."""
    try:
        with socket.create_connection((host, 443), timeout=3):
            return True
    except OSError:
        return False


def pip(*arguments: str, capture: bool = False) -> str:
    """Run the new environment's pip; its messages go through, its advice does not."""
    command = [str(PYTHON), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    done = subprocess.run(
        command, stdout=subprocess.PIPE if capture else None, stderr=subprocess.PIPE, text=True
    )
    if done.returncode:
        sys.exit(f"pip {' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout or ""


if __name__ == "__main__":
    main()
