"""Synthetic run folders, written once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.report.synthetic import write_paper


@pytest.fixture(scope="session")
def paper_runs(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("paper") / "outputs"
    write_paper(root)
    return root
