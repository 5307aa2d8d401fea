"""A job that takes seconds: tiny model, sample data, two steps."""

from __future__ import annotations

import subprocess
import sys

# Without experiment, adapter rank and paths.
TINY = [
    "model=tiny_random",
    "device=cpu",
    "data.max_seq_length=768",
    "data.max_rows=60",
    "data.eval_size=8",
    "trainer.max_steps=2",
    "trainer.save_steps=2",
    "trainer.logging_steps=1",
    "trainer.optim=adamw_torch",
    "eval.engine=transformers",
    "eval.limit=4",
]


def run_cli(*overrides: str, module: str = "mos.train") -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", module, *overrides], capture_output=True, text=True
    )
