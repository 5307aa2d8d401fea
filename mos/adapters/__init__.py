"""The methods by name, and what is asked of all of them.

A method is one line of `METHODS`. Its adapter config (a file of `configs/adapter`, or any mapping)
has the fields of its PEFT config, plus `method`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from peft import LoraConfig, MissConfig, PeftConfig, VeraConfig, get_peft_model
from torch import nn

from mos.adapters.mos import MosConfig
from mos.adapters.options import check_options
from mos.adapters.prolora import ProloraConfig
from mos.adapters.tied_lora import TiedLoraConfig
from mos.errors import UserError, unknown

__all__ = ["METHODS", "Method", "attach", "peft_config", "rank", "row_label"]


@dataclass(frozen=True)
class Method:
    """A row of the tables.

    Args:
        config: its PEFT config class; None: the base model itself, frozen or trained.
        label: its row name, or a function of the adapter config and of whether prompts are chats.
    """

    config: type[PeftConfig] | None
    label: str | Callable[[Mapping[str, Any], bool], str]


def _mos_label(adapter: Mapping[str, Any], chat: bool) -> str:
    config: Any = peft_config(adapter)
    off = {
        "sp": config.private_rank == 0,
        "vs": config.shards_per_vector == 1,
        "pd": not config.pair_dissociation,
    }
    if all(off.values()):
        added = {
            "+ Random Scaling": config.random_scaling is not None,
            "+ Subset Selection": config.r != "all",
        }
        return " ".join(name for name, is_on in added.items() if is_on) or "Pure Sharing"
    return " ".join(["MoS", *(f"-{switch}" for switch, is_off in off.items() if is_off)])


def _miss_label(adapter: Mapping[str, Any], chat: bool) -> str:
    variant = adapter.get("init_weights", True)
    return f"MiSS ({variant})" if isinstance(variant, str) else "MiSS"


def _vanilla_label(adapter: Mapping[str, Any], chat: bool) -> str:
    return "Vanilla (chat)" if chat else "Vanilla (no-chat)"


METHODS: dict[str, Method] = {
    "mos": Method(MosConfig, _mos_label),
    "lora": Method(LoraConfig, "LoRA"),
    "prolora": Method(ProloraConfig, "PRoLoRA"),
    "tied_lora": Method(TiedLoraConfig, "Tied LoRA"),
    "vera": Method(VeraConfig, "VeRA"),
    "miss": Method(MissConfig, _miss_label),
    "none": Method(None, _vanilla_label),
    "full": Method(None, "Full fine-tuning"),
}


def peft_config(adapter: Mapping[str, Any]) -> PeftConfig | None:
    """The PEFT config that an adapter config describes; None for the methods `none` and `full`.

    Raises:
        UserError: the method or a key is unknown, a value has a wrong type, or the values do not go
            together.
    """
    options = _options(adapter)
    method = options.pop("method")
    config_cls = METHODS[method].config
    check_options(options, config_cls, method)
    if config_cls is None:
        return None
    if isinstance(options.get("r"), int) and options["r"] < 1:
        raise UserError(f"adapter.r: the rank must be at least 1, got {options['r']}.")
    try:
        return config_cls(**{"task_type": "CAUSAL_LM", **options})
    except ValueError as error:
        raise UserError(f"adapter (method '{method}'): {error}") from error


def attach(model: nn.Module, adapter: Mapping[str, Any]) -> nn.Module:
    """The model with the adapter on it and only the adapter trainable.

    Method `none` freezes the model and `full` trains all of it; both return the model itself.

    Raises:
        UserError: as `peft_config`; or the adapter does not fit the model's layers.
    """
    config = peft_config(adapter)
    method = adapter["method"]
    if config is not None:
        try:
            return get_peft_model(model, config)
        except ValueError as error:
            raise UserError(f"adapter (method '{method}'): {error}") from error
    if method == "full" and getattr(model, "is_quantized", False):
        raise UserError(
            "adapter=full trains the base weights, and quantised weights cannot be trained: "
            "use quantization=none."
        )
    return model.requires_grad_(method == "full")


def row_label(adapter: Mapping[str, Any], chat: bool = True) -> str:
    """The name of the method's row in the paper's tables, ablations included.

    Args:
        chat: whether evaluation prompts use the chat template; tells the two Vanilla rows apart.
    """
    label = METHODS[_options(adapter)["method"]].label
    return label if isinstance(label, str) else label(adapter, chat)


def rank(adapter: Mapping[str, Any], n_blocks: int | None = None) -> int | None:
    """The rank column of the tables: `r`, or None for a method without one.

    Args:
        n_blocks: blocks of the model, which pure sharing (`r: all`) takes its rank from; None
            without it.
    """
    config: Any = peft_config(adapter)
    r = getattr(config, "r", None)
    if r == "all":
        return None if n_blocks is None else config.rank(n_blocks)
    return r


def _options(adapter: Mapping[str, Any]) -> dict[str, Any]:
    options: Any = adapter
    if isinstance(adapter, DictConfig):
        options = OmegaConf.to_container(adapter, resolve=True)
    options = dict(options)
    method = options.get("method")
    if method is None:
        raise UserError(f"adapter.method is not set. Choose one of {', '.join(METHODS)}.")
    if method not in METHODS:
        raise unknown("adapter.method", method, METHODS)
    return options
