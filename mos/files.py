"""Files by content: hashes that identify runs, caches and models, and writes that are whole."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from mos.console import say

WEIGHT_FILES = ("*.safetensors", "*.bin")
SEAL = ".seal"  # no .json: it is no part of a model


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
    with suppress(OSError):  # a cache that cannot be written is of use all the same
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


def hash_file(path: Path) -> str:
    """sha256 of a file's content."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def source_hash(source: str | Path, cache_dir: str | Path) -> str | None:
    """Content of a file or of all files below a folder; None where there is nothing yet."""
    path = Path(source)
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
    return hash_files(files, cache_dir) if files else None


def fingerprint(path: str | Path, cache_dir: str | Path) -> str:
    """Content hash of a model folder: config, tokenizer and weights."""
    patterns = ("*.json", *WEIGHT_FILES)
    files = sorted(f for pattern in patterns for f in Path(path).glob(pattern))
    return hash_files(files, cache_dir)


def build_once(target: Path, build: Callable[[Path], object]) -> Path:
    """The folder `target`, made by the first process that asks for it, whole or not at all.

    It is built under a lock in a folder beside and renamed into place, with the hashes of its files
    in `.seal`. A folder whose files are no longer those that were written is built again, and a
    line says so.
    """
    if target.is_dir() and damage(target) is None:
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.is_dir():
            if (fault := damage(target)) is None:
                return target
            say(f"{target}: {fault}; it is made again")
        scratch = target.with_name(f"{target.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
        scratch.mkdir()
        try:
            build(scratch)
            seal(scratch)
            shutil.rmtree(target, ignore_errors=True)
            scratch.rename(target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return target


def seal(folder: Path) -> None:
    """Write `.seal`: size, time of change and sha256 of every file below `folder`."""
    files = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        stat = path.stat()
        name = str(path.relative_to(folder))
        files[name] = [stat.st_size, stat.st_mtime_ns, hash_file(path)]
    write_atomically(folder / SEAL, json.dumps(files, indent=2))


def damage(folder: Path) -> str | None:
    """What is wrong with the files of a sealed folder; None if they are those that were sealed.

    A file is read only if its size or time of change is not the seal's.
    """
    try:
        files = json.loads((folder / SEAL).read_text("utf-8"))
        for name, (size, changed, sha256) in files.items():
            stat = (folder / name).stat()
            if (stat.st_size, stat.st_mtime_ns) == (size, changed):
                continue
            if stat.st_size != size or hash_file(folder / name) != sha256:
                return f"{name} is damaged"
    except OSError as error:
        return f"{Path(error.filename).name} is missing"
    except (ValueError, TypeError, AttributeError, RecursionError):
        return f"{SEAL} is damaged"
    return None


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file that a reader sees whole or not at all, also after a crash."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
