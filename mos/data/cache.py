"""Folders named by the hash of all that shapes them, built once, whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock


def cached(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target`, built by the first process that asks for it.

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


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Stream batches into a file that `Dataset.from_file` maps into memory."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def code_hash() -> str:
    """Hash of what turns files into ids: the sources of this package, and the tokenizers."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    for package in ("tokenizers", "transformers"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()


def content_hash(identity: dict[str, Any]) -> str:
    """24 hex digits that stand for a JSON-like description."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
