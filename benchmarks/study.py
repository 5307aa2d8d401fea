"""The study of docs/study.md: runs what is missing of it, then writes its tables.

    python benchmarks/study.py                          # all of it; hours, resumes where it stopped
    python benchmarks/study.py --corpora cot --rows lora_r2 mos_r8 --seeds 0
    python benchmarks/study.py --report                 # the tables of what is there
    python benchmarks/study.py --runs outputs/study     # afresh, beside the runs in the repository

Every row is trained at three learning rates with seed 0. The best of them, by the loss of the
validation examples, is repeated with the other seeds, and so is LoRA's, the paper's one rate for
all. What the tables show is measured on test examples, which no choice is made on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))

from mos.config import compose_config, validate  # noqa: E402
from mos.console import override  # noqa: E402
from mos.identity import finished_run  # noqa: E402
from mos.run import Run  # noqa: E402
from mos.training.heldout import HeldOut  # noqa: E402

RESULTS = Path("benchmarks") / "results" / "study"
CORPORA = ("cot", "codealpaca", "superni")
SEEDS = (0, 1, 2)
STEP = 4  # between neighbouring learning rates
REFERENCE = "lora_r2"
# Row: the middle one of its learning rates, and the adapter. All but lora_r16 have the trainable
# parameters of LoRA r=2, as near as `mos plan budget=610560 model=smollm2_135m` gets.
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
    "rasa_r2": (2e-3, "adapter=rasa adapter.r=2"),
}


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


def finished(args: argparse.Namespace, corpus: str, row: str, rate: float) -> Run | None:
    """The run of seed 0, if it is complete."""
    given = [*overrides(args, corpus, row), f"trainer.learning_rate={rate}"]
    return finished_run(validate(compose_config(given)))


def best_rate(args: argparse.Namespace, corpus: str, row: str) -> float | None:
    """The rate with the lowest validation loss; None as long as one of the three is missing."""
    runs = {rate: finished(args, corpus, row, rate) for rate in grid(row)}
    losses = {rate: run.results["train"]["eval_loss"] for rate, run in runs.items() if run}
    return min(losses, key=losses.__getitem__) if len(losses) == len(runs) else None


def sweep(given: list[str], rates: list[float], seeds: list[int]) -> None:
    """Train what is missing of a row, one run after the other; a failed one is left for later."""
    values = {"trainer.learning_rate": rates, "seed": seeds}
    swept = [f"{key}={','.join(f'{v:g}' for v in value)}" for key, value in values.items()]
    if "routing_seed" in compose_config(given).adapter:
        swept.append("adapter.routing_seed=${seed}")
    subprocess.run([sys.executable, "-m", "mos.train", "-m", *given, *swept], cwd=REPO)


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


def losses(run: Run) -> dict[str, tuple[float, int]]:
    """Of each held-out example the sum of its tokens' losses (nats), and their number."""
    lines = (run.path / "eval" / "heldout" / "records.jsonl").read_text("utf-8").splitlines()
    scores = ((record["id"], record["scores"]) for record in map(json.loads, lines))
    return {name: (score["nll"], score["tokens"]) for name, score in scores}


def paired(args: argparse.Namespace) -> str:
    """Seed 0 at each rate: test loss, and its difference to LoRA's best, example by example."""
    lines = [
        "| corpus | row | learning rate | loss | difference to LoRA r=2 at its best |",
        "| --- | --- | --- | --- | --- |",
    ]
    for corpus in args.corpora:
        best = best_rate(args, corpus, REFERENCE)
        reference = best and finished(args, corpus, REFERENCE, best)
        if not reference:
            continue
        base = losses(reference)
        for row, rate in ((name, rate) for name in args.rows for rate in grid(name)):
            if (run := finished(args, corpus, row, rate)) and run.path != reference.path:
                pairs = [(nll, base[name][0], n) for name, (nll, n) in losses(run).items()]
                difference = HeldOut(0, [a - b for a, b, _ in pairs], [n for *_, n in pairs])
                loss = run.results["metrics"]["heldout"]["loss"]
                shown = f"{difference.loss:+.4f} ± {difference.stderr:.4f}"
                lines.append(f"| {corpus} | {row} | {rate:g} | {loss:.4f} | {shown} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="data/full", help="folder of the corpora")
    parser.add_argument("--runs", default=str(RESULTS / "runs"), help="folder of the run folders")
    parser.add_argument("--out", default=str(RESULTS), help="folder of the tables")
    parser.add_argument("--corpora", nargs="+", choices=CORPORA, default=list(CORPORA))
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if not args.report:
        for given, rates, seeds in plan(args):
            sweep(given, rates, seeds)
    tables = [override("runs", args.runs), override("out", args.out), "yardstick=heldout.loss"]
    subprocess.run([sys.executable, "-m", "mos.summarize", *tables, "scale=study"], cwd=REPO)
    (REPO / args.out / "paired.md").write_text(paired(args), "utf-8")


if __name__ == "__main__":
    main()
