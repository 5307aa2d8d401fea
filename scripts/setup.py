"""Make .venv with the pinned packages of a lock file. Needs nothing but Python and pip.

    python3 scripts/setup.py [cpu|cuda|cuda12]

Without an argument: CUDA where an NVIDIA driver answers, else CPU. A second call that finds the
same lock installed returns at once; one that was interrupted is finished by the next. uv installs;
it is fetched where it is not, and where it cannot be had (or with MOS_SETUP=pip) pip does it.
MOS_VENV names another folder than .venv.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
import venv
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parent.parent
LOCKS = REPO / "requirements"
VENV = REPO / os.environ.get("MOS_VENV", ".venv")
PYTHON = VENV / "bin" / "python"
# "<kind> <asked or found> <hash>": what is set up, and whether the user named the kind.
STAMP = VENV / ".mos-setup"

# Only PyTorch's own index has the builds for the CPU and for CUDA 12.6. They come without hashes.
TORCH_HOST = "download.pytorch.org"
TORCH_INDEX = f"https://{TORCH_HOST}/whl"


class Gpu(NamedTuple):
    name: str
    driver: int
    """Its major version, which decides what CUDA it runs."""
    capability: float


class Needs(NamedTuple):
    """What torch 2.13 and bitsandbytes 0.50, built for one CUDA, need."""

    cuda: str
    driver: int
    oldest: float
    newest: float


# There is no build of torch 2.13 for CUDA 12.8.
KINDS = {"cuda": Needs("13.0", 580, 7.5, math.inf), "cuda12": Needs("12.6", 525, 6.0, 9.0)}


def main() -> None:
    if sys.version_info < (3, 11):  # noqa: UP036 - older Pythons get a clear word
        sys.exit(f"Python 3.11 or newer is needed; {sys.executable} is {sys.version.split()[0]}.")
    recorded = STAMP.read_text().split() if STAMP.is_file() else []
    before, how, done = recorded if len(recorded) == 3 else ("", "", "")
    if len(sys.argv) > 1:
        kind, how = sys.argv[1], "asked"
    elif how == "asked":
        kind = before  # the kind for a job's machine, say, which the machine at hand is not
    else:
        kind, how = kind_for(gpus()), "found"
    if kind not in ("cpu", *KINDS):
        sys.exit(f"scripts/setup.py {kind}: expected cpu, cuda or cuda12.")
    lock = LOCKS / f"{kind}.lock"
    # The project's own metadata (commands, plugins) is installed too.
    metadata = (REPO / "pyproject.toml").read_bytes()
    wanted = hashlib.sha256(lock.read_bytes() + metadata).hexdigest()
    if (before, done) == (kind, wanted):
        return
    print(f"setting up {VENV.name} from requirements/{kind}.lock (once, some minutes)", flush=True)
    if kind == "cuda12":
        print(
            "  torch for CUDA 12.6 and no vLLM: its wheel needs driver 580 and a GPU of compute"
            " capability 7.5; eval.engine=auto takes transformers",
            flush=True,
        )
        if not reachable(TORCH_HOST):
            sys.exit(f"torch for CUDA 12.6 comes from {TORCH_HOST} alone, which does not answer.")
    make_environment(anew=before not in ("", kind))
    STAMP.write_text(f"{kind} {how} unfinished\n")
    # The lock's setuptools builds what comes as source, not one that nobody looked at.
    pip(*HASHED, "-r", "/dev/stdin", given=entry(lock, "setuptools"))
    packages = f"{lock.read_text().count('==')} packages"
    install(packages, *HASHED, "--no-build-isolation", "-r", str(lock))
    if kind != "cuda":
        install_torch(kind)
    install("mos itself", "--no-deps", "--no-build-isolation", "-e", str(REPO))
    print("  compiling modules", flush=True)
    compile_modules()
    STAMP.write_text(f"{kind} {how} {wanted}\n")


def gpus() -> list[Gpu]:
    """The GPUs that nvidia-smi finds; says so where it is there and finds none."""
    if shutil.which("nvidia-smi") is None:
        return []
    answer = nvidia_smi("name,driver_version,compute_cap")
    if "not a valid field" in answer:  # drivers before 510 do not tell the capability
        answer = re.sub("$", ", 0", nvidia_smi("name,driver_version"), flags=re.MULTILINE)
    rows = re.findall(r"^(.+), (\d+)[\d.]*, ([\d.]+)$", answer, re.MULTILINE)
    if not rows:
        first = answer.strip().partition("\n")[0]
        print(f"nvidia-smi finds no GPU ({first}): taking packages for the CPU", flush=True)
    return [Gpu(name, int(driver), float(capability)) for name, driver, capability in rows]


def nvidia_smi(fields: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout
    except subprocess.TimeoutExpired:
        return "no answer within a minute"


def kind_for(found: list[Gpu]) -> str:
    """The kind whose torch runs on these GPUs; leaves with a word where none does."""
    for kind, needs in KINDS.items():
        for gpu in found:
            if gpu.driver >= needs.driver and needs.oldest <= gpu.capability <= needs.newest:
                return kind
    if not found:
        return "cpu"
    gpu = found[0]
    sys.exit(
        f"no build of torch serves {gpu.name} (compute capability {gpu.capability:g}) with driver"
        f" {gpu.driver}: CUDA 13.0 needs driver 580 and capability 7.5, CUDA 12.6 driver 525 and"
        " 6.0 to 9.0. Update the driver, or set up for the CPU: python3 scripts/setup.py cpu"
    )


def make_environment(anew: bool) -> None:
    """Make .venv unless there is one whose pip answers; `anew` clears one made for another kind."""
    asked = [str(PYTHON), "-m", "pip", "--version"]
    if not anew and PYTHON.exists() and not subprocess.run(asked, capture_output=True).returncode:
        return
    # A folder that is no environment holds somebody's files.
    clear = (VENV / "pyvenv.cfg").is_file() and (anew or not PYTHON.exists())
    print(f"  making {VENV.name}", flush=True)
    try:
        venv.create(VENV, with_pip=True, clear=clear)
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"{sys.executable} makes no environment with pip ({error}). Debian and Ubuntu have"
            " what is missing in the package python3-venv."
        )


HASHED = ("--no-deps", "--require-hashes")


def entry(lock: Path, package: str) -> str:
    """The lines of a lock about one package: its version and the hashes of its files."""
    found = re.search(rf"^{re.escape(package)}==(.*\\\n)*.*\n", lock.read_text(), re.MULTILINE)
    assert found, f"{lock} has no {package}"
    return found[0]


def install_torch(kind: str) -> None:
    """Install the build for the CPU, from wherever pip finds it first, or the one for CUDA 12.6."""
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    torch = next(need for need in project["dependencies"] if need.startswith("torch=="))
    if kind == "cuda12":
        install(f"{torch} for CUDA 12.6", "--index-url", f"{TORCH_INDEX}/cu126", torch)
        return
    dry_run = ("--dry-run", "--ignore-installed", "--no-deps", "--report", "-")
    report = json.loads(pip(*dry_run, "--quiet", torch, capture=True))
    needed = report["install"][0]["metadata"].get("requires_dist", [])
    index: tuple[str, ...] = ()
    if sys.platform == "linux" and any("nvidia" in need or "cuda" in need for need in needed):
        if reachable(TORCH_HOST):
            index = ("--index-url", f"{TORCH_INDEX}/cpu")
        else:
            print(f"  {TORCH_HOST} is out of reach: taking torch's larger build for CUDA")
    print(f"  {torch} for the CPU", flush=True)
    pip("--no-deps", *index, torch)


def reachable(host: str) -> bool:
    """Whether a connection opens within three seconds."""
    try:
        with socket.create_connection((host, 443), timeout=3):
            return True
    except OSError:
        return False


def install(what: str, *arguments: str) -> None:
    """Install with uv; with pip where there is none, and where uv fails."""
    if found := uv():
        command = [found, "pip", "install"]
        print(f"  {what}, by uv", flush=True)
        command += ["--python", PYTHON, *arguments]
        if subprocess.run(command).returncode == 0:
            return
    print(f"  {what}, by pip", flush=True)
    pip(*arguments)


@functools.cache
def uv() -> str | None:
    """The path of uv: the user's own, or one fetched into .venv; None where it cannot be had."""
    if os.environ.get("MOS_SETUP") == "pip":
        return None
    if found := shutil.which("uv"):
        return found
    fetched = VENV / "bin" / "uv"
    command = [PYTHON, "-m", "pip", "install", "--quiet", *HASHED, "-r", LOCKS / "uv.lock"]
    if not fetched.exists():
        print("  fetching uv, which installs", flush=True)
    if not fetched.exists() and subprocess.run(command, capture_output=True).returncode:
        print("  uv cannot be had here: pip installs, which takes longer", flush=True)
        return None
    return str(fetched)


def pip(*arguments: str, capture: bool = False, given: str = "") -> str:
    """Install with the new environment's pip, which says how far it is, as uv does."""
    command = [PYTHON, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    done = subprocess.run(
        [*command, *arguments],
        input=given,
        stdout=subprocess.PIPE if capture else None,
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        sys.exit(f"{done.stderr}pip install {' '.join(arguments)} failed: see above.")
    return done.stdout or ""


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


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        print("\ninterrupted: the next `make setup` goes on from here", file=sys.stderr)
        sys.exit(130)
