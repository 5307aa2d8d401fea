"""Flan V2: Tulu's resampled mixture of 100,000 rows, taken as it is (protocol section 7)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mos.data.rows import (
    Example,
    Report,
    conversation,
    read_jsonl,
    require_content,
    require_files,
    text_field,
)
from mos.errors import DataError

FILE = "tulu_v1_resampled_flan_100k.jsonl"
WHERE = (
    "Run scripts/prepare_train_data.py flan_v2, or take the file from"
    " huggingface.co/datasets/hamishivi/tulu_mix_store."
)


def files(source: Path) -> list[Path]:
    """The mixture's file, which `source` is or holds."""
    if source.is_file():
        require_content(source)
        return [source]
    return require_files(source, [FILE], "flan_v2", WHERE)


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows in file order."""
    (path,) = files(source)
    yield from flan_rows("flan_v2", ((path, *item) for item in read_jsonl(path, report)), report)


def flan_rows(
    dataset: str, items: Iterable[tuple[Path, int, dict[str, Any]]], report: Report
) -> Iterator[Example]:
    """Conversations of FLAN's `inputs` and `targets`, numbered through.

    A prompt that ends neither in LF nor, apart from spaces, in a colon gets a LF; targets are
    verbatim.
    """
    for index, (path, line, item) in enumerate(items):
        try:
            prompt = text_field(item, "inputs", path, line)
            completion = text_field(item, "targets", path, line)
        except DataError as error:
            report.bad(error)
            continue
        if not prompt.endswith("\n") and not prompt.rstrip().endswith(":"):
            prompt += "\n"
        yield Example(conversation(dataset, f"{dataset}_{index}", prompt, completion), path, line)
