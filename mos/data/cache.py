"""What the cache of tokenised data stands on: rows as Arrow, and the code that makes them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa

from mos.data import chat, encoder, messages, readers, rows, templates
from mos.data.corpora import corpus_of


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Stream batches into a file that `Dataset.from_file` maps into memory."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def code_hash(corpus: str) -> str:
    """Hash of what turns the files of a corpus into ids: the code for it, and the tokenizers."""
    converter = sys.modules[corpus_of(corpus).rows.__module__]
    digest = hashlib.sha256()
    for module in (readers, rows, templates, messages, converter, chat, encoder):
        digest.update(Path(str(module.__file__)).read_bytes())
    for package in ("tokenizers", "transformers"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()
