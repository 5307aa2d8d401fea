"""Synthetic run folders."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mos.adapters import METHODS, row_label
from mos.report import paper
from mos.report.formats import Sheet
from mos.report.page import Report, build

METHOD_OF = {row_label({"method": name}, chat): name for name in METHODS for chat in (True, False)}
SEVEN_B = 2_498_560  # trainable parameters of LLaMA2-7B per unit of equivalent rank
THIRTEEN_B = 3_911_680


def write_run(
    root: Path,
    label: str = "MoS",
    rank: int | None = 16,
    parameters: int = 8 * SEVEN_B,
    *,
    experiment: str = "superni_mmlu",
    seed: int = 0,
    scale: str = "paper",
    model: str = "LLaMA2-7B",
    metrics: Mapping[str, Mapping[str, Any]] | None = None,
    config: Mapping[str, Any] | None = None,
    method: str | None = None,
    setup: str = "0a1b2c3d",
    **extra: Any,
) -> Path:
    """Write results.json and status.json of one run; returns its folder."""
    slug = label.lower().replace(" ", "-").replace("+", "").strip("-")
    folder = root / model / experiment / f"{slug}-r{rank}-{parameters}-{setup}" / f"seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    results = {
        "schema": 1,
        "run_id": f"{setup}-seed{seed}",
        "experiment": experiment,
        "scale": scale,
        "model": model,
        "method": {
            "name": method or METHOD_OF.get(label, "mos"),
            "label": label,
            "rank": rank,
            "trainable_parameters": parameters,
            "adapter_bytes": 2 * parameters,
            "config": dict(config or {}),
        },
        "seed": seed,
        "train": {"steps": 10000, "train_loss": 1.0, "eval_loss": 1.1, "seconds": 3600.0},
        "metrics": metrics
        if metrics is not None
        else {
            "mmlu": {"exact_match": 47.0, "n": 14042},
            "tydiqa": {"f1": 51.0, "exact_match": 38.0, "n": 5077},
        },
        **extra,
    }
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "status.json").write_text(json.dumps({"status": "evaluated", "reason": ""}))
    return folder


def report_of(*roots: Path, **options: Any) -> Report:
    return build([str(root) for root in roots], **options)


def cell(
    report: Report, row: str, column: str = "mmlu.exact_match", table: str = "table2"
) -> dict[int, float]:
    """The value of each seed in a cell of a table."""
    cells = report.cells
    own = cells[(cells["table"] == table) & (cells["row"] == row) & (cells["column"] == column)]
    return dict(zip(own["seed"], own["value"], strict=True))


def shown(sheet: Sheet, texts: int = 2) -> dict[tuple[str, ...], dict[str, str]]:
    """A sheet's figures by the names that begin its rows, and by title."""
    return {
        tuple(row[:texts]): dict(zip(sheet.frame.columns[texts:], row[texts:], strict=True))
        for row in sheet.frame.itertuples(index=False, name=None)
    }


def parameters_of(row: paper.Row, model: str) -> int:
    exact = {1.42: 1_417_216, 4.99: 4_989_696}
    if row.millions is None:
        return 0
    if row.millions in exact:
        return exact[row.millions]
    unit = SEVEN_B if model == paper.LLAMA2_7B else THIRTEEN_B
    return round(row.millions * 1e6 / unit) * unit


def write_paper(root: Path, offsets: Mapping[int, float] | None = None) -> None:
    """All cells of Tables 1-3 at the paper's values, plus an offset a seed."""
    n = {"mmlu": 14042, "bbh": 6511, "gsm8k": 1319, "tydiqa": 5077, "humaneval": 164}
    for table in paper.TABLES:
        for row in table.rows:
            values = dict(zip((c.key for c in table.columns), row.figures, strict=True))
            for experiment, benchmarks in paper.PAIRS.items():
                for seed, offset in (offsets or {0: 0.0, 1: 0.0}).items():
                    metrics = {
                        b: {c.key.partition(".")[2]: values[c.key] + offset for c in columns}
                        | {"n": n[b]}
                        for b in benchmarks
                        if (columns := [c for c in table.columns if c.benchmark == b])
                    }
                    if metrics:
                        write_run(
                            root,
                            row.label,
                            int(row.ranks[-1]) if row.ranks else 64 if row.millions else None,
                            parameters_of(row, table.model),
                            experiment=experiment,
                            seed=seed,
                            model=table.model,
                            metrics=metrics,
                        )
