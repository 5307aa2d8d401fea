"""benchmarks/serving.py on a small scale: what it measures is there, and no answer is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.timeout(900)
def test_a_small_trace_has_no_wrong_answer(repo_dir, tmp_path):
    if find_spec("vllm") is None:
        pytest.skip("NOT TESTED: benchmarks/serving.py, as vLLM is not installed")
    out = tmp_path / "serving.md"
    command = [sys.executable, repo_dir / "benchmarks/serving.py", "--out", out]
    scale = ["--adapters", "12", "--requests", "60", "--resident", "16", "--rounds", "2"]
    subprocess.run([*command, *scale], check=True, timeout=800)
    found = json.loads(out.with_suffix(".json").read_text())
    assert found["trace"]["wrong"] == 0
    assert found["trace"]["distinct_answers"] > 20
    assert found["trace"]["activations"] > found["trace"]["loads"] > 8
    assert found["memory"]["mos"]["bytes"] < found["memory"]["lora"]["bytes"] / 2
    assert "**0 answers differ**" in out.read_text()
    assert out.with_suffix(".svg").is_file()
