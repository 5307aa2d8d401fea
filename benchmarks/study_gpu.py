"""The study's rows on one big GPU, several runs side by side, in a given time.

    python benchmarks/study_gpu.py --model <folder> --out <folder>                 # random words
    python benchmarks/study_gpu.py --model <folder> --out <folder> --text encoded.jsonl

For a machine with torch, transformers, peft and accelerate, without Hydra, vLLM or bitsandbytes
(`mos.adapters` also needs pydantic and omegaconf, which may lie in a folder on PYTHONPATH). All
linear layers of all blocks are adapted. `--text` takes examples as study.py writes them to
data/cache/study-cot.jsonl. The tables are those of study.py: `--report --out` prints them. What the
time does not suffice for is left, and the same command goes on there.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from study_rows import ALL_LINEAR, Job, Setting, Table, capacity, keep, read, revision, search, text

ROWS = ("lora_r2", "mos_r8", "lora_r16")
LOADS = (1.0, 0.5, 2.0)  # rates are searched at the first
RATES = {"words": 2.5e-3, "text": 1.4e-3}
SEEDS = {"words": (0, 1), "text": (0, 1, 2, 3)}


def wave(table: Table, epochs: int, of_text: bool) -> list[Job]:
    """All runs that can be trained now: what is trained later may depend on them."""
    kind = "text" if of_text else "words"
    loads = (None,) if of_text else LOADS
    jobs = []
    for row in ROWS:
        first = Job(row, loads[0], RATES[kind], 0, epochs)
        best, missing = search(table, first)
        jobs += missing
        if best:
            jobs += [replace(best, load=load, seed=s) for load in loads for s in SEEDS[kind]]
    return [job for job in jobs if job.name not in table]


def run(job: Job, args: argparse.Namespace) -> dict[str, Any]:
    """One run, in a process of its own."""
    setting = Setting(
        args.model, ALL_LINEAR, blocks=args.blocks, unit=args.unit, batch=args.batch,
        device=args.device,
    )  # fmt: skip
    if job.load is None:
        return text(setting, job.row, args.text, args.examples, job.rate, job.seed, job.epochs)
    return capacity(setting, job.row, job.load, job.rate, job.seed, job.epochs)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder of the tables")
    parser.add_argument("--text", type=Path, help="examples, encoded; default: random words")
    parser.add_argument("--examples", type=int, default=32_000)
    parser.add_argument("--blocks", type=int, default=30, help="of the model, all adapted")
    parser.add_argument("--unit", type=int, default=610_560, help="parameters of LoRA r=2")
    parser.add_argument("--epochs", type=int, help="default: 100, of text 1")
    parser.add_argument("--batch", type=int, help="at load 1; default: 32, of text 16")
    parser.add_argument("--jobs", type=int, default=6, help="runs side by side")
    parser.add_argument("--minutes", type=float, default=22, help="no run begins after these")
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args(arguments)
    args.epochs = args.epochs or (1 if args.text else 100)
    args.batch = args.batch or (16 if args.text else 32)
    deadline = time.monotonic() + 60 * args.minutes
    table, code = read(args.out), revision()
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        while (jobs := wave(table, args.epochs, bool(args.text))) and time.monotonic() < deadline:
            jobs = jobs[: args.jobs]  # no more, so that the deadline is seen between them
            for job, done in zip(jobs, pool.map(partial(run, args=args), jobs), strict=True):
                keep(args.out, table, job, done, code)
    print(f"{len(wave(table, args.epochs, bool(args.text)))} known runs are left", flush=True)


if __name__ == "__main__":
    main()
