"""Records of an evaluation to read: `mos show RUN BENCHMARK [wrong] [n=5] [paths.data_dir=DIR]`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mos.console import console, exit_on_user_error, override, printable, say
from mos.errors import MissingFileError, UserError, unknown
from mos.records import Record, read_records
from mos.run import Run

USAGE = """usage: mos show RUN BENCHMARK [wrong] [n=5] [paths.data_dir=DIR]

Prints prompt, answer, what was parsed of it, and the target of n records of a run's evaluation.
`wrong` leaves out those with a full score. BENCHMARK may be heldout: losses of examples. Prompts
are built from the benchmark's files below DIR, by default the samples."""


def records(run: Run, benchmark: str, wrong: bool = False) -> Iterator[Record]:
    """The records of a run's evaluation.

    Args:
        wrong: only those that have less than the full score.

    Raises:
        UserError: the run was not evaluated on that benchmark, or a record is damaged.
    """
    file = run.path / "eval" / benchmark / "records.jsonl"
    if not file.is_file():
        found = [path.parent.name for path in run.path.glob("eval/*/records.jsonl")]
        if found:
            raise unknown("benchmark of this run", benchmark, found)
        raise MissingFileError(f"{run.path} has no evaluation (a run is a folder such as seed0).")
    for record in read_records(file.parent):
        if not (wrong and all(score == 1 for score in record.scores.values())):
            yield record


def prompts(run: Run, benchmark: str, paths: Sequence[str] = ()) -> dict[str, str]:
    """The prompts of a benchmark as the run's config builds them, by their sha256; {} where it
    cannot.

    Args:
        paths: overrides of the caller's `paths`. Those in the run's config do not count.
    """
    from eval import BENCHMARKS

    if benchmark not in BENCHMARKS:
        return {}
    from mos.config import compose_config, resolved
    from mos.evaluation.jobs import build_benchmarks
    from mos.modeling import tokenizer_of

    config = run.config
    options = config.eval.benchmarks.get(benchmark)
    if options is None:  # evaluated otherwise than the run was configured
        return {}
    try:
        own = resolved(compose_config([f"eval=[base,{benchmark}]", *paths], "evaluate"))
        options = options.but(data_dir=own["eval"]["benchmarks"][benchmark]["data_dir"])
        tokenizer = tokenizer_of(config.model.dump(), own["paths"]["cache_dir"])
        built = build_benchmarks(config.eval.but(benchmarks={benchmark: options}), tokenizer)
    except (UserError, OSError) as error:
        say(f"prompts are not shown: {error}")
        return {}
    return {request.prompt_sha256: request.prompt for request in built[benchmark].requests}


def show(record: Record, prompt: str | None) -> None:
    """Print one record."""
    console.rule(printable(record.id), align="left")
    if prompt is not None:
        _part("prompt", prompt)
    for name in ("output", "parsed", "target"):
        if name in record.model_fields_set:
            _part(name, getattr(record, name))
    _part("scores", "  ".join(f"{name} {value:.4g}" for name, value in record.scores.items()))


def _part(title: str, value: Any) -> None:
    lines = str(value).splitlines() or [""]
    console.print(f"[bold]{title}")
    for line in lines:
        console.print(f"  {printable(line)}", markup=False, highlight=False)


def main() -> None:
    """Read the command line, and print."""
    arguments = sys.argv[1:]
    if len(arguments) < 2 or {"-h", "--help"} & set(arguments):
        print(USAGE)
        sys.exit(0 if len(arguments) != 1 or arguments[0] in ("-h", "--help") else 2)
    folder, benchmark, *options = arguments
    with exit_on_user_error():
        wrong, n, paths = False, 5, []
        for option in options:
            key, _, value = option.partition("=")
            if option == "wrong":
                wrong = True
            elif key == "n" and value.isdecimal():
                n = int(value)
            elif key == "paths.data_dir":
                paths.append(override(key, value))
            else:
                raise UserError(f"{option}: expected wrong, n=<number> or paths.data_dir=<folder>.")
        run = Run(Path(folder).expanduser())
        chosen = list(islice(records(run, benchmark, wrong), n))
        texts = prompts(run, benchmark, paths) if chosen else {}
        if texts and not any(record.prompt_sha256 in texts for record in chosen):
            say(
                "prompts are not shown: the run had other files of this benchmark; give"
                " paths.data_dir="
            )
        for record in chosen:
            show(record, texts.get(record.prompt_sha256 or ""))
        if not chosen:
            say("no such record")


if __name__ == "__main__":
    main()
