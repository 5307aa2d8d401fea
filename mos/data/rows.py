"""Rows of a corpus: what it is made from, how files are read, and what became of the rows."""

from __future__ import annotations

import codecs
import csv
import io
import json
import logging
import lzma
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from mos.data.chat import IGNORE_INDEX, EncodedRow
from mos.data.fetch import Original
from mos.errors import DataError, MissingFileError, UserError

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]
PACKED = (".gz", ".zst", ".bz2", ".xz", ".lz4")
ARCHIVES = (".tar", ".tgz", ".zip", ".7z", ".rar")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
JSON, NO_SPACE = json.JSONDecoder(), re.compile(r"\S")


class Example(NamedTuple):
    """A converted row with the place it came from."""

    row: dict[str, Any]  # {"dataset", "id", "messages": [{"role", "content"}]}
    path: Path
    line: int | None


@dataclass
class Report:
    """What became of the rows of a corpus, as written to `statistics.json`.

    Attributes:
        on_bad_row: "error" raises the first bad row, "skip" counts it and goes on.
        read: rows of the source, bad ones and those beyond `max_rows` among them.
        skipped: bad rows left out; the first are listed in `bad_rows`, as "file:line: reason".
        rows: encoded and kept.
        tokens: of the kept rows, after truncation; `supervised_tokens` of them have a label.
        truncated: kept or dropped rows that were longer than the limit; `longest` is the longest.
        dropped: rows left out because no label survived.
        notes: what a person should know: departures from the reference that the source forced
            (missing tasks, other formats), files and fields that were not used.
        first_truncated, first_dropped: where the first of each stand.
    """

    on_bad_row: OnBadRow = "error"
    read: int = 0
    skipped: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    longest: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_truncated: list[str] = field(default_factory=list)
    first_dropped: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise UserError(f"data.on_bad_row={self.on_bad_row!r}: expected 'error' or 'skip'.")

    def bad(self, error: DataError) -> None:
        if self.on_bad_row == "error":
            raise error
        self.read += 1
        self.skipped += 1
        if len(self.bad_rows) < 20:
            self.bad_rows.append(str(error))
            logger.warning("skipped %s", error)

    def note(self, text: str) -> None:
        self.notes.append(text)
        logger.warning("%s", text)

    def add(self, example: Example, row: EncodedRow) -> bool:
        """Count a row that was encoded; whether it is kept."""
        place = [f"{example.path.name}:{example.line or example.row['id']}"]
        self.longest = max(self.longest, row.full_length)
        if row.full_length > len(row.input_ids):
            self.truncated += 1
            self.first_truncated = (self.first_truncated + place)[:5]
        supervised = int((row.labels != IGNORE_INDEX).sum())
        if supervised == 0:
            self.dropped += 1
            self.first_dropped = (self.first_dropped + place)[:5]
            return False
        self.rows += 1
        self.tokens += len(row.input_ids)
        self.supervised_tokens += supervised
        return True


@dataclass(frozen=True)
class Corpus:
    """A training corpus. Its file in mos/data makes one; a line in `mos.data.corpora` names it.

    Attributes:
        files: the files that a source (a folder, or a file) is made of. Raises MissingFileError
            and DataError.
        rows: streams them as conversations. What is drawn is drawn from the given generator; bad
            rows and departures from the reference go to the report.
        where: where to get the originals, or what form own files have; ends messages.
        folder: where the originals are in `paths.data_dir`.
        originals: what scripts/prepare_train_data.py fetches into `folder`, which is its argument.
    """

    files: Callable[[Path], list[Path]]
    rows: Callable[[Path, random.Random, Report], Iterator[Example]]
    where: str
    folder: str
    originals: Callable[[Path], Sequence[Original]] | None = None


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked by its suffix."""
    import pyarrow as pa

    try:
        with lzma.open(path) if path.suffix == ".xz" else pa.input_stream(str(path)) as packed:
            yield io.BufferedReader(packed)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise DataError(path, None, f"damaged or cut off: {error}.", "Copy it again.") from None


def kind(path: Path) -> str:
    """The suffix that says what a file holds, packed or not: ".json" of rows.json.gz."""
    return next((suffix for suffix in reversed(path.suffixes) if suffix not in PACKED), "")


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their 1-based numbers."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def read_rows(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a file with their line numbers; bad ones go to `report`.

    The file is parquet, Arrow's stream, JSON lists or objects one after the other (in these, rows
    are counted in place of lines), CSV or TSV with a header, or jsonl.
    """
    require_content(path)
    if path.suffix in (".parquet", ".arrow"):
        yield from _read_columns(path)
        return
    if kind(path) in SEPARATORS:
        yield from _read_cells(path, report)
        return
    first = next(read_lines(path), (0, b""))[1].removeprefix(codecs.BOM_UTF8).strip()
    if not first.startswith(b"[") and first != b"{":
        yield from read_jsonl(read_lines(path), path, report)
        return
    with _opened(path) as file:
        values = _parse(file.read(), path, None)
    rows = chain.from_iterable(value if isinstance(value, list) else [value] for value in values)
    for number, row in enumerate(rows, start=1):
        if isinstance(row, dict):
            yield number, row
        else:
            report.bad(_no_object(path, number, row))


def read_jsonl(
    lines: Iterable[tuple[int, bytes]], path: Path, report: Report
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of numbered lines of a jsonl file; bad lines go to `report`."""
    for number, line in lines:
        try:
            values = _parse(line, path, number)
            if len(values) != 1 or not isinstance(values[0], dict):
                raise _no_object(path, number, values if len(values) > 1 else values[0])
        except DataError as error:
            report.bad(error)
            continue
        yield number, values[0]


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        DataError: empty, not UTF-8, or not JSON, with the line.
    """
    require_content(path)
    with _opened(path) as file:
        values = _parse(file.read(), path, None)
    if len(values) != 1:
        raise DataError(path, None, f"expected one JSON value, found {len(values)}.")
    return values[0]


def _parse(data: bytes, path: Path, line: int | None) -> list[Any]:
    """The JSON values of a line, or of a whole file, one after the other."""
    values, at = [], 0
    try:
        text = data.decode("utf-8-sig")
        while start := NO_SPACE.search(text, at):
            value, at = JSON.raw_decode(text, start.start())
            values.append(value)
    except UnicodeDecodeError as error:
        place = line or data.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8: byte 0x{data[error.start]:02x}."
        hint = "Convert the file to UTF-8, for instance with iconv."
        raise DataError(path, place, reason, hint) from None
    except json.JSONDecodeError as error:
        place = line or error.lineno
        raise DataError(path, place, f"broken JSON at column {error.colno}: {error.msg}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(path, line, f"unusable JSON: {error}.") from None
    return values


def _no_object(path: Path, number: int, value: Any) -> DataError:
    return DataError(path, number, f"expected a JSON object, found {value!r:.60}.")


def _read_columns(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batches: Iterable[pa.RecordBatch] = (
            pq.ParquetFile(path).iter_batches(batch_size=256)
            if path.suffix == ".parquet"
            else pa.ipc.open_stream(pa.memory_map(str(path)))
        )
        rows = chain.from_iterable(batch.to_pylist() for batch in batches)
        yield from enumerate(rows, start=1)
    except (pa.ArrowException, OSError) as error:
        reason = f"not a readable {path.suffix[1:]} file: {error}"
        raise DataError(path, None, reason) from None


def _read_cells(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of CSV or TSV under the names of its first line; empty cells are left out."""
    csv.field_size_limit(10**8)
    with _opened(path) as file:
        text = io.TextIOWrapper(file, "utf-8-sig", newline="")
        rows = csv.DictReader(text, delimiter=SEPARATORS[kind(path)], strict=True)
        try:
            for row in rows:
                if None in row:
                    report.bad(DataError(path, rows.line_num, "more cells than columns."))
                else:
                    yield rows.line_num, {name: cell for name, cell in row.items() if cell}
        except (csv.Error, UnicodeDecodeError) as error:
            raise DataError(path, rows.line_num, f"not UTF-8 {kind(path)[1:]}: {error}.") from None


def conversation(dataset: str, row_id: str, prompt: str, completion: str) -> dict[str, Any]:
    """A single-turn row, keys in the order in which the reference writes them."""
    return {
        "dataset": dataset,
        "id": row_id,
        "messages": [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ],
    }


def require_files(source: Path, names: Sequence[str], what: str, where: str) -> list[Path]:
    """Paths of files that must be in a corpus folder and hold something.

    Where a corpus is one file, `source` may also be that file.

    Raises:
        MissingFileError: a file is missing.
        DataError: a file is empty.
    """
    is_file = source.is_file() and len(names) == 1
    paths = [source] if is_file else [source / name for name in names]
    missing = [path.name for path in paths if not path.is_file()]
    if missing:
        found = sorted(path.name for path in source.iterdir())[:10] if source.is_dir() else []
        raise MissingFileError(
            f"{what}: {', '.join(missing)} not found in {source}"
            f" (there: {', '.join(found) or 'nothing'}). {where}"
        )
    for path in paths:
        require_content(path)
    return paths


def require_content(path: Path) -> None:
    if kind(path) in ARCHIVES:
        raise DataError(path, None, "an archive.", "Unpack it, and name the folder.")
    if path.stat().st_size == 0:
        raise DataError(path, None, "the file is empty.", "Was its download interrupted?")


def text_field(value: dict[str, Any], name: str, path: Path, line: int | None) -> str:
    """A field that must be there and be a string.

    Raises:
        DataError: it is missing or of another type.
    """
    if name not in value:
        found = ", ".join(value) or "no fields"
        raise DataError(path, line, f"field {name!r} is missing; found {found}.")
    text = value[name]
    if not isinstance(text, str):
        raise DataError(path, line, f"field {name!r} must be a string, found {text!r:.60}.")
    return text


def prompt_rows(
    dataset: str, items: Iterator[tuple[Path, int, dict[str, Any]]], report: Report
) -> Iterator[Example]:
    """Conversations of FLAN's `inputs` and `targets`, numbered through (protocol section 7).

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
