"""The tokenised corpus: converted, encoded, cached by content, split.

Any number of processes may ask for the same corpus at once: one builds the cache entry, all read
it memory-mapped.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import random
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, concatenate_datasets, interleave_datasets
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase

from mos.data import chat, messages, rows, super_ni
from mos.data import tokenizer as tokenizers
from mos.data.chat import IGNORE_INDEX, LabelMask, encode_by_prefixes, eos_of, render_training
from mos.data.corpora import corpus_of, corpus_rows, listed, no_rows, source_files
from mos.data.fetch import from_hub, is_on_hub
from mos.data.rows import Example, OnBadRow, Report
from mos.errors import DataError, UserError
from mos.files import build_once, hash_file, hash_json, write_json

LONGEST = 2_000_000  # characters of a conversation: encoding takes some 400 bytes for each
BATCH, BATCH_CHARACTERS = 1000, 4_000_000  # encoded at a time, whichever comes first
HALF_A_PAIR = re.compile("[\ud800-\udfff]")
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
        fill = {"input_ids": self.pad_token_id, "labels": IGNORE_INDEX, "attention_mask": 0}
        rows = {name: [torch.tensor(feature[name]) for feature in features] for name in fill}
        return {name: pad_sequence(rows[name], True, fill[name]) for name in fill}


@dataclass(frozen=True)
class TrainingData:
    """What a trainer needs of a corpus.

    Attributes:
        train: columns input_ids, attention_mask, labels, length.
        eval: the same columns; None for `eval_size=0`.
        test: the same columns, of rows that no choice was made on; None for `test_size=0`.
        collator: rows -> padded batch.
        fingerprint: hash of files, tokenizer, options and code.
        statistics: see `Report`, plus `train_rows`, `eval_rows` and `test_rows`.
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
    source: str | Path | Sequence[str | Path],
    cache_dir: str | Path,
    max_seq_length: int = 512,
    eval_size: int = 1024,
    test_size: int = 0,
    seed: int = 42,
    max_rows: int | None = None,
    on_bad_row: OnBadRow = "error",
    label_mask: LabelMask = "reference",
    split: str | None = None,
    weights: Sequence[float] | None = None,
) -> TrainingData:
    """Convert, encode, cache and split a corpus (protocol sections 7, 8).

    Args:
        corpus: a name of `mos.data.corpora.CORPORA`.
        source: folder with the original files; or several, one after the other, or mixed by
            `weights`. For "messages" also a data set of the hub.
        cache_dir: where encoded corpora are kept.
        max_seq_length: tokens after which a row is cut.
        eval_size: rows held out, as the reference holds out 1024; 0 for none. Where a source has
            validation files, at most so many of their rows are taken in place of its own.
        test_size: further rows held out, drawn after those.
        seed: of conversion, `max_rows`, mixture and split; the reference's is 42 whatever the run's
            seed.
        max_rows: a random subset of the converted rows of a source, in their order; None for all.
        on_bad_row: "error" raises the first bad row, "skip" counts and reports them.
        label_mask: "reference" or "clean", see `mos.data.chat.render_training`.
        split: of a data set of the hub; None for all, which are then told apart as files are.
        weights: share of each source. Each row is taken once, until one source has no more.

    Raises:
        MissingFileError, DataError: as `check_source` and by bad rows.
        UserError: an unsafe tokenizer, or fewer rows than are held out.
    """
    tokenizers.check_tokenizer(tokenizer)
    options = {
        "corpus": corpus,
        "tokenizer": tokenizers.fingerprint(tokenizer),
        "max_seq_length": max_seq_length,
        "seed": seed,
        "on_bad_row": on_bad_row,
        "label_mask": label_mask,
        "code": code_hash(corpus),
    }

    def encoded(source: str | Path, max_rows: int | None) -> _Encoded:
        files = [(path.name, hash_file(path)) for path in source_files(corpus, source)]
        identity = {**options, "files": files, "max_rows": max_rows}
        built = []

        def build(target: Path) -> None:
            built.append(target)
            report = Report(on_bad_row)
            examples = _examples(corpus, source, seed, max_rows, report)
            batches = _batches_of(examples, tokenizer, max_seq_length, label_mask, report)
            write_arrow(target / ROWS, SCHEMA, batches)
            if report.rows == 0:
                raise no_rows(corpus, source, report)
            write_json(target / STATISTICS, vars(report))

        entry = build_once(Path(cache_dir) / "training_data" / hash_json(identity)[:24], build)
        statistics = json.loads((entry / STATISTICS).read_text())
        return _Encoded(Dataset.from_file(str(entry / ROWS)), statistics, identity, not built)

    sources = [_here(corpus, each, split, cache_dir) for each in listed(source)]
    parts = [encoded(each, max_rows) for each in sources]
    rows = _mixed([part.rows for part in parts], weights, seed)
    held_out = rows
    given = []
    if corpus == "messages":
        given = [path for each in sources for path in messages.validation_files(Path(each))]
    if given and eval_size + test_size:
        validation = [encoded(path, None) for path in given]
        held_out = concatenate_datasets([part.rows for part in validation])
        parts += validation
    statistics = _sum([part.statistics for part in parts])
    if weights:
        total = sum(len(part.rows) for part in parts)
        statistics["notes"].append(f"data.weights: mixed {len(rows):,} of {total:,} rows.")
    if held_out is rows:
        chosen = split_indices(len(rows), eval_size, test_size, seed)
    else:
        order = np.random.default_rng(seed).permutation(len(held_out))
        chosen = np.arange(len(rows)), order[:eval_size], order[eval_size:][:test_size]
        if test_size and not len(chosen[2]):
            raise UserError(
                f"data.test_size={test_size}: data.eval_size={eval_size} takes all of the"
                f" {len(held_out)} rows of {', '.join(path.name for path in given)}: lower it."
            )
    names = ("train_rows", "eval_rows", "test_rows")
    statistics |= {name: len(part) for name, part in zip(names, chosen, strict=True)}
    identity = [*(part.identity for part in parts), weights, eval_size, test_size]
    assert tokenizer.pad_token_id is not None
    return TrainingData(
        rows.select(chosen[0], keep_in_memory=True),
        held_out.select(chosen[1], keep_in_memory=True) if eval_size else None,
        held_out.select(chosen[2], keep_in_memory=True) if test_size else None,
        Collator(tokenizer.pad_token_id),
        hash_json(identity)[:24],
        statistics,
        cached=all(part.cached for part in parts),
    )


class _Encoded(NamedTuple):
    rows: Dataset
    statistics: dict[str, Any]
    identity: dict[str, Any]
    cached: bool


def _here(corpus: str, source: str | Path, split: str | None, cache_dir: str | Path) -> str | Path:
    """Where a source is on this machine; one of the hub is fetched."""
    if corpus == "messages" and is_on_hub(source):
        return from_hub(str(source), split, cache_dir)
    if split:
        raise UserError(f"data.split={split}: {source} is not of the hub; name the file itself.")
    return source


def _mixed(sources: list[Dataset], weights: Sequence[float] | None, seed: int) -> Dataset:
    if weights is None:
        return sources[0] if len(sources) == 1 else concatenate_datasets(sources)
    shares = [weight / sum(weights) for weight in weights]
    return interleave_datasets(sources, shares, seed)


def _sum(statistics: list[dict[str, Any]]) -> dict[str, Any]:
    total = statistics[0]
    for each in statistics[1:]:
        for name, value in each.items():
            if name == "longest":
                total[name] = max(total[name], value)
            elif name != "on_bad_row":
                total[name] += value
    return total


def _examples(
    corpus: str, source: str | Path, seed: int, max_rows: int | None, report: Report
) -> Iterator[Example]:
    """Rows that can be encoded, or a sample of `max_rows` of them in their order."""
    rows = _encodable(corpus_rows(corpus, source, seed, report), report)
    if max_rows is None:
        return rows
    if max_rows < 1:
        raise UserError(f"data.max_rows={max_rows}: expected at least 1, or null for all rows.")
    everything = list(rows)
    count = len(everything)
    chosen = random.Random(seed).sample(range(count), min(max_rows, count))
    return (everything[i] for i in sorted(chosen))


def _encodable(examples: Iterable[Example], report: Report) -> Iterator[Example]:
    for example in examples:
        contents = "".join(message["content"] for message in example.row["messages"])
        reason = ""
        if len(contents) > LONGEST:
            reason = f"{len(contents):,} characters; expected at most {LONGEST:,}"
        elif half := HALF_A_PAIR.search(contents):
            reason = f"the content holds half of a surrogate pair (\\u{ord(half[0]):04x})"
        if reason:
            report.bad(DataError(example.path, example.line, f"row {example.row['id']}: {reason}."))
            continue
        report.read += 1
        yield example


def _batches_of(
    examples: Iterator[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_seq_length: int,
    label_mask: LabelMask,
    report: Report,
) -> Iterator[pa.RecordBatch]:
    """Encode rows as Arrow batches of `SCHEMA`, without those that nothing is trained on."""
    eos = eos_of(tokenizer)
    for batch in _batches(examples):
        rendered = [render_training(e.row["messages"], eos, label_mask) for e in batch]
        encoded = encode_by_prefixes(rendered, tokenizer, max_seq_length)
        kept = [row for e, row in zip(batch, encoded, strict=True) if report.add(e, row)]
        columns = {
            "input_ids": [row.input_ids for row in kept],
            "attention_mask": [np.ones(len(row.input_ids), dtype=np.int8) for row in kept],
            "labels": [row.labels for row in kept],
            "length": [len(row.input_ids) for row in kept],
        }
        yield pa.record_batch(columns, schema=SCHEMA)


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
