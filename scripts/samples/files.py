"""Reading the hand-written sources and writing every format to the byte."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import random
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

TEXT = Path(__file__).parent / "text"


def seeded(name: str) -> random.Random:
    """A generator of its own for every part, so that a change to one leaves the others alone."""
    return random.Random(f"mos samples 1: {name}")


def held_out(text: str) -> bool:
    """Whether a generated text is one of the quarter that only benchmarks may have."""
    return hashlib.sha256(text.encode()).digest()[0] < 64


def source_lines(name: str) -> list[str]:
    """Lines of a hand-written source without its comments (`% ...`)."""
    lines = (TEXT / name).read_text("utf-8").splitlines()
    return [line for line in lines if not line.startswith("% ")]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")]


@cache
def sections(name: str) -> dict[str, list[str]]:
    """`== title` blocks of a source: title -> its lines that are not empty."""
    found: dict[str, list[str]] = {}
    title = None
    for line in source_lines(name):
        if line.startswith("== "):
            title = line[3:].strip()
            found[title] = []
        elif title is not None and line.strip():
            found[title].append(line)
    return found


def words(name: str) -> list[str]:
    """A list of `words.txt`."""
    return [word for line in sections("words.txt")[name] for word in cells(line)]


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    _write(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int | None = 4) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False, indent=indent) + "\n")


def jsonl(rows: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text(path, jsonl(rows))


def write_jsonl_gz(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Gzip without time and name, and stored: deflate's output depends on the zlib."""
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, compresslevel=0, mtime=0) as packed:
        packed.write(jsonl(rows).encode("utf-8"))
    _write(path, buffer.getvalue())


def write_csv(path: Path, rows: Iterable[Sequence[str]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_text(path, buffer.getvalue())
