"""Build every prompt of the benchmarks in a data folder: `python -m eval ../shared/data`.

Prints how many there are and a hash over them, so that two checkouts, tokenizers or copies of the
data can be compared without a model.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import Any

from eval import BENCHMARKS, build_benchmark
from mos.console import fail
from mos.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    from mos.model_sources import SMOLLM2, resolve_model
    from mos.modeling import load_tokenizer

    parser = argparse.ArgumentParser(prog="python -m eval", description=__doc__)
    parser.add_argument("data_dir", type=Path, help="holds a folder for each benchmark")
    parser.add_argument("names", nargs="*", metavar="benchmark", help="all five if left out")
    parser.add_argument("--model", default=SMOLLM2, help="whose tokenizer cuts passages")
    parser.add_argument("--cache-dir", default="data/cache", help="where models are kept")
    parser.add_argument("--no-chat", action="store_true", help="bare prompts")
    parser.add_argument(
        "--show", type=int, default=0, metavar="N", help="print the first N prompts"
    )
    options = parser.parse_args(arguments)
    names = options.names or list(BENCHMARKS)
    failed = False
    try:
        tokenizer = load_tokenizer(resolve_model(options.model, options.cache_dir))
    except UserError as error:
        fail(f"{error} Going on without a tokenizer.")
        tokenizer = None
    print(f"{'benchmark':<10} {'prompts':>7} {'characters':>11} {'seconds':>7}  sha256")
    for name in names:
        try:
            report(name, options.data_dir / name, tokenizer, not options.no_chat, options.show)
        except UserError as error:
            fail(f"{name}: {error}")
            failed = True
    return 2 if failed else 0


def report(name: str, data_dir: Path, tokenizer: Any, chat: bool, show: int) -> None:
    """Print one benchmark's line: the hash is over the prompts joined by NUL."""
    started = time.perf_counter()
    benchmark = build_benchmark(name, data_dir, tokenizer, chat=chat)
    seconds = time.perf_counter() - started
    prompts = [request.prompt for request in benchmark.requests]
    digest = hashlib.sha256("\0".join(prompts).encode()).hexdigest()
    characters = sum(map(len, prompts))
    print(f"{name:<10} {len(prompts):>7} {characters:>11} {seconds:>7.2f}  {digest}")
    if benchmark.partial:
        print(f"{'':<10} partial: {benchmark.partial}")
    for request in benchmark.requests[:show]:
        print(f"--- {request.id} {request.decoding}\n{request.prompt}⏎")


if __name__ == "__main__":
    sys.exit(main())
