"""The study of docs/study.md: runs what is missing of it, then writes its tables.

    python benchmarks/study.py                          # all of it; hours, resumes where it stopped
    python benchmarks/study.py --corpora cot --rows lora_r2 mos_r8 --seeds 0
    python benchmarks/study.py --report                 # the tables of what is there
    python benchmarks/study.py --runs outputs/study     # afresh, beside the runs in the repository

Every row is trained at three learning rates with seed 0. The best of them, by the loss of the
validation examples, is repeated with the other seeds, and so is LoRA's, the paper's one rate for
all. What the tables show is measured on test examples, which no choice is made on. `verdicts.md`
has the claims of the paper at the budgets of the study. Those of the tables that are in the
repository, in benchmarks/results/study, are copies of what is written to outputs/study_tables.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from mos.config import compose_config, validate  # noqa: E402
from mos.console import override  # noqa: E402
from mos.errors import UserError  # noqa: E402
from mos.report.claims import Comparison  # noqa: E402
from mos.report.paper import HELDOUT  # noqa: E402
from mos.report.statistics import (  # noqa: E402
    combined_interval,
    example_error,
    paired_strata,
    scores_of,
)
from mos.run import Run, finished_run  # noqa: E402

RESULTS = Path("benchmarks") / "results" / "study"
CORPORA = ("cot", "codealpaca", "superni")
SEEDS = (0, 1, 2)
STEP = 4  # between neighbouring learning rates
REFERENCE = "lora_r2"
# Row: the middle one of its learning rates, and the adapter. All but lora_r16 have the trainable
# parameters of LoRA r=2, 610,560 on SmolLM2-135M, as near as their settings get.
ROWS = {
    "lora_r2": (2e-3, "adapter=table1_lora_r2"),
    "mos_r8": (2e-3, "adapter=table2_mos_r8"),
    "pure_sharing": (2e-3, "adapter=table1_pure_sharing"),
    "lora_r16": (2e-3, "adapter=table2_lora_r16"),
    "random_scaling": (2e-3, "adapter=table1_random_scaling"),
    "subset_selection": (2e-3, "adapter=table1_subset_selection adapter.r=30"),
    "mos_r8_sp": (2e-3, "adapter=table2_mos_r8 adapter.private_rank=0"),
    "mos_r8_vs": (2e-3, "adapter=table2_mos_r8 adapter.shards_per_vector=1"),
    "mos_r8_pd": (2e-3, "adapter=table2_mos_r8 adapter.pair_dissociation=false"),
    "prolora_r8": (2e-3, "adapter=prolora adapter.r=8"),
    "tied_lora_r371": (2e-3, "adapter=tied_lora adapter.r=371"),
    "vera_r576": (8e-3, "adapter=vera adapter.r=576"),
    "rslora_r2": (2e-3, "adapter=rslora adapter.r=2"),
    "dora_r1": (2e-3, "adapter=dora adapter.r=1"),
    "hira_r2": (8e-3, "adapter=hira adapter.r=2"),
    "vblora": (8e-3, "adapter=vblora adapter.num_vectors=32"),
    "lily_r10": (2e-3, "adapter=lily adapter.r=10"),
    "randlora_r96": (2e-3, "adapter=randlora adapter.r=96 adapter.randlora_alpha=1920"),
}


@dataclass(frozen=True)
class Claim:
    """The paper says that `row` loses less than `other`, by more than `threshold` nats a token."""

    text: str
    row: str
    other: str
    threshold: float = 0.0


CLAIMS = (
    Claim("Pure sharing loses to LoRA at the same budget", "lora_r2", "pure_sharing"),
    Claim("Random scaling improves pure sharing", "random_scaling", "pure_sharing"),
    Claim("Subset selection improves pure sharing", "subset_selection", "pure_sharing"),
    Claim("Subset selection beats LoRA at the same budget", "subset_selection", "lora_r2"),
    Claim("MoS beats LoRA at the same budget", "mos_r8", "lora_r2"),
    Claim("MoS beats pure sharing at the same budget", "mos_r8", "pure_sharing"),
    Claim("MoS beats PRoLoRA at the same budget", "mos_r8", "prolora_r8"),
    Claim("MoS beats Tied LoRA at the same budget", "mos_r8", "tied_lora_r371"),
    Claim("MoS beats VeRA", "mos_r8", "vera_r576"),
    Claim("MoS matches LoRA with 8x the parameters, within 0.01", "mos_r8", "lora_r16", -0.01),
    Claim("8x the parameters improve LoRA", "lora_r16", "lora_r2"),
    Claim("Shard privatization helps", "mos_r8", "mos_r8_sp"),
    Claim("Vector sharding helps", "mos_r8", "mos_r8_vs"),
    Claim("Pair dissociation helps", "mos_r8", "mos_r8_pd"),
)


def overrides(args: argparse.Namespace, corpus: str, row: str) -> list[str]:
    """The command line of a row's runs, without learning rate and seed."""
    paths = {"data_dir": args.data, "output_dir": args.runs}
    return [
        f"+experiment=study_{corpus}",
        "scale=study",
        *(override(f"paths.{name}", path) for name, path in paths.items()),
        *ROWS[row][1].split(),
    ]


def grid(row: str) -> list[float]:
    middle = ROWS[row][0]
    return [middle / STEP, middle, middle * STEP]


def finished(
    args: argparse.Namespace, corpus: str, row: str, rate: float, seed: int = 0
) -> Run | None:
    """A run of the study, if it is complete."""
    given = overrides(args, corpus, row)
    return _finished(*given, *_routed(given), f"trainer.learning_rate={rate:g}", f"seed={seed}")


@cache
def _finished(*given: str) -> Run | None:
    return finished_run(validate(compose_config(list(given))))


def _routed(given: list[str]) -> list[str]:
    """Routing follows the seed in every row that has one."""
    return (
        ["adapter.routing_seed=${seed}"] if "routing_seed" in compose_config(given).adapter else []
    )


def best_rate(args: argparse.Namespace, corpus: str, row: str) -> float | None:
    """The rate with the lowest validation loss; None as long as one of the three is missing."""
    runs = {rate: finished(args, corpus, row, rate) for rate in grid(row)}
    losses = {
        rate: run.results.train.eval_loss
        for rate, run in runs.items()
        if run and run.results and run.results.train
    }
    return min(losses, key=losses.__getitem__) if len(losses) == len(runs) else None


def sweep(given: list[str], rates: list[float], seeds: list[int]) -> None:
    """Train what is missing of a row, one run after the other; a failed one is left for later."""
    values = {"trainer.learning_rate": rates, "seed": seeds}
    swept = [f"{key}={','.join(f'{v:g}' for v in value)}" for key, value in values.items()]
    command = [sys.executable, "-m", "mos.train", "-m", *given, *swept, *_routed(given)]
    subprocess.run(command, cwd=REPO)


def plan(args: argparse.Namespace) -> Iterator[tuple[list[str], list[float], list[int]]]:
    """The sweeps of the study in their order: what later ones train depends on earlier ones."""
    for corpus in args.corpora:
        for row in args.rows:
            yield overrides(args, corpus, row), grid(row), [args.seeds[0]]
        for_all = best_rate(args, corpus, REFERENCE)
        for row in args.rows:
            chosen = {best_rate(args, corpus, row), for_all} - {None}
            if chosen and args.seeds[1:]:
                yield overrides(args, corpus, row), sorted(chosen), args.seeds[1:]


def gain(args: argparse.Namespace, corpus: str, claim: Claim, for_all: bool) -> Comparison | None:
    """How much less the claim's row loses than the other, paired by seed and by example.

    Args:
        for_all: both at LoRA's best learning rate; False: each at its own best.

    Returns:
        The interval over seeds and examples, in nats; None if a run is missing.
    """
    found = []
    for row in (claim.row, claim.other):
        rate = best_rate(args, corpus, REFERENCE if for_all else row)
        runs = {s: rate and finished(args, corpus, row, rate, s) for s in args.seeds}
        found.append({seed: run for seed, run in runs.items() if run})
    seeds = [seed for seed in args.seeds if all(seed in runs for runs in found)]
    if not seeds:
        return None
    row, other = ([scores_of(runs[seed].path, [HELDOUT]) for seed in seeds] for runs in found)
    strata = paired_strata(row, other)
    if strata is None:
        raise UserError(f"{corpus}: {claim.row} and {claim.other} have other held-out examples.")
    losses = [{seed: _loss(runs[seed]) for seed in seeds} for runs in found]
    interval = combined_interval(
        [losses[1][seed] - losses[0][seed] for seed in seeds],
        example_error([strata]),
    )
    interval = replace(interval, decimals=4)
    return Comparison(claim.row, claim.other, tuple(seeds), interval, examples=True)


def _loss(run: Run) -> float:
    return run.results.metrics["heldout"].metrics["loss"]


def verdicts(args: argparse.Namespace) -> str:
    """A table of the claims about rows that were trained."""
    lines = [
        "| corpus | claim | seeds | gain, each at its best rate | | gain, all at LoRA's rate | |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for corpus in args.corpora:
        for claim in CLAIMS:
            found = [gain(args, corpus, claim, for_all) for for_all in (False, True)]
            if any(found):
                seeds = "/".join(str(len(c.seeds)) if c else "0" for c in found)
                shown = (
                    f"{c.interval} | {c.verdict(claim.threshold)}" if c else "– | –" for c in found
                )
                lines.append(f"| {corpus} | {claim.text} | {seeds} | {' | '.join(shown)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/full", help="folder of the corpora")
    parser.add_argument("--runs", default=str(RESULTS / "runs"), help="folder of the run folders")
    parser.add_argument("--out", default="outputs/study_tables", help="folder of the tables")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.report:
        for given, rates, seeds in plan(args):
            sweep(given, rates, seeds)
    tables = [override("runs", args.runs), override("out", args.out), "yardstick=heldout.loss"]
    tables += ["rows=[experiment,method.label,method.rank]", "columns=[trainer.learning_rate]"]
    tables += ["value=train.eval_loss", "scale=study"]
    subprocess.run([sys.executable, "-m", "mos.summarize", *tables], cwd=REPO)
    (REPO / args.out / "verdicts.md").write_text(verdicts(args), "utf-8")


if __name__ == "__main__":
    main()
