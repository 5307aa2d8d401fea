"""Files: their content as a hash, writing them whole, and reading those that others made."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import suppress
from gzip import GzipFile
from pathlib import Path
from typing import IO, Any

import yaml

from mos.errors import DataError, MissingFileError, UserError

WEIGHT_FILES = ("*.safetensors", "*.bin")
MAX_LINE = 16 * 2**20  # bytes
MAX_DEPTH = 30  # of YAML
YAML_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def hash_json(value: Any) -> str:
    """sha256 of a JSON-serialisable value, independent of key order."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def hash_files(files: Iterable[str | Path], cache_dir: str | Path) -> str:
    """sha256 over the names and contents of files, in order.

    Hashing gigabytes takes seconds, so a result is remembered in `cache_dir` under the files'
    paths, sizes and modification times.
    """
    paths = [Path(file) for file in files]
    seen = hash_json([(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths])
    memo = Path(cache_dir) / "fingerprints" / seen
    if memo.is_file() and re.fullmatch(r"[0-9a-f]{64}", known := memo.read_text("latin-1")):
        return known
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{hash_file(path)}\n".encode())
    with suppress(OSError):  # a cache that cannot be written can still be read
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content.

    Raises:
        OSError: it cannot be read.
        DataError: it is not a regular file.
    """
    check_regular(path)
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_hash(source: str | Path, cache_dir: str | Path) -> str | None:
    """sha256 of a file, or of all files below a folder; None if there are none."""
    path = Path(source)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return hash_files(files, cache_dir) if files else None


def weight_files(folder: Path) -> list[Path]:
    """The files that hold the weights of a model folder, all of them there.

    Raises:
        MissingFileError: no config, no weights, or not all of their files.
        UserError: an index that is damaged.
    """
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"model.path={folder} is not a model: no config.json there. Expected a folder as"
            " transformers saves it, a hub id, or model=smollm2_135m|tiny_random."
        )
    for index in sorted(folder.glob("*.index.json")):
        try:
            shards = sorted(set(read_json(index, MAX_LINE)["weight_map"].values()))
            absent = [shard for shard in shards if not (folder / shard).is_file()]
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise UserError(f"{index} is not an index of weight files: {error!r}.") from error
        if absent:
            raise MissingFileError(
                f"model.path={folder} lacks {len(absent)} of its {len(shards)} weight files:"
                f" {', '.join(absent[:3])}. Was the copy or the download interrupted?"
            )
    found = (file for pattern in WEIGHT_FILES for file in folder.glob(pattern))
    files = sorted(file for file in found if file.is_file())
    if not files:
        raise MissingFileError(
            f"model.path={folder} has a config.json but no weights (*.safetensors): was the copy"
            " or the download interrupted?"
        )
    return files


def fingerprint(path: str | Path, cache_dir: str | Path) -> str:
    """sha256 of the config, tokenizer and weights in a model folder."""
    patterns = ("*.json", *WEIGHT_FILES)
    files = sorted(f for pattern in patterns for f in Path(path).glob(pattern))
    return hash_files(files, cache_dir)


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file with `write_atomically`.

    Raises:
        ValueError: a number is infinite or not a number, for which JSON has no form.
    """
    write_atomically(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def parse_json(text: str | bytes) -> Any:
    """`json.loads`, which raises a ValueError for every kind of fault.

    Raises:
        ValueError: not UTF-8, not JSON, nested too deeply, or a number of thousands of digits.
    """
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        raise ValueError("a number has too many digits") from None


def parse_yaml(text: str) -> dict[str, Any]:
    """The keys of a YAML text that somebody else may have made.

    Raises:
        ValueError: not whole YAML, no keys, aliases (with which a line can stand for gigabytes), or
            nested too deeply.
    """
    depth = 0
    try:
        # PyYAML's C loader ends the process on deep nesting, so that events are looked at first.
        for event in yaml.parse(text, Loader=YAML_LOADER):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > MAX_DEPTH:
                raise ValueError(f"it has aliases, or is nested over {MAX_DEPTH} deep")
        tree = yaml.load(text, Loader=YAML_LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"not whole YAML: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"it holds a {type(tree).__name__}, not keys")
    return tree


def bounded_lines(file: IO[bytes] | GzipFile) -> Iterator[bytes]:
    """The lines of a file; of a line longer than `MAX_LINE` bytes, its first `MAX_LINE` + 1."""
    while line := file.readline(MAX_LINE + 1):
        rest = line
        while len(rest) > MAX_LINE and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE + 1)
        yield line


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file so that others see all of it or the former one, also after a crash."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)


def read_text(file: Path, limit: int = 4_000_000) -> str:
    """The text of a small file that somebody else may have made.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: it is not a regular file (reading a pipe would wait), has more than `limit`
            bytes, or is not UTF-8.
    """
    if (size := check_regular(file)) > limit:
        raise DataError(file, None, f"{size:,} bytes; expected at most {limit:,}.")
    try:
        return file.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(file, None, f"not UTF-8 text (byte {error.start}).") from None


def check_regular(file: Path) -> int:
    """The size of a regular file; a DataError for a pipe, which reading would wait for, or so."""
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise DataError(file, None, "not a regular file.")
    return about.st_size


def read_json(file: Path, limit: int = 4_000_000) -> Any:
    """The value in a small JSON file, read as `read_text` does.

    Raises:
        FileNotFoundError: it does not exist.
        DataError: as `read_text`; or it is empty, incomplete, not JSON, or nested too deeply.
    """
    text = read_text(file, limit)
    if not text.strip():
        raise DataError(file, None, "is empty (half-written?).")
    try:
        value = parse_json(text)
        json.dumps(value, ensure_ascii=False).encode()  # half a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise DataError(file, None, f"not whole JSON (half-written?): {error}") from None
    return value
