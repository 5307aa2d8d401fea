"""What is evaluated."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mos.runs import Run


@dataclass
class Subject:
    """A model to evaluate, and where its results go.

    Attributes:
        name: for people.
        config: its `model`, `quantization`, `eval` and `device` say what is evaluated and how.
        out_dir: receives `eval/<benchmark>/`.
        adapter_dir: None for a bare model.
        run: gets results.json; None for an adapter that belongs to no run.
        results: benchmark -> content of its metrics.json.
    """

    name: str
    config: dict[str, Any]
    out_dir: Path
    adapter_dir: Path | None = None
    run: Run | None = None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
