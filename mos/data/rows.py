"""Rows of a corpus: what it is made from, how files are read, and what became of the rows."""

from __future__ import annotations

import codecs
import io
import json
import logging
import lzma
import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from mos.data.chat import IGNORE_INDEX, EncodedRow
from mos.data.fetch import Original
from mos.errors import DataError, MissingFileError, UserError

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]


class Example(NamedTuple):
    """A converted row with the place it came from."""

    row: dict[str, Any]  # {"dataset", "id", "messages": [{"role", "content"}]}
    path: Path
    line: int | None


@dataclass
class Report:
    """What happened to the rows of a corpus.

    Attributes:
        on_bad_row: "error" raises the first bad row, "skip" counts it and goes on.
        good: how many rows were read and can be used.
        skipped: how many bad rows were skipped.
        bad_rows: the first of them, as "file:line: reason".
        notes: what a person should know: departures from the reference that the source forced
            (missing tasks, other formats), files and fields that were not used.
        quiet: log nothing, for a pass that only counts.
    """

    on_bad_row: OnBadRow = "error"
    good: int = 0
    skipped: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.on_bad_row not in ("error", "skip"):
            raise UserError(f"data.on_bad_row={self.on_bad_row!r}: expected 'error' or 'skip'.")

    def bad(self, error: DataError) -> None:
        if self.on_bad_row == "error":
            raise error
        self.skipped += 1
        if len(self.bad_rows) < 20:
            self.bad_rows.append(str(error))
            if not self.quiet:
                logger.warning("skipped %s", error)

    def note(self, text: str) -> None:
        self.notes.append(text)
        if not self.quiet:
            logger.warning("%s", text)


@dataclass
class Statistics:
    """Counts over a corpus, as written to `statistics.json`.

    Attributes:
        read: rows of the source, bad ones and those beyond `max_rows` among them.
        rows: encoded and kept.
        tokens: of the kept rows, after truncation; `supervised_tokens` of them have a label.
        truncated: kept or dropped rows that were longer than the limit.
        dropped: rows left out because no label survived.
        empty_answers: rows of the reference's corpora with an empty assistant turn, kept.
        skipped: bad rows left out; the first are listed in `bad_rows`.
        notes: see `Report`.
        first_truncated, first_dropped, first_empty: where the first of each stand.
        lengths: rows by length before truncation, in bins of `LENGTH_BIN` tokens.
    """

    read: int = 0
    rows: int = 0
    tokens: int = 0
    supervised_tokens: int = 0
    truncated: int = 0
    dropped: int = 0
    empty_answers: int = 0
    skipped: int = 0
    bad_rows: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_truncated: list[str] = field(default_factory=list)
    first_dropped: list[str] = field(default_factory=list)
    first_empty: list[str] = field(default_factory=list)
    longest: int = 0
    lengths: dict[int, int] = field(default_factory=dict)

    LENGTH_BIN = 64
    SHOWN = 5

    def add(self, example: Example, row: EncodedRow) -> bool:
        """Count a row; whether it is kept."""
        place = f"{example.path.name}:{example.line or example.row['id']}"
        if row.full_length > len(row.input_ids):
            self.truncated += 1
            _first(self.first_truncated, place)
        if any(
            m["role"] == "assistant" and not m["content"].strip() for m in example.row["messages"]
        ):
            self.empty_answers += 1
            _first(self.first_empty, place)
        supervised = int((row.labels != IGNORE_INDEX).sum())
        self.longest = max(self.longest, row.full_length)
        bin_start = row.full_length // self.LENGTH_BIN * self.LENGTH_BIN
        self.lengths[bin_start] = self.lengths.get(bin_start, 0) + 1
        if supervised == 0:
            self.dropped += 1
            _first(self.first_dropped, place)
            return False
        self.rows += 1
        self.tokens += len(row.input_ids)
        self.supervised_tokens += supervised
        return True


def _first(places: list[str], place: str) -> None:
    if len(places) < Statistics.SHOWN:
        places.append(place)


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
    """The bytes of a file, unpacked by its suffix: .gz, .bz2, .xz or .zst."""
    import fsspec
    import pyarrow as pa

    try:
        if path.suffix == ".zst":
            packed: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
            with io.BufferedReader(packed) as file:
                yield file
        else:
            with fsspec.open(str(path), "rb", compression="infer") as file:
                yield file
    except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(path, None, f"damaged or cut off: {error}.", "Copy it again.") from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their 1-based numbers."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def read_rows(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file with their line numbers; bad ones go to `report`.

    The file is parquet, a JSON list (in both, rows are counted in place of lines), or jsonl.
    """
    require_content(path)
    first = next(read_lines(path), (0, b""))[1] if path.suffix != ".parquet" else b""
    if path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif first.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"["):
        for number, value in enumerate(read_json(path), start=1):
            if isinstance(value, dict):
                yield number, value
            else:
                report.bad(_not_an_object(path, number, value))
    else:
        yield from read_jsonl(path, report)


def read_jsonl(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a jsonl file with their line numbers; bad lines go to `report`."""
    for number, line in read_lines(path):
        try:
            yield number, _parse_object(line, path, number)
        except DataError as error:
            report.bad(error)


def sample_jsonl(
    path: Path, k: int, rng: random.Random, report: Report
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`; if there are more than `k` lines, `rng.sample` of them in its order.

    Sampling positions takes the same draws as sampling the parsed list.
    """
    count = sum(1 for _ in read_lines(path))
    if count <= k:
        yield from read_jsonl(path, report)
        return
    chosen = rng.sample(range(count), k=k)
    wanted = set(chosen)
    lines = {index: line for index, line in enumerate(read_lines(path)) if index in wanted}
    for index in chosen:
        number, line = lines[index]
        try:
            yield number, _parse_object(line, path, number)
        except DataError as error:
            report.bad(error)


def read_json(path: Path) -> Any:
    """A whole JSON file.

    Raises:
        DataError: empty, not UTF-8, or not JSON, with the line.
    """
    require_content(path)
    with _opened(path) as file:
        return _parse(file.read(), path, None)


def _parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    value = _parse(line, path, number)
    if not isinstance(value, dict):
        raise _not_an_object(path, number, value)
    return value


def _parse(data: bytes, path: Path, line: int | None) -> Any:
    """JSON of a line, or of a whole file."""
    try:
        return json.loads(data.decode("utf-8-sig"))
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


def _not_an_object(path: Path, number: int, value: Any) -> DataError:
    return DataError(path, number, f"expected a JSON object, found {type_name(value)}.")


def _read_parquet(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=256):
            for item in batch.to_pylist():
                number += 1
                yield number, item
    except (pa.ArrowException, OSError) as error:
        raise DataError(path, None, f"not a readable parquet file: {error}") from None


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

    Raises:
        MissingFileError: the folder or a file is missing.
        DataError: a file is empty.
    """
    if not source.exists():
        raise MissingFileError(f"{what}: no folder {source}. {where}")
    paths = [source / name for name in names]
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
    if path.stat().st_size == 0:
        raise DataError(path, None, "the file is empty.", "Was its download interrupted?")


def text_field(value: dict[str, Any], name: str, path: Path, line: int | None) -> str:
    """A field that must be there and be a string.

    Raises:
        DataError: it is missing or of another type.
    """
    if name not in value:
        raise DataError(
            path, line, f"field {name!r} is missing; found {', '.join(value) or 'no fields'}."
        )
    if not isinstance(value[name], str):
        raise DataError(
            path, line, f"field {name!r} must be a string, found {type_name(value[name])}."
        )
    return value[name]


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


def type_name(value: Any) -> str:
    """What a JSON value is called in messages."""
    return {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }[type(value)]
