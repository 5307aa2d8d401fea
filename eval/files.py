"""Reading benchmark files, with errors that name the file and the row."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mos.errors import DataError, MissingFileError

PREPARE_HINT = (
    "Fetch the benchmarks with `python scripts/prepare_eval_data.py`, or point paths.data_dir at"
    " a folder that has them."
)


def require(path: Path, what: str) -> Path:
    """Return `path` if it exists, else raise `MissingFileError` saying what should be there."""
    if not path.exists():
        raise MissingFileError(f"{path} does not exist; expected {what}. {PREPARE_HINT}")
    return path


def read_jsonl(path: Path, fields: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (1-based line, object) of a .jsonl or .jsonl.gz file; every field must be a string.

    Blank lines are passed over.
    """
    number = 0
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        try:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, check_fields(json.loads(line), fields, path, number)
        except DataError:
            raise
        except (ValueError, RecursionError) as error:
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
