"""Costs of a job or a sweep before anything is loaded: `python -m mos.plan scale=paper`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.table import Table

from mos.__main__ import command
from mos.adapters import row_label
from mos.config import TrainConfig, validate
from mos.console import console, note, say

BF16 = 2
GIB = 2**30
# What a GPU that is sold with so many GB has.
CARDS = {"24 GB": 23.5 * GIB, "40 GB": 39.4 * GIB, "80 GB": 79.1 * GIB}
ASSUMED_GPU = "A100 40 GB, as the paper's"
# Dense bf16 peak of a GPU (FLOP/s); the share of it that training reaches; and how much longer it
# takes with norms in float32. Both by the bytes that are moved for LLaMA2-7B on an A100.
GPU_PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "4090": 165e12, "L40": 181e12}
GPU_SHARE = 0.43
FLOAT32_NORMS = 1.3
# SmolLM2-135M, NF4, batch 4 x 128: 2.2 s a step on two cores (4 FLOP a weight and token).
CPU_RATE_PER_CORE = 4 * 134.5e6 * 512 / 2.2 / 2


def plan(cfg: DictConfig | TrainConfig) -> dict[str, Any]:
    """Parameters, bytes and time of one job, all batches at full length.

    Args:
        cfg: configs/train.yaml composed with overrides, or what `mos.config.validate` made of it.

    Returns:
        A JSON-serialisable dict; sizes in bytes, times in seconds. `peak_memory_bytes` is what
        results.json calls so, of a training on a GPU; `card_memory_bytes` is what the GPU needs for
        it, of which quantization.norms=bfloat16 would save `norms_memory_bytes`;
        `evaluation_bytes` are the weights alone.

    Raises:
        UserError: a wrong config, unknown shapes, an adapter that does not fit them.
    """
    from mos.models.memory import estimate

    config = validate(cfg) if isinstance(cfg, DictConfig) else cfg
    trainer, quantization, evaluation = config.trainer, config.quantization, config.eval
    found, (device, memory, rate) = estimate(config), _device(config.device)
    quantised, norms = quantization.bits is not None, 0
    if slow := quantised and quantization.norms == "float32" and found.batch_flops > 0:
        other = config.but(quantization=quantization.but(norms="bfloat16"))
        norms = found.card_memory_bytes - estimate(other).card_memory_bytes
    evaluated = BF16 * found.base_parameters // evaluation.tensor_parallel
    evaluated *= bool(evaluation.benchmarks)
    checkpoint = found.adapter_bytes + found.optimizer_bytes
    disk = {
        "adapter": found.adapter_bytes,
        "checkpoints": (trainer.save_total_limit or 1) * checkpoint,
        "dequantized_base_once_per_model": BF16 * found.base_parameters * quantised,
    }
    steps = trainer.max_steps * trainer.gradient_accumulation_steps
    seconds = None  # of an unknown GPU, or by epochs, whose length the data has
    if rate and steps >= 0:
        seconds = steps * found.batch_flops / rate * (FLOAT32_NORMS if slow else 1)
    return {
        "label": row_label(config.adapter.dump(), evaluation.chat),
        "model": config.model.name,
        "scale": config.scale.name,
        "experiment": config.experiment,
        **asdict(found),
        "norms_memory_bytes": norms,
        "evaluation_bytes": evaluated,
        "device": device,
        "device_memory_bytes": memory,
        "fits": found.card_memory_bytes <= memory
        and evaluated <= evaluation.gpu_memory_utilization * memory,
        "disk_bytes": sum(disk.values()),
        "disk": disk,
        "seconds": seconds,
    }


def _device(kind: str) -> tuple[str, float, float | None]:
    """Name, memory (bytes) and training rate (FLOP/s) of the device that a config asks for."""
    import torch

    there = torch.cuda.is_available()
    if kind == "cpu" or (kind == "auto" and not there):
        affinity = getattr(os, "sched_getaffinity", None)
        cores = len(affinity(0)) if affinity else os.cpu_count() or 1
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return f"CPU, {cores} cores", memory, cores * CPU_RATE_PER_CORE
    gpu = torch.cuda.get_device_properties(0) if there else None
    name = gpu.name if gpu else ASSUMED_GPU
    peak = next((rate for known, rate in GPU_PEAK.items() if known in name), None)
    return name, gpu.total_memory if gpu else CARDS["40 GB"], peak and peak * GPU_SHARE


def plan_table(plans: Sequence[Mapping[str, Any]]) -> Table:
    """One plan as a list for a terminal, or several as the rows of a table."""
    several = len(plans) > 1
    varying = [key for key in ("model", "experiment") if len({one[key] for one in plans}) > 1]
    rows: list[dict[str, str]] = []
    for one in plans:
        name = one["label"] + ("" if one["rank"] is None else f" r={one['rank']}")
        row = {
            "job": ", ".join([name, *(one[key] for key in varying or ["model"])]),
            "parameters": f"{one['trainable_parameters']:,}",
            "adapter": size(one["adapter_bytes"]),
            "tensors": _gib(one["peak_memory_bytes"]),
            "card needs": _gib(one["card_memory_bytes"]),
            "fits": "yes" if one["fits"] else "NO",
            "training": duration(one["seconds"]),
        }
        if not several:
            row["fits"] += f", of {_gib(one['device_memory_bytes'])} ({one['device']})"
            if norms := one["norms_memory_bytes"]:
                row["float32 norms"] = f"{_gib(norms)}, and {FLOAT32_NORMS - 1:.0%} more time"
            row["evaluation"] = f"{_gib(one['evaluation_bytes'])}, weights alone"
            row["disk"] = size(one["disk_bytes"])
        rows.append(row)
    table = Table(box=None, show_header=several, padding=(0, 1, 0, 0))
    for title in rows[0] if several else ():
        table.add_column(title.replace(" ", "\n"), justify="left" if title == "job" else "right")
    for texts in (row.values() for row in rows) if several else rows[0].items():
        table.add_row(*texts)
    return table


def sweep_total(plans: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the members of a sweep take together, and how many of them fit."""
    seconds = [one["seconds"] for one in plans]
    needs = [one["card_memory_bytes"] for one in plans]
    shared = {one["model"]: one["disk"]["dequantized_base_once_per_model"] for one in plans}
    own = sum(one["disk"]["adapter"] + one["disk"]["checkpoints"] for one in plans)
    return {
        "members": len(plans),
        "hours": None if None in seconds else sum(seconds) / 3600,
        "disk_bytes": own + sum(shared.values()),
        "fits": {name: sum(need <= card for need in needs) for name, card in CARDS.items()},
    }


def _gib(count: float) -> str:
    return f"{count / GIB:.2f} GiB"


def size(count: float) -> str:
    """On a disk, in decimal units."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class PlanConfig(TrainConfig):
    """What configs/plan.yaml says."""

    format: Literal["table", "json"]


class Plans(Callback):
    """Prints the plans of a sweep's members when all are there."""

    def __init__(self) -> None:
        self.plans: list[dict[str, Any]] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.COMPLETED:
            self.plans.append(job_return.return_value)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not self.plans:
            return
        total = sweep_total(self.plans)
        if config.format == "json":
            found = {"plans": self.plans, "total": total} if self.plans[1:] else self.plans[0]
            print(json.dumps(found, indent=2))
            return
        console.print(plan_table(self.plans))
        if self.plans[1:]:
            fits = ", ".join(f"{n} on a GPU of {name}" for name, n in total["fits"].items())
            hours = duration(None if total["hours"] is None else 3600 * total["hours"])
            disk = size(total["disk_bytes"])
            say(f"{len(self.plans)} members: training {hours} in all; disk {disk}; fit: {fits}")


@command("plan")
def main(cfg: DictConfig) -> dict[str, Any]:
    """Count one member of what was asked for; `Plans` prints all of them."""
    config = validate(cfg, PlanConfig)
    note(f"counting {config.adapter.method} on {config.model.name}")
    return plan(config)


if __name__ == "__main__":
    main()
