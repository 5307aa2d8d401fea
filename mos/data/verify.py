"""Is a downloaded file the one that was meant: size, checksums, number of rows."""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mos.data.download import RemoteFile


def problem_with(file: RemoteFile, path: Path) -> str | None:
    """What is wrong with a file that should be `file`; None if nothing is."""
    size = path.stat().st_size
    if size == 0:
        return "is empty"
    if file.size is not None and size != file.size:
        return f"has {size} bytes where {file.size} were expected"
    if file.sha256 is not None and (found := sha256_of(path)) != file.sha256:
        return f"has SHA-256 {found} where {file.sha256} was expected"
    if file.git_sha1 is not None and (found := git_sha1_of(path)) != file.git_sha1:
        return f"has git hash {found} where {file.git_sha1} was expected"
    if file.rows is not None:
        try:
            rows = count_rows(path, Path(file.path).suffix)
        except (ValueError, OSError, EOFError) as error:
            return f"cannot be read: {error}"
        if rows != file.rows:
            return f"has {rows} rows where {file.rows} were expected"
    return None


def count_rows(path: Path, suffix: str | None = None) -> int:
    """Rows of a jsonl (also gzipped), csv, tsv or txt file (non-blank lines), or of a JSON list.

    For a JSON object, the elements of its longest list (`examples`, `data`, `Instances`).
    `suffix` tells the format where the file's own name does not.
    """
    suffix = suffix or path.suffix
    if suffix == ".json":
        value = json.loads(path.read_bytes())
        if isinstance(value, dict):
            return max((len(v) for v in value.values() if isinstance(v, list)), default=0)
        return len(value)
    with gzip.open(path) if suffix == ".gz" else path.open("rb") as file:
        return sum(1 for line in file if line.strip())


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_sha1_of(path: Path) -> str:
    """The hash under which git stores the file."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
