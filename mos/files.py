"""Files by content: hashes that identify runs, caches and models, and writes that are whole."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from filelock import FileLock

WEIGHT_FILES = ("*.safetensors", "*.bin")


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
    if memo.is_file():
        return memo.read_text()
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{path.name}\0{content}\n".encode())
    memo.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(memo, digest.hexdigest())
    return digest.hexdigest()


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

    It is built under a lock in a folder beside and renamed into place.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if not target.is_dir():
            scratch = target.with_name(f"{target.name}.partial")
            shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
            scratch.mkdir()
            try:
                build(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


def write_atomically(path: str | Path, text: str) -> None:
    """Write a file that a reader sees whole or not at all, also after a crash."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with partial.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    partial.replace(path)
