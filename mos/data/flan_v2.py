"""Flan V2: Tulu's resampled mixture of 100,000 rows, taken as it is (protocol section 7)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from mos.data.fetch import Original
from mos.data.rows import (
    Corpus,
    Example,
    Report,
    prompt_rows,
    read_rows,
    require_files,
)

FILE = "tulu_v1_resampled_flan_100k.jsonl"
TULU_STORE = "hf://datasets/hamishivi/tulu_mix_store@7508c5e92f6ebee594f3d60854970a0d0a9587a3"
WHERE = (
    "Run scripts/prepare_train_data.py flan_v2, or take"
    " flan_v2_resampled_100k.jsonl from huggingface.co/datasets/hamishivi/tulu_mix_store and give"
    f" it the name {FILE}."
)


def files(source: Path) -> list[Path]:
    """The mixture's file, which `source` is or holds."""
    return require_files(source, [FILE], "flan_v2", WHERE)


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows in file order."""
    (path,) = files(source)
    yield from prompt_rows("flan_v2", ((path, *item) for item in read_rows(path, report)), report)


CORPUS = Corpus(
    files,
    rows,
    WHERE,
    folder="flan_v2",
    originals=lambda _: [Original(FILE, f"{TULU_STORE}/flan_v2_resampled_100k.jsonl")],
)
