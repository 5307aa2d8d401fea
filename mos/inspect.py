"""Look at data and prompts as a model sees them: `python -m mos.inspect data=codealpaca`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import NonNegativeInt
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from mos.cli import command
from mos.config import TrainConfig, validate
from mos.console import console, note, say
from mos.data.chat import IGNORE_INDEX
from mos.data.corpora import CORPORA, check_source
from mos.data.rows import Statistics
from mos.errors import MissingFileError
from mos.preflight import check_benchmark_data, check_model_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mos.data.dataset import TrainingData


class InspectConfig(TrainConfig):
    """The keys of configs/inspect.yaml beside those of mos.train."""

    what: Literal["data", "corpora", "prompts"]
    examples: NonNegativeInt


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
    supervised = [label != IGNORE_INDEX for label in row["labels"]]
    pairs = zip(supervised, row["input_ids"], strict=True)
    for trained, stretch in groupby(pairs, lambda pair: pair[0]):
        ids = [number for _, number in stretch]
        part = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
        text.append(str(part).replace("\n", "⏎\n"), style="bold green" if trained else "dim")
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
    for line in statistics["notes"]:
        console.print(f"note: {line}", highlight=False, markup=False)
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


def inspect_corpora(config: InspectConfig, corpora: Mapping[str, str | Path]) -> None:
    """Print what training would see of corpora.

    Args:
        config: validated, as for mos.train.
        corpora: name -> where it is.
    """
    from mos.data.dataset import load_training_data
    from mos.modeling import tokenizer_of

    tokenizer = tokenizer_of(config.model.dump(), config.paths.cache_dir)
    statistics = {}
    for corpus, source in corpora.items():
        settings = {**config.data.dump(), "corpus": corpus, "source": source, "eval_size": 0}
        cache_dir = config.paths.cache_dir
        data = load_training_data(tokenizer, cache_dir=cache_dir, **settings)
        show(corpus, data, tokenizer, config.examples)
        statistics[corpus] = data.statistics
    console.print(statistics_table(statistics))


def inspect_prompts(config: InspectConfig) -> None:
    """Build all prompts of the benchmarks; print how many there are, a hash over them, the first.

    The hash tells whether two checkouts, tokenizers or copies of the data make the same prompts.
    """
    from mos.evaluation.jobs import build_benchmarks
    from mos.modeling import tokenizer_of

    tokenizer = tokenizer_of(config.model.dump(), config.paths.cache_dir)
    say(f"{'benchmark':<10} {'prompts':>7} {'characters':>11}  sha256")
    for name, benchmark in build_benchmarks(config.eval, tokenizer).items():
        prompts = [request.prompt for request in benchmark.requests]
        digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
        say(f"{name:<10} {len(prompts):>7} {sum(map(len, prompts)):>11}  {digest}")
        if benchmark.partial:
            say(f"{'':<10} partial: {benchmark.partial}")
        for request in benchmark.requests[: config.examples]:
            console.print(Panel(Text(request.prompt), title=request.id, title_align="left"))


def inspect(cfg: DictConfig) -> None:
    """Print what a composed config asks to see of data or prompts.

    Args:
        cfg: configs/inspect.yaml composed with overrides.

    Raises:
        UserError: a wrong config; missing or unusable data.
    """
    config = validate(cfg, InspectConfig)
    data = config.data
    if config.what == "prompts":
        check_benchmark_data(config.eval)
        check_model_files(config.model)
        note(f"building the prompts of {', '.join(config.eval.benchmarks)}")
        inspect_prompts(config)
        return
    corpora: dict[str, str | Path] = {data.corpus: data.source}
    if config.what == "corpora":
        corpora = {**found_corpora(Path(config.paths.data_dir))}
    else:
        check_source(data.corpus, data.source)
    check_model_files(config.model)
    note(f"reading {', '.join(corpora)}")
    inspect_corpora(config, corpora)


@command("inspect")
def main(cfg: DictConfig) -> None:
    """The command line around `inspect`."""
    inspect(cfg)


if __name__ == "__main__":
    main()
