"""Plans as tables for a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

GIB = 2**30


def plan_table(plans: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Table:
    """One plan as a list for a terminal, or several as the rows of a table."""
    if isinstance(plans, Mapping):
        table = _plan_list(plans)
        paper = plans["serving"]["paper"]
    else:
        table = _plan_rows(plans)
        paper = plans[0]["serving"]["paper"]
    product = " * ".join(f"{value:,}" for value in paper["factors"].values())
    table.caption = (
        f"the paper's {size(paper['bytes'])} = {product}\n  = {paper['formula']}\n"
        f"  ({paper['assumptions']})"
    )
    table.title_justify = table.caption_justify = "left"
    return table


def _plan_list(one: Mapping[str, Any]) -> Table:
    table = Table(title=f"plan: {_name(one)}, {one['model']}", box=None, show_header=False)
    table.add_row("trainable parameters", f"{one['trainable_parameters']:,}")
    sizes = {
        "adapter on disk": "adapter_bytes",
        "the same as a LoRA": "lora_bytes",
        "base weights": "weights_bytes",
        "gradients": "gradient_bytes",
        "optimizer state": "optimizer_bytes",
        "activations": "activation_bytes",
        "peak memory, about": "peak_memory_bytes",
        "disk": "disk_bytes",
    }
    for title, key in sizes.items():
        table.add_row(title, size(one[key]))
    fits = "yes" if one["fits"] else "NO"
    memory = f"{one['device_memory_bytes'] / GIB:.0f} GiB"
    table.add_row("fits", f"{fits}, of {memory} ({one['device']})")
    table.add_row("training, roughly", duration(one["seconds"]))
    for kind, total in one["serving"]["bytes"].items():
        table.add_row(f"{one['serving']['users']:,} users, {kind}", size(total))
    return table


def _plan_rows(plans: Sequence[Mapping[str, Any]]) -> Table:
    users = f"{plans[0]['serving']['users']:,} users"
    table = Table(title="plans", box=None, padding=(0, 1, 0, 0))
    for title in ("job", "parameters", "adapter", "as LoRA", "peak", "fits", "training", users):
        table.add_column(title.replace(" ", "\n"), justify="left" if title == "job" else "right")
    varying = [key for key in ("model", "experiment") if len({one[key] for one in plans}) > 1]
    for one in plans:
        table.add_row(
            ", ".join([_name(one), *(one[key] for key in varying)]),
            f"{one['trainable_parameters']:,}",
            *(size(one[key]) for key in ("adapter_bytes", "lora_bytes", "peak_memory_bytes")),
            "yes" if one["fits"] else "NO",
            duration(one["seconds"]),
            size(one["serving"]["bytes"]["native"]),
        )
    return table


def total_line(total: Mapping[str, Any]) -> str:
    """`sweep_total` in words."""
    hours, each = (
        duration(None if total[key] is None else 3600 * total[key])
        for key in ("hours", "hours_per_slot")
    )
    fits = ", ".join(f"{n} on a GPU of {name}" for name, n in total["fits"].items())
    return (
        f"{total['members']} members: training {hours} in all, {each} for each of"
        f" {total['slots']} at once; disk {size(total['disk_bytes'])}; fit: {fits}"
    )


def _name(one: Mapping[str, Any]) -> str:
    return one["label"] + ("" if one["rank"] is None else f" r={one['rank']}")


def size(count: float | None) -> str:
    """Decimal units, as the paper counts: 3.36 TB."""
    if count is None:
        return "–"
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
