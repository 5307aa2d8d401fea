"""Chain of thought: FLAN's submixtures as Tulu samples them, or FLAN's raw `cot_data`.

`cot_zsopt.jsonl` and `cot_fsopt.jsonl` give the reference's corpus (protocol section 7). Where
they are not to be had, raw `*_train.tsv` files (question, answer, rationale) are rendered zero-shot
with one template of ours; that corpus is close in content but not the reference's.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mos.data.flan_v2 import flan_rows
from mos.data.rows import (
    Example,
    Report,
    read_lines,
    require_content,
    require_files,
    sample_jsonl,
)
from mos.errors import DataError

FILES = ("cot_zsopt.jsonl", "cot_fsopt.jsonl")
ROWS_PER_FILE = 50_000
WHERE = (
    "Run scripts/prepare_train_data.py cot, or take both files from"
    " huggingface.co/datasets/hamishivi/tulu_mix_store; the raw *_train.tsv of"
    " github.com/google-research/FLAN (flan/v2/cot_data) serve as well."
)


def files(source: Path) -> list[Path]:
    """Both jsonl files or, where neither is there, every `*_train.tsv`."""
    raw = sorted(source.glob("*_train.tsv"))
    if raw and not any((source / name).is_file() for name in FILES):
        for path in raw:
            require_content(path)
        return raw
    return require_files(source, FILES, "cot", WHERE)


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Zero-shot rows, then few-shot rows; at most 50,000 sampled of each."""
    paths = files(source)
    if paths[0].suffix == ".tsv":
        report.note(
            f"cot: no {' and '.join(FILES)} in {source}: rendered the raw rationales of"
            f" {', '.join(path.name.removesuffix('_train.tsv') for path in paths)} zero-shot."
        )
        items = ((path, *item) for path in paths for item in _read_tsv(path, report))
    else:
        items = (
            (path, *item)
            for path in paths
            for item in sample_jsonl(path, ROWS_PER_FILE, rng, report)
        )
    yield from flan_rows("cot", items, report)


def _read_tsv(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        try:
            fields = line.decode("utf-8").rstrip("\r\n").split("\t")
        except UnicodeDecodeError as error:
            reason = f"not UTF-8: byte 0x{line[error.start]:02x}."
            report.bad(DataError(path, number, reason, "Convert the file to UTF-8."))
            continue
        if len(fields) != 3:
            reason = f"expected 3 columns (question, answer, rationale), found {len(fields)}."
            report.bad(DataError(path, number, reason))
            continue
        question, answer, rationale = (field.replace("\\n", "\n").strip() for field in fields)
        yield (
            number,
            {
                "inputs": f"{question}\nLet's think step by step.",
                "targets": f"{rationale} So the answer is {answer}.",
            },
        )
