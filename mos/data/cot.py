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

from mos.data.fetch import Original, github
from mos.data.flan_v2 import TULU_STORE
from mos.data.rows import (
    Corpus,
    Example,
    Report,
    prompt_rows,
    read_jsonl,
    read_lines,
    require_content,
    require_files,
)
from mos.errors import DataError

FILES = ("cot_zsopt.jsonl", "cot_fsopt.jsonl")
ROWS_PER_FILE = 50_000
FLAN = ("google-research/FLAN", "e9e4ec6e2701182c7a91af176f705310da541277")
RAW = {  # task -> SHA-256, as far as known
    "aqua": "2e43bd7900e739a78d7b7b7444e19bae4259399327eb76b78a30f4e4fb7dfdda",
    "creak": "ee6b9a3d88fbc1bdf7cd751c7f266edfc4c15e475560408ffb79490b2fe7bdea",
    "ecqa": "cf6967d587851f25a834cdd16c73f17a4da08bae5b8821922a64b3107160e01c",
    "esnli": None,
    "gsm8k": "acecbb7438cccae1b2eaa212a291c127ece02670d8bb39600164ab20f1d759a7",
    "qasc": "566ba8c3945b5fe8e3125ca4919c15f36e1067b881c251e75d071ad38c861b9a",
    "qed": None,
    "sensemaking": "c978b40455ed62b1755956f25327c7cec6f9d4954f7185e6fb14b03db74c65af",
    "strategyqa": "0e56b9f46b4d1569e45bf4c7f10d7854be81ae62303098fbd03d3e0bf912201f",
}
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
        items = ((path, *item) for path in paths for item in _sampled(path, rng, report))
    yield from prompt_rows("cot", items, report)


def _sampled(
    path: Path, rng: random.Random, report: Report
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of jsonl; if there are too many, a sample of the lines, in its order."""
    lines = list(read_lines(path))
    if len(lines) > ROWS_PER_FILE:
        lines = rng.sample(lines, k=ROWS_PER_FILE)
    return read_jsonl(lines, path, report)


def _read_tsv(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in read_lines(path):
        try:
            fields = line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n").split("\t")
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


def raw_originals() -> list[Original]:
    """FLAN's raw rationales, which serve where Tulu's files are not wanted."""
    names = {f"{task}_train.tsv": sha256 for task, sha256 in RAW.items()}
    return [Original(n, github(*FLAN, f"flan/v2/cot_data/{n}"), h) for n, h in names.items()]


CORPUS = Corpus(
    files,
    rows,
    WHERE,
    folder="cot",
    originals=lambda _: [Original(name, f"{TULU_STORE}/{name}") for name in FILES],
)
