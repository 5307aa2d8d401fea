"""The corpora by name, and their conversion to conversations."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from mos.data import messages
from mos.data.fetch import is_on_hub
from mos.data.rows import Corpus, Example, OnBadRow, Report, require_content
from mos.errors import DataError, MissingFileError, unknown
from mos.files import set_aside, write_atomically

# Each the name of its file in mos/data.
NAMES = (
    "super_ni",
    "flan_v2",
    "cot",
    "code_alpaca",
    "messages",
)
CORPORA: dict[str, Corpus] = {name: import_module(f"mos.data.{name}").CORPUS for name in NAMES}


def corpus_of(name: str) -> Corpus:
    """A corpus by name.

    Raises:
        UserError: there is none of that name.
    """
    if name not in CORPORA:
        raise unknown("corpus", name, CORPORA)
    return CORPORA[name]


def check_source(corpus: str, source: str | Path | Sequence[str | Path]) -> None:
    """Check that the files of a corpus are there, without reading them.

    Raises:
        UserError: unknown corpus.
        MissingFileError: a file is missing; the message says where to get it.
        DataError: a file is empty.
    """
    for each in listed(source):
        if not (corpus == "messages" and is_on_hub(each)):
            source_files(corpus, each)


def listed(source: str | Path | Sequence[str | Path]) -> list[str | Path]:
    """One source or several as a list."""
    return [source] if isinstance(source, str | Path) else [*source]


def source_files(corpus: str, source: str | Path) -> list[Path]:
    """The files that a corpus is made from; raises as `check_source`."""
    source = _existing(corpus, source)
    return _converted_files(corpus, source) or corpus_of(corpus).files(source)


def corpus_rows(corpus: str, source: str | Path, seed: int, report: Report) -> Iterator[Example]:
    """Stream a corpus as conversations, with the draws of a `random.Random(seed)` of its own.

    A source may also hold the corpus converted already: `<corpus>_data.jsonl` as open-instruct
    writes it, or the parquet files of a Tulu mixture, of which the rows of this corpus are taken.
    """
    source = _existing(corpus, source)
    if converted := _converted_files(corpus, source):
        report.note(f"{corpus}: took rows converted already from {converted[0].name} in {source}.")
        yield from messages.mixture_rows(converted, report, dataset=corpus)
    else:
        yield from corpus_of(corpus).rows(source, random.Random(seed), report)


def convert(
    corpus: str,
    source: str | Path,
    output: str | Path,
    seed: int = 42,
    on_bad_row: OnBadRow = "error",
) -> dict[str, Any]:
    """Convert original files to a jsonl of `{"dataset", "id", "messages"}` (protocol section 7).

    Args:
        corpus: super_ni, flan_v2, cot, code_alpaca or messages.
        source: folder with the original files.
        output: the jsonl file to write; it appears whole or not at all.
        seed: of the sampling and the template draws; 42 gives the reference's file.
        on_bad_row: "error" or "skip".

    Returns:
        `rows`, `skipped`, `bad_rows` (the first of them) and `notes`.

    Raises:
        MissingFileError, DataError, UserError: as named by the message.
    """
    output, report = Path(output), Report(on_bad_row)
    source_files(corpus, source)
    rows = [json.dumps(e.row) + "\n" for e in corpus_rows(corpus, source, seed, report)]
    if not rows:
        raise no_rows(corpus, source, report)
    text = "".join(rows)
    if output.exists() and output.read_bytes() != text.encode():
        set_aside(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, text)
    return {
        "rows": len(rows),
        "skipped": report.skipped,
        "bad_rows": report.bad_rows,
        "notes": report.notes,
    }


def no_rows(corpus: str, source: str | Path, report: Report) -> DataError:
    """The error for a corpus of which nothing is left."""
    if report.dropped:
        return DataError(
            source,
            None,
            f"{corpus}: all {report.dropped} rows were dropped because no token of them is trained"
            f" on, the first: {report.first_dropped[0]}"
            f" ({report.truncated} were cut before their answer).",
            "Raise data.max_seq_length, or check that the rows have answers that are trained on.",
        )
    reason = f"{corpus}: no row is left"
    if report.skipped:
        reason += f"; {report.skipped} bad rows were skipped, the first: {report.bad_rows[0]}"
    return DataError(source, None, reason)


def _existing(corpus: str, source: str | Path) -> Path:
    where, source = corpus_of(corpus).where, Path(source)
    if not source.exists():
        raise MissingFileError(f"{corpus}: no {source}. {where}")
    return source


def _converted_files(corpus: str, source: Path) -> list[Path]:
    if corpus == "messages" or not source.is_dir():
        return []
    converted = source / f"{corpus}_data.jsonl"
    paths = [converted] if converted.is_file() else sorted(source.glob("*.parquet"))
    for path in paths:
        require_content(path)
    return paths
