"""What tables call a method by its config: the paper's row names, ablations included.

Each function takes the adapter config and whether prompts are chats.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOS_VARIANTS = {
    "MoS -sp": "#e8743b",
    "MoS -vs": "#f29b6c",
    "MoS -pd": "#f8c3a3",
    "Pure Sharing": "#475569",
    "+ Random Scaling": "#7b8794",
    "+ Subset Selection": "#b0b8c1",
}

LORA_VARIANTS = {"rsLoRA": "#003f73", "DoRA": "#7f9fc6"}


def mos(adapter: Mapping[str, Any], chat: bool) -> str:
    off = {
        "sp": adapter.get("private_rank") == 0,
        "vs": adapter.get("shards_per_vector") == 1,
        "pd": adapter.get("pair_dissociation") is False,
    }
    if all(off.values()):
        added = {
            "+ Random Scaling": adapter.get("random_scaling") is not None,
            "+ Subset Selection": adapter.get("r") != "all",
        }
        return " ".join(name for name, is_on in added.items() if is_on) or "Pure Sharing"
    return " ".join(["MoS", *(f"-{switch}" for switch, is_off in off.items() if is_off)])


def lora(adapter: Mapping[str, Any], chat: bool) -> str:
    if adapter.get("use_dora"):
        return "DoRA"
    return "rsLoRA" if adapter.get("use_rslora") else "LoRA"


def miss(adapter: Mapping[str, Any], chat: bool) -> str:
    variant = adapter.get("init_weights", True)
    return f"MiSS ({variant})" if isinstance(variant, str) else "MiSS"


def vanilla(adapter: Mapping[str, Any], chat: bool) -> str:
    return "Vanilla (chat)" if chat else "Vanilla (no-chat)"
