"""Rows of a corpus: what became of them, and what they are made of."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
