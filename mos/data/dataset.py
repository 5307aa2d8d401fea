"""The tokenised corpus: converted, encoded, cached by content, split.

Any number of processes may ask for the same corpus at once: one builds the cache entry, all read
it memory-mapped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import random
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from mos.data import chat, messages, rows, super_ni
from mos.data import tokenizer as tokenizers
from mos.data.chat import IGNORE_INDEX, LabelMask, encode_by_prefixes, eos_of, render_training
from mos.data.corpora import corpus_of, corpus_rows, no_rows, source_files
from mos.data.rows import Example, OnBadRow, Report, Statistics
from mos.errors import DataError, UserError
from mos.files import build_once, hash_file, hash_json, write_json

logger = logging.getLogger(__name__)

LONGEST = 2_000_000  # characters of a conversation: encoding takes some 400 bytes for each
BATCH, BATCH_CHARACTERS = 1000, 4_000_000  # encoded at a time, whichever comes first
ROWS = "rows.arrow"
STATISTICS = "statistics.json"
LISTS = pa.list_(pa.int32())
SCHEMA = pa.schema(
    {
        "input_ids": LISTS,
        "attention_mask": pa.list_(pa.int8()),
        "labels": LISTS,
        "length": pa.int32(),
    }
)


@dataclass(frozen=True)
class Collator:
    """Pads rows on the right to the longest of the batch (protocol section 8).

    Labels are padded with -100 by position, so that an EOS stays supervised where it is also the
    pad token.

    Attributes:
        pad_token_id: for `input_ids`.
    """

    pad_token_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch rows; the tensors are (rows, longest), int64."""
        longest = max(len(feature["input_ids"]) for feature in features)
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        batch = {}
        for name, value in fill.items():
            batch[name] = torch.full((len(features), longest), value, dtype=torch.int64)
            for row, feature in zip(batch[name], features, strict=True):
                row[: len(feature[name])] = torch.as_tensor(feature[name])
        return batch


@dataclass(frozen=True)
class TrainingData:
    """What a trainer needs of a corpus.

    Attributes:
        train: columns input_ids, attention_mask, labels, length.
        eval: the same columns; None for `eval_size=0`.
        test: the same columns, of rows that no choice was made on; None for `test_size=0`.
        collator: rows -> padded batch.
        fingerprint: hash of files, tokenizer, options and code.
        statistics: see `Statistics`, plus `train_rows` and `eval_rows`.
        cached: whether the tokens were found in the cache.
    """

    train: Dataset
    eval: Dataset | None
    test: Dataset | None
    collator: Collator
    fingerprint: str
    statistics: dict[str, Any]
    cached: bool

    def summary(self) -> list[str]:
        """Lines that say what became of the rows of the source."""
        counts = self.statistics
        beyond = counts["read"] - counts["skipped"] - counts["dropped"] - counts["rows"]
        origin = "from the cache" if self.cached else "tokenised now"
        lines = [
            f"{counts['read']:,} rows read, {counts['skipped']:,} bad ones skipped,"
            f" {counts['dropped']:,} dropped with nothing left to train on,"
            f" {counts['truncated']:,} truncated"
            + (f", {beyond:,} beyond data.max_rows" if beyond else "")
            + f"; {origin}",
            f"{counts['train_rows']:,} training examples, {counts['eval_rows']:,} held out"
            + (f", {counts['test_rows']:,} more of them for the test" if self.test else ""),
        ]
        for what, key in (
            ("skipped", "bad_rows"),
            ("dropped", "first_dropped"),
            ("truncated", "first_truncated"),
        ):
            if counts[key]:
                lines.append(f"{what}, first: {counts[key][0]}")
        return lines + counts["notes"]


def load_training_data(
    tokenizer: PreTrainedTokenizerBase,
    *,
    corpus: str,
    source: str | Path,
    cache_dir: str | Path,
    max_seq_length: int = 512,
    eval_size: int = 1024,
    test_size: int = 0,
    seed: int = 42,
    max_rows: int | None = None,
    on_bad_row: OnBadRow = "error",
    label_mask: LabelMask = "reference",
) -> TrainingData:
    """Convert, encode, cache and split a corpus (protocol sections 7, 8).

    Args:
        corpus: a name of `mos.data.corpora.CORPORA`.
        source: folder with the original files.
        cache_dir: where encoded corpora are kept.
        max_seq_length: tokens after which a row is cut.
        eval_size: rows held out, as the reference holds out 1024; 0 for none.
        test_size: further rows held out, drawn after those.
        seed: of conversion, `max_rows` and split; the reference's is 42 whatever the run's seed.
        max_rows: a random subset of the converted rows, in their order; None for all.
        on_bad_row: "error" raises the first bad row, "skip" counts and reports them.
        label_mask: "reference" or "clean", see `mos.data.chat.render_training`.

    Raises:
        MissingFileError, DataError: as `check_source` and by bad rows.
        UserError: an unsafe tokenizer, or fewer rows than are held out.
    """
    tokenizers.check_tokenizer(tokenizer)
    identity = {
        "corpus": corpus,
        "files": [(path.name, hash_file(path)) for path in source_files(corpus, source)],
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "max_seq_length": max_seq_length,
        "seed": seed,
        "max_rows": max_rows,
        "on_bad_row": on_bad_row,
        "label_mask": label_mask,
        "code": code_hash(corpus),
    }
    built = []

    def build(target: Path) -> None:
        report, statistics = Report(on_bad_row), Statistics()
        examples = _examples(corpus, source, seed, max_rows, report)
        batches = _encoded(examples, tokenizer, max_seq_length, label_mask, statistics)
        write_arrow(target / ROWS, SCHEMA, batches)
        statistics.read = report.good + report.skipped
        statistics.skipped, statistics.bad_rows = report.skipped, report.bad_rows
        statistics.notes = report.notes
        built.append(target)
        if statistics.rows == 0:
            raise _nothing_left(corpus, source, report, statistics)
        write_json(target / STATISTICS, vars(statistics))

    entry = build_once(Path(cache_dir) / "training_data" / hash_json(identity)[:24], build)
    statistics = json.loads((entry / STATISTICS).read_text())
    everything = Dataset.from_file(str(entry / ROWS))
    parts = split_indices(len(everything), eval_size, test_size, seed)
    names = ("train_rows", "eval_rows", "test_rows")
    statistics |= {name: len(part) for name, part in zip(names, parts, strict=True)}
    identity |= {"eval_size": eval_size} | ({"test_size": test_size} if test_size else {})
    fingerprint = hash_json(identity)[:24]
    train, evaluation, test = (everything.select(part, keep_in_memory=True) for part in parts)
    assert tokenizer.pad_token_id is not None
    collator = Collator(tokenizer.pad_token_id)
    return TrainingData(
        train,
        evaluation if eval_size else None,
        test if test_size else None,
        collator,
        fingerprint,
        statistics,
        cached=not built,
    )


def _examples(
    corpus: str, source: str | Path, seed: int, max_rows: int | None, report: Report
) -> Iterator[Example]:
    """Rows that can be encoded; `max_rows` of them are sampled, for which all are read twice."""
    rows = _encodable(corpus_rows(corpus, source, seed, report), report)
    if max_rows is None:
        return rows
    if max_rows < 1:
        raise UserError(f"data.max_rows={max_rows}: expected at least 1, or null for all rows.")
    counting = Report(report.on_bad_row, quiet=True)
    count = sum(1 for _ in _encodable(corpus_rows(corpus, source, seed, counting), counting))
    chosen = set(random.Random(seed).sample(range(count), min(max_rows, count)))
    return (example for i, example in enumerate(rows) if i in chosen)


def _encodable(examples: Iterable[Example], report: Report) -> Iterator[Example]:
    for example in examples:
        if reason := _not_encodable([m["content"] for m in example.row["messages"]]):
            report.bad(DataError(example.path, example.line, f"row {example.row['id']}: {reason}."))
            continue
        report.good += 1
        yield example


def _not_encodable(contents: Sequence[str]) -> str | None:
    if (characters := sum(map(len, contents))) > LONGEST:
        return f"{characters:,} characters; expected at most {LONGEST:,}"
    try:
        "".join(contents).encode()
    except UnicodeEncodeError as error:
        half = ord(error.object[error.start])
        return f"the content holds half of a surrogate pair (\\u{half:04x}), which is no text"
    return None


def _encoded(
    examples: Iterator[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    label_mask: LabelMask,
    statistics: Statistics,
) -> Iterator[pa.RecordBatch]:
    """Encode rows as Arrow batches of `SCHEMA`, without those that nothing is trained on."""
    eos = eos_of(tokenizer)
    for batch in _batches(examples):
        texts = [render_training(e.row["messages"], eos, label_mask) for e in batch]
        encoded = encode_by_prefixes(texts, tokenizer, max_seq_length)
        kept = [r for e, r in zip(batch, encoded, strict=True) if statistics.add(e, r)]
        if not kept:
            continue
        lengths = np.array([len(row.input_ids) for row in kept], dtype=np.int32)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        ids = np.concatenate([row.input_ids for row in kept])
        labels = np.concatenate([row.labels for row in kept])
        ones = np.ones(len(ids), dtype=np.int8)
        yield pa.record_batch(
            [
                pa.ListArray.from_arrays(offsets, pa.array(ids)),
                pa.ListArray.from_arrays(offsets, pa.array(ones)),
                pa.ListArray.from_arrays(offsets, pa.array(labels)),
                pa.array(lengths),
            ],
            schema=SCHEMA,
        )


def _batches(examples: Iterable[Example]) -> Iterator[list[Example]]:
    batch: list[Example] = []
    characters = 0
    for example in examples:
        batch.append(example)
        characters += sum(len(message["content"]) for message in example.row["messages"])
        if len(batch) >= BATCH or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def split_indices(
    count: int, eval_size: int, test_size: int, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows to train on, to evaluate and to test: the draws of `Dataset.train_test_split`.

    Without rows to hold out, the order stays that of the corpus.

    Raises:
        UserError: fewer rows than are held out.
    """
    held_out = eval_size + test_size
    if held_out >= count:
        tested = f" and data.test_size={test_size}" if test_size else ""
        raise UserError(
            f"data.eval_size={eval_size}{tested}, but the corpus has {count} rows: hold out at most"
            f" {count - 1}, or none with 0."
        )
    order = np.random.default_rng(seed).permutation(count) if held_out else np.arange(count)
    return order[held_out:], order[:eval_size], order[eval_size:held_out]


def _nothing_left(
    corpus: str, source: str | Path, report: Report, statistics: Statistics
) -> DataError:
    if not statistics.dropped:
        return no_rows(corpus, source, report)
    return DataError(
        source,
        None,
        f"{corpus}: all {statistics.dropped} rows were dropped because no token of them is"
        f" trained on, the first: {statistics.first_dropped[0]}"
        f" ({statistics.truncated} were cut before their answer).",
        "Raise data.max_seq_length, or check that the rows have assistant messages with a weight.",
    )


def write_arrow(path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> None:
    """Stream batches into a file that `Dataset.from_file` maps into memory."""
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def code_hash(corpus: str) -> str:
    """Hash of what turns the files of a corpus into ids: the code for it, and the tokenizers."""
    converter = sys.modules[corpus_of(corpus).rows.__module__]
    digest = hashlib.sha256()
    for module in (rows, super_ni, messages, converter, chat):
        digest.update(Path(str(module.__file__)).read_bytes())
    for package in ("tokenizers", "transformers"):
        digest.update(importlib.metadata.version(package).encode())
    return digest.hexdigest()
