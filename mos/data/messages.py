"""Data already in conversations: your own jsonl, or the Tulu mixtures (jsonl, parquet).

A row is `{"messages": [{"role", "content"}, ...]}` or `{"prompt", "completion"}`, with optional
`dataset` and `id`. The rows of your own files are checked more strictly than the reference's
corpora: an empty assistant turn and an id that occurred before are bad rows.
"""

from __future__ import annotations

import hashlib
import random
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mos.data.rows import Example, Report, read_jsonl, require_content
from mos.errors import DataError, MissingFileError

ROLES = ("system", "user", "assistant")
FORMAT = (
    'Expected rows {"messages": [{"role": "user", "content": "..."}, ...]} or'
    ' {"prompt": "...", "completion": "..."} in *.jsonl or *.parquet.'
)


def files(source: Path) -> list[Path]:
    """The file that `source` is, or every jsonl and parquet file in it, by name."""
    if source.is_file():
        paths = [source]
    else:
        paths = sorted(p for p in source.glob("*") if p.suffix in (".jsonl", ".parquet"))
    if not paths:
        raise MissingFileError(f"messages: no *.jsonl or *.parquet in {source}. {FORMAT}")
    for path in paths:
        require_content(path)
    return paths


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows of all files in order; ids default to `<file>_<line>`."""
    seen = SeenIds()
    for example in mixture_rows(files(source), report):
        row = example.row
        try:
            for i, message in enumerate(row["messages"]):
                if message["role"] == "assistant" and not message["content"].strip():
                    raise DataError(
                        example.path, example.line, f"message {i}: the assistant turn is empty."
                    )
            if not seen.add(row["id"]):
                raise DataError(
                    example.path, example.line, f"the id {row['id']!r} occurred before."
                )
        except DataError as error:
            report.bad(error)
            continue
        yield example


def mixture_rows(
    paths: Iterable[Path], report: Report, dataset: str | None = None
) -> Iterator[Example]:
    """Rows in messages form; with `dataset`, only those of that name in a mixture."""
    for path in paths:
        items = _read_parquet(path) if path.suffix == ".parquet" else read_jsonl(path, report)
        for line, item in items:
            if dataset is not None and item.get("dataset") != dataset:
                continue
            try:
                row = {
                    "dataset": str(item.get("dataset") or path.stem),
                    "id": str(item.get("id") or f"{path.stem}_{line}"),
                    "messages": _messages(item, path, line),
                }
            except DataError as error:
                report.bad(error)
                continue
            yield Example(row, path, line)


class SeenIds:
    """Which ids occurred, in 8 bytes an id: their hashes, sorted but for the latest."""

    def __init__(self) -> None:
        self._sorted = array("Q")
        self._recent: set[int] = set()

    def add(self, row_id: str) -> bool:
        """Remember an id; whether it is new."""
        digest = hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        value = int.from_bytes(digest)
        place = bisect_left(self._sorted, value)
        known = place < len(self._sorted) and self._sorted[place] == value
        if known or value in self._recent:
            return False
        self._recent.add(value)
        if len(self._recent) >= 1 << 16:
            recent = np.fromiter(self._recent, dtype=np.uint64, count=len(self._recent))
            merged = np.sort(np.concatenate([np.asarray(self._sorted), recent]))
            self._sorted = array("Q", merged.tobytes())
            self._recent.clear()
        return True


def _messages(item: dict[str, Any], path: Path, line: int) -> list[dict[str, str]]:
    if "messages" in item:
        messages = item["messages"]
    elif "prompt" in item and "completion" in item:
        messages = [
            {"role": "user", "content": item["prompt"]},
            {"role": "assistant", "content": item["completion"]},
        ]
    else:
        found = ", ".join(item) or "no fields"
        raise DataError(
            path, line, f"neither 'messages' nor 'prompt' and 'completion' (found {found}).", FORMAT
        )
    if not isinstance(messages, list) or not messages:
        raise DataError(path, line, "'messages' must be a list of at least one message.", FORMAT)
    clean = []
    for i, message in enumerate(messages):
        if not isinstance(message, dict):
            raise DataError(path, line, f"message {i} must be an object.", FORMAT)
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise DataError(
                path, line, f"message {i}: unknown role {role!r}; expected {', '.join(ROLES)}."
            )
        if not isinstance(content, str):
            raise DataError(
                path, line, f"message {i}: content must be a string, found {content!r:.60}."
            )
        clean.append({"role": role, "content": content})
    return clean


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1000):
            for item in batch.to_pylist():
                number += 1
                yield number, item
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(path, None, f"not a readable parquet file: {error}") from None
