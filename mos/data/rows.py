"""Rows of a corpus: reading them with their place in the file, refusing or skipping bad ones."""

from __future__ import annotations

import json
import logging
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mos.errors import DataError, MissingFileError, UserError
from mos.files import MAX_LINE, bounded_lines, parse_json

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
        skipped: how many bad rows were skipped.
        bad_rows: the first of them, as "file:line: reason".
        notes: departures from the reference that the source forced (missing tasks, other formats).
        quiet: log nothing, for a pass that only counts.
    """

    on_bad_row: OnBadRow = "error"
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


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Non-blank lines with their 1-based numbers."""
    with path.open("rb") as file:
        for number, line in enumerate(bounded_lines(file), start=1):
            if line.strip():
                yield number, line


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
                yield (
                    numbers[index],
                    parse_object(next(bounded_lines(file)), path, numbers[index]),
                )
            except DataError as error:
                report.bad(error)


def parse_object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    """One line of a jsonl file.

    Raises:
        DataError: too long, not UTF-8, not JSON, or not an object.
    """
    if len(line) > MAX_LINE:
        raise DataError(path, number, f"a line of more than {MAX_LINE >> 20} MB.")
    try:
        value = parse_json(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(path, number, _encoding_reason(line, error), _ENCODING_HINT) from None
    except ValueError as error:
        raise DataError(path, number, _json_reason(error)) from None
    if not isinstance(value, dict):
        raise DataError(path, number, f"expected a JSON object, found {_kind(value)}.")
    return value


def read_json(path: Path) -> tuple[Any, str]:
    """A whole JSON file, and its text for `line_of`.

    Raises:
        DataError: empty, not UTF-8, or not JSON, with the line.
    """
    require_content(path)
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
        return parse_json(text), text
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(path, line, _encoding_reason(data, error), _ENCODING_HINT) from None
    except ValueError as error:
        raise DataError(path, getattr(error, "lineno", None), _json_reason(error)) from None


def read_json_list(path: Path) -> Iterator[tuple[int, Any]]:
    """Elements of a JSON file that is one list, with the lines where they start.

    Raises:
        DataError: as `read_json`, or the file is not a list.
    """
    value, text = read_json(path)
    if not isinstance(value, list):
        raise DataError(path, 1, f"expected a JSON list of objects, found {_kind(value)}.")
    decoder = json.JSONDecoder()
    i, line = text.index("[") + 1, text.count("\n", 0, text.index("[")) + 1
    for element in value:
        start = i
        while text[i] in " \t\r\n,":
            i += 1
        line += text.count("\n", start, i)
        yield line, element
        start = i
        _, i = decoder.raw_decode(text, i)
        line += text.count("\n", start, i)


def line_of(text: str, *keys: str | int) -> int:
    """1-based line where the value under `keys` starts in valid JSON, for error messages."""
    decoder = json.JSONDecoder()

    def skip(i: int, characters: str) -> int:
        while text[i] in characters:
            i += 1
        return i

    blank = " \t\r\n"
    i = skip(0, blank)
    for wanted in keys:
        i = skip(i + 1, blank)  # past the opening bracket
        index = 0
        while True:
            if isinstance(wanted, str):
                key, i = decoder.raw_decode(text, i)
                i = skip(i, blank + ":")
            else:
                key, index = index, index + 1
            if key == wanted:
                break
            _, i = decoder.raw_decode(text, i)
            i = skip(i, blank + ",")
    return text.count("\n", 0, i) + 1


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
        raise DataError(path, line, f"field {name!r} must be a string, found {_kind(value[name])}.")
    return value[name]


_ENCODING_HINT = "Convert the file to UTF-8, for instance with iconv."


def _json_reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"broken JSON at column {error.colno}: {error.msg}."
    return f"unusable JSON: {error}."


def _encoding_reason(data: bytes, error: UnicodeDecodeError) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "the file is UTF-16; expected UTF-8."
    return f"not UTF-8: byte 0x{data[error.start]:02x}."


def _kind(value: Any) -> str:
    return {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }[type(value)]
