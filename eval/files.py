"""Reading benchmark files, with errors that name the file and the row."""

from __future__ import annotations

import gzip
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mos.errors import DataError, MissingFileError
from mos.files import MAX_LINE, bounded_lines, check_regular, parse_json

PREPARE_HINT = (
    "Fetch the benchmarks with `python scripts/prepare_eval_data.py`, or point paths.data_dir at"
    " a folder that has them."
)


def require(path: Path, what: str) -> Path:
    """Return `path` if it exists, else raise `MissingFileError` saying what should be there."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; expected {what}. {PREPARE_HINT}")
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with universal newlines."""
    check_regular(path)
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(path, None, f"not UTF-8: {error}.") from error


def read_json(path: Path) -> Any:
    text = read_text(path)
    try:
        return parse_json(text)
    except ValueError as error:
        line = getattr(error, "lineno", None)
        raise DataError(path, line, f"not valid JSON: {error}.") from error


def read_jsonl(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (1-based line, object) of a .jsonl or .jsonl.gz file; every field must be a string.

    Blank lines are passed over.
    """
    number = 0
    check_regular(path)
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(bounded_lines(file), start=1):
                if len(line) > MAX_LINE:
                    raise ValueError(f"a line of more than {MAX_LINE >> 20} MB")
                if line.strip():
                    row = parse_json(line.removeprefix(BOM_UTF8))
                    yield number, check_fields(row, fields, path, number)
        except DataError:
            raise
        except UnicodeDecodeError as error:
            raise DataError(path, number, f"unreadable: {error}.") from error
        except ValueError as error:
            raise DataError(path, number, f"not valid JSON: {error}.") from error
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(path, number + 1, f"unreadable: {error}.") from error


def check_fields(row: Any, fields: Sequence[str], path: Path, line: int | None) -> Any:
    """Return `row` if it is an object with these string fields, else raise `DataError`."""
    if not isinstance(row, Mapping):
        raise DataError(path, line, f"expected an object, found {type(row).__name__}.")
    for field in fields:
        if not isinstance(row.get(field), str):
            found = repr(row[field]) if field in row else "no such key"
            raise DataError(path, line, f"expected a string under {field!r}, found {found}.")
    return row
