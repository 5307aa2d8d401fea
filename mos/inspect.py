"""Look at data and prompts as a model sees them: `python -m mos.inspect data=codealpaca`."""

from __future__ import annotations

import hashlib
from itertools import groupby
from typing import TYPE_CHECKING, Any, Literal

from omegaconf import DictConfig
from pydantic import NonNegativeInt
from rich.panel import Panel
from rich.text import Text

from mos.__main__ import command
from mos.config import TrainConfig, validate
from mos.console import console, note, say
from mos.data.chat import IGNORE_INDEX
from mos.data.corpora import check_source
from mos.preflight import check_benchmark_data, check_model_files

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class InspectConfig(TrainConfig):
    """The keys of configs/inspect.yaml beside those of mos.train."""

    what: Literal["data", "prompts"]
    examples: NonNegativeInt


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


def inspect_data(config: InspectConfig) -> None:
    """Print what training would see of a corpus: what became of its rows, and the first of them."""
    from mos.data.dataset import load_training_data
    from mos.models.loading import tokenizer_of

    tokenizer = tokenizer_of(config.model.dump(), config.paths.cache_dir)
    settings = config.data.dump() | {"eval_size": 0, "test_size": 0}
    data = load_training_data(tokenizer, cache_dir=config.paths.cache_dir, **settings)
    console.rule(f"[bold]{config.data.corpus}[/bold] {data.fingerprint}")
    for line in data.summary():
        console.print(line, highlight=False, markup=False)
    for i in range(min(config.examples, len(data.train))):
        console.print(render_example(data.train[i], tokenizer, f"training row {i}:"))
    counts = data.statistics
    console.print(
        f"{counts['tokens']:,} tokens in {counts['rows']:,} rows,"
        f" {counts['supervised_tokens']:,} of them trained on; the longest row has"
        f" {counts['longest']:,}",
        highlight=False,
    )


def inspect_prompts(config: InspectConfig) -> None:
    """Build all prompts of the benchmarks; print how many there are, a hash over them, the first.

    The hash tells whether two checkouts, tokenizers or copies of the data make the same prompts.
    """
    from mos.evaluation.jobs import build_benchmarks
    from mos.models.loading import tokenizer_of

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
    check_source(data.corpus, data.source)
    check_model_files(config.model)
    note(f"reading {data.corpus}")
    inspect_data(config)


@command("inspect")
def main(cfg: DictConfig) -> None:
    """The command line around `inspect`."""
    inspect(cfg)


if __name__ == "__main__":
    main()
