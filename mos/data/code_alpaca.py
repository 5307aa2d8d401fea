"""CodeAlpaca: a JSON list (or jsonl) of instruction, input, output (protocol section 7)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

from mos.data.fetch import Original, github
from mos.data.rows import (
    Corpus,
    Example,
    Report,
    conversation,
    read_rows,
    require_files,
    text_field,
)
from mos.data.super_ni import fill
from mos.errors import DataError

FILE = "code_alpaca_20k.json"
WHERE = (
    "Run scripts/prepare_train_data.py code_alpaca, or take data/code_alpaca_20k.json from"
    " github.com/sahil280114/codealpaca."
)
COMMIT = "2f78ddc5c682ed6738ad092bbbfa59ba915afcb0"


def files(source: Path) -> list[Path]:
    """The file that `source` is or holds."""
    return require_files(source, [FILE], "code_alpaca", WHERE)


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows in file order, one template draw each, ids by position in the file."""
    (path,) = files(source)
    for index, (line, item) in enumerate(read_rows(path, report)):
        try:
            instruction = text_field(item, "instruction", path, line)
            output = text_field(item, "output", path, line)
            context = item.get("input")
            if context is not None:
                context = text_field(item, "input", path, line)
        except DataError as error:
            report.bad(error)
            continue
        prompt, completion = fill(instruction, context, output, rng)
        yield Example(
            conversation("code_alpaca", f"code_alpaca_{index}", prompt, completion), path, line
        )


CORPUS = Corpus(
    files,
    rows,
    WHERE,
    folder="codealpaca",
    originals=lambda _: [Original(FILE, github("sahil280114/codealpaca", COMMIT, f"data/{FILE}"))],
)
