"""Rows of data files, each with its place: jsonl, JSON lists and parquet, compressed or not.

A file is read as what its first bytes say it is, whatever its name. Rows are streamed; one of more
than `MAX_LINE` bytes is a bad row, so that memory stays bounded whatever a file unpacks to.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import random
import re
import zlib
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from mos.data.rows import Report, require_content, type_name
from mos.errors import DataError

MAX_LINE = 16 << 20  # bytes
MAX_FILE = 256 << 20  # bytes of a JSON file that is one object

COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bz2",
    b"\xfd7zXZ": "xz",
}
REFUSED = {
    b"PK\x03\x04": ("a zip archive", "Unpack it."),
    b"version https://git-lfs": ("a pointer of Git LFS, without the data", "Run `git lfs pull`."),
    b"\x00\x05\x16\x07": ("a resource file of macOS, without data", "Name the file beside it."),
    codecs.BOM_UTF16_LE: ("UTF-16; expected UTF-8", "Convert the file, for instance with iconv."),
    codecs.BOM_UTF16_BE: ("UTF-16; expected UTF-8", "Convert the file, for instance with iconv."),
}


def kind_of(path: Path) -> str:
    """ "gzip", "zstd", "bz2", "xz", "parquet" or "text", by a file's first bytes.

    Raises:
        DataError: a file of a kind that holds no rows, by name.
    """
    if not path.is_file():  # a pipe cannot be read twice
        raise DataError(path, None, "not a regular file.")
    with path.open("rb") as file:
        head = file.read(32)
    for magic, (found, hint) in REFUSED.items():
        if head.startswith(magic):
            raise DataError(path, None, f"the file is {found}.", hint)
    if head.startswith(b"PAR1"):
        return "parquet"
    return next((kind for magic, kind in COMPRESSED.items() if head.startswith(magic)), "text")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, unpacked if it is compressed.

    Raises:
        DataError: also while it is read, if what is compressed is damaged.
    """
    import pyarrow as pa

    open_as: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
    kind = kind_of(path)
    try:
        if kind == "zstd":
            unpacked: Any = pa.CompressedInputStream(pa.OSFile(str(path)), "zstd")
            with io.BufferedReader(unpacked) as stream:
                yield stream
        else:
            with open_as.get(kind, Path.open)(path, "rb") as stream:
                yield stream
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException) as error:
        if kind == "text":
            raise
        raise DataError(
            path, None, f"the {kind} file is damaged or cut off: {error}.", "Copy it again."
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their 1-based numbers."""
    with opened(path) as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            if line.strip():
                yield number, line


def read_rows(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a file with their line (in parquet: row) numbers; bad ones go to `report`.

    The file is parquet, jsonl, or JSON: a list of objects, or one object after the other.
    """
    require_content(path)
    if kind_of(path) == "parquet" or path.suffix == ".parquet":
        yield from _read_parquet(path)
    elif _one_object_a_line(path):
        yield from read_jsonl(path, report)
    else:
        yield from read_json_values(path, report)


def read_jsonl(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a jsonl file with their line numbers; bad lines go to `report`."""
    for number, line in read_lines(path):
        try:
            yield number, parse_object(line, path, number)
        except DataError as error:
            report.bad(error)


def sample_jsonl(
    path: Path, k: int, rng: random.Random, report: Report
) -> Iterator[tuple[int, dict[str, Any]]]:
    """As `read_jsonl`; if there are more than `k` lines, `rng.sample` of them in its order.

    Sampling positions takes the same draws as sampling the parsed list, in 16 bytes a line.
    """
    if (kind := kind_of(path)) != "text":
        raise DataError(path, None, f"a {kind} file; expected jsonl that is not compressed.")
    offsets, numbers, position = array("Q"), array("Q"), 0
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            if line.strip():
                offsets.append(position)
                numbers.append(number)
            position = file.tell()
        if len(offsets) <= k:
            yield from read_jsonl(path, report)
            return
        for index in rng.sample(range(len(offsets)), k=k):
            file.seek(offsets[index])
            try:
                line = next(bounded_lines(file))
                yield numbers[index], parse_object(line, path, numbers[index])
            except DataError as error:
                report.bad(error)


def parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of a jsonl file.

    Raises:
        DataError: too long, not UTF-8, not JSON, or not an object.
    """
    if len(line) > MAX_LINE:
        raise DataError(path, number, _TOO_LONG)
    with _as_data_error(path, number):
        value = json.loads(line.removeprefix(codecs.BOM_UTF8).rstrip().decode("utf-8"))
    if not isinstance(value, dict):
        raise DataError(path, number, f"expected a JSON object, found {type_name(value)}.")
    return value


def read_json_values(path: Path, report: Report) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects of a JSON file: the elements of its list, or its values one after the other.

    Each comes with the line where it starts.

    Raises:
        DataError: broken JSON, of which the rest cannot be read.
    """
    too_long: list[str] = []

    def integer(digits: str) -> int:
        try:
            return int(digits)
        except ValueError:
            too_long.append(digits)
            return 0

    decode = json.JSONDecoder(parse_int=integer).raw_decode
    between = re.compile(r"[\s,]*").match
    with opened(path) as file:
        source = io.TextIOWrapper(file, "utf-8-sig")
        text, at, line, in_list, more = "", 0, 1, None, True
        while True:
            if more and len(text) - at <= MAX_LINE:
                with _as_data_error(path, line):
                    text, at = text[at:] + (chunk := source.read(2 * MAX_LINE)), 0
                more = bool(chunk)
            start, at = at, between(text, at).end()  # type: ignore[union-attr]
            line += text.count("\n", start, at)
            if at == len(text):
                if more:
                    continue
                if in_list:
                    raise DataError(path, line, "broken JSON: the list does not end.")
                return
            if in_list is None:
                in_list = text[at] == "["
                at += in_list
                continue
            if in_list and text[at] == "]":
                return
            start = at
            try:
                with _as_data_error(path, line):
                    value, at = decode(text, at)
            except DataError as error:
                if more and isinstance(error.__context__, json.JSONDecodeError):
                    raise DataError(path, line, _TOO_LONG) from None
                raise
            if too_long:
                report.bad(DataError(path, line, f"a number has {len(too_long[0]):,} digits."))
                too_long.clear()
            elif isinstance(value, dict):
                yield line, value
            else:
                report.bad(
                    DataError(path, line, f"expected a JSON object, found {type_name(value)}.")
                )
            line += text.count("\n", start, at)


def read_json(path: Path) -> tuple[Any, str]:
    """A whole JSON file, and its text, in which a value can be found.

    Raises:
        DataError: empty, not UTF-8, or not JSON, with the line.
    """
    require_content(path)
    with opened(path) as file:
        data = file.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise DataError(path, None, f"more than {MAX_FILE >> 20} MiB; expected one task.")
    with _as_data_error(path, None):
        text = data.decode("utf-8-sig")
        return json.loads(text), text


_TOO_LONG = f"a line of more than {MAX_LINE >> 20} MB."


def _one_object_a_line(path: Path) -> bool:
    """Whether a file is jsonl: by its first line or, if that is not JSON, by its name."""
    with opened(path) as file:
        head = b""
        while not head.strip() and (line := file.readline(MAX_LINE)):
            head = line.removeprefix(codecs.BOM_UTF8)
    if head.lstrip().startswith(b"["):
        return False
    try:
        json.loads(head)
    except (ValueError, RecursionError):
        return ".jsonl" in path.name
    return True


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


@contextmanager
def _as_data_error(path: Path, line: int | None) -> Iterator[None]:
    """Say what makes a piece of JSON unreadable; `line` is where it starts, None for a file."""
    try:
        yield
    except UnicodeDecodeError as error:
        place = line or error.object.count(b"\n", 0, error.start) + 1
        reason = f"not UTF-8: byte 0x{error.object[error.start]:02x}."
        hint = "Convert the file to UTF-8, for instance with iconv."
        raise DataError(path, place, reason, hint) from None
    except json.JSONDecodeError as error:
        place = (line or 1) + error.doc.count("\n", 0, error.pos)
        raise DataError(path, place, f"broken JSON at column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise DataError(path, line, "unusable JSON: nested too deeply.") from None
    except ValueError as error:
        raise DataError(path, line, f"unusable JSON: {error}.") from None


def bounded_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The lines of a file; of a line longer than `MAX_LINE` bytes, its first `MAX_LINE` + 1."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line
