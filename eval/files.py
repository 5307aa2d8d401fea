"""Reading benchmark files, with errors that name the file and the row.

Few-shot texts by other authors are nobody's to copy into this repository; lm-evaluation-harness
ships them as YAML. Nothing of lm-eval is imported: its files are found and parsed.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from mos.errors import DataError, MissingFileError, UserError
from mos.files import YAML_LOADER

PREPARE_HINT = (
    "Fetch the benchmarks with `python scripts/prepare_eval_data.py`, or point paths.data_dir at"
    " a folder that has them."
)

# The release whose texts, mapped, were compared with the reference's prompts.
LM_EVAL_VERSION = "0.4.13"


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


def read_lm_eval_task(relative: str, instead: Path) -> dict[str, Any]:
    """Parse a task file of the installed lm-eval.

    Args:
        relative: path under its `tasks` folder.
        instead: the benchmark's own file that was looked for first, for the message.

    Raises:
        MissingFileError: neither file is there.
        UserError: another release of lm-eval, whose texts may differ.
    """
    spec = find_spec("lm_eval")
    folders = spec.submodule_search_locations if spec else None
    path = Path(next(iter(folders)), "tasks", relative) if folders else None
    if path is None or not path.is_file():
        raise MissingFileError(
            f"No few-shot examples: {instead} does not exist, and lm-eval, which ships them as"
            f" tasks/{relative}, is not installed. Add the file, or"
            f" `pip install lm-eval=={LM_EVAL_VERSION}`."
        )
    if (found := version("lm-eval")) != LM_EVAL_VERSION:
        raise UserError(
            f"lm-eval {found} is installed, but few-shot texts are known to be the protocol's in"
            f" {LM_EVAL_VERSION} only. Install that, or add {instead}."
        )
    return yaml.load(path.read_text("utf-8"), Loader=YAML_LOADER)
