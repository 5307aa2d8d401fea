"""Fixtures that every package's tests share."""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "disabled")

import pytest

REPO = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("MOS_SHARED_DIR", REPO.parent / "shared"))


@pytest.fixture(scope="session")
def repo_dir() -> Path:
    return REPO


@pytest.fixture(scope="session")
def samples_dir() -> Path:
    return REPO / "data" / "samples"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real corpora and reference vectors, beside the checkout."""
    if not (SHARED / "golden").is_dir():
        pytest.skip(f"no reference vectors at {SHARED} (set MOS_SHARED_DIR)")
    return SHARED


@pytest.fixture(scope="session")
def golden(shared_dir):
    def load(name: str):
        return json.loads((shared_dir / "golden" / f"{name}.json").read_text("utf-8"))

    return load


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory) -> Path:
    """A random LLaMA of a few hundred kB with a byte-level tokenizer, as `model=tiny_random`."""
    from mos.model_sources import build_tiny_random

    return build_tiny_random(tmp_path_factory.mktemp("models") / "tiny_random")


def pytest_terminal_summary(terminalreporter):
    absent = [
        r for r in terminalreporter.getreports("skipped") if "MOS_SHARED_DIR" in str(r.longrepr)
    ]
    if absent:
        terminalreporter.write_line(
            f"NOT RUN: {len(absent)} tests against reference vectors, for want of {SHARED}",
            red=True,
        )
