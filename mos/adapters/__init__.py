"""The methods by name, and what is asked of all of them.

A method is one line of `METHODS`, here or in another package. Its adapter config (a file of
`configs/adapter`, or any mapping) has the fields of its PEFT config, plus `method`.

Importing this module is cheap: what needs torch or PEFT is imported when it is asked for, so that
reports can read names and colours from the table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ValidationInfo, field_validator

from mos.errors import MissingFileError, Strict, UserError, check, dataclass_model, unknown

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


class CommonOptions(Strict):
    """What holds for the options of all methods."""

    @field_validator("r", "num_vectors", "vector_length", "theta_d_length", check_fields=False)
    @classmethod
    def _number(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError(f"it must be at least 1, got {value}.")
        return value

    @field_validator("*")
    @classmethod
    def _probability(cls, value: Any, info: ValidationInfo) -> Any:
        if str(info.field_name).endswith("dropout") and not 0 <= value < 1:
            raise ValueError(f"it must be in [0, 1), got {value}.")
        return value

    @field_validator("save_only_topk_weights", check_fields=False)
    @classmethod
    def _whole_weights(cls, only_topk: Any) -> Any:
        if only_topk:
            raise ValueError("a run cannot be continued from such files: set it to false.")
        return only_topk


WEIGHTS = "adapter_model.safetensors"


def check_adapter_folder(adapter_dir: Path) -> None:
    """Check that a folder has the files of an adapter.

    Raises:
        MissingFileError: one is not there.
    """
    for name in ("adapter_config.json", WEIGHTS):
        if not (adapter_dir / name).is_file():
            raise MissingFileError(
                f"{adapter_dir} is not an adapter directory: no {name} there. Expected a directory "
                "as save_pretrained writes it (adapter/ in the folder of a run)."
            )


@dataclass(frozen=True)
class Method:
    """A method as the rest of the program knows it.

    Args:
        config: import path of its PEFT config class, "module:Class"; importing the module registers
            the method with PEFT. None: the base model itself, frozen or trained.
        label: its row name in the tables, or a function of the adapter config and of whether
            prompts are chats.
        colour: of its marks in plots, "#rrggbb".
        variants: row name -> colour of those variants that plots tell apart.
        on_quantized: whether it trains on a quantised base.
        merges: whether the update can be added to the base's weights. Without, no engine serves it.
    """

    config: str | None
    label: str | Callable[[Mapping[str, Any], bool], str]
    colour: str
    variants: Mapping[str, str] = field(default_factory=dict)
    on_quantized: bool = True
    merges: bool = True

    @property
    def config_cls(self) -> type[PeftConfig] | None:
        """The class at `config`."""
        return None if self.config is None else resolve_name(self.config)

    @property
    def options(self) -> type[BaseModel]:
        """The fields of its PEFT config, as a pydantic model."""
        cls: Any = self.config_cls
        return CommonOptions if cls is None else dataclass_model(cls, CommonOptions)

    def colour_of(self, label: str) -> str:
        """The colour of the row named `label`."""
        return self.variants.get(label, self.colour)


def _mos_label(adapter: Mapping[str, Any], chat: bool) -> str:
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


def _lora_label(adapter: Mapping[str, Any], chat: bool) -> str:
    if adapter.get("use_dora"):
        return "DoRA"
    return "rsLoRA" if adapter.get("use_rslora") else "LoRA"


def _miss_label(adapter: Mapping[str, Any], chat: bool) -> str:
    variant = adapter.get("init_weights", True)
    return f"MiSS ({variant})" if isinstance(variant, str) else "MiSS"


def _vanilla_label(adapter: Mapping[str, Any], chat: bool) -> str:
    return "Vanilla (chat)" if chat else "Vanilla (no-chat)"


# The colours are told apart by the colour-blind too (Okabe and Ito's palette, then Paul Tol's).
METHODS: dict[str, Method] = {
    "mos": Method(
        "mos.adapters.mos:MosConfig",
        _mos_label,
        "#d55e00",
        {
            "MoS -sp": "#e8743b",
            "MoS -vs": "#f29b6c",
            "MoS -pd": "#f8c3a3",
            "Pure Sharing": "#475569",
            "+ Random Scaling": "#7b8794",
            "+ Subset Selection": "#b0b8c1",
        },
    ),
    "lora": Method(
        "peft:LoraConfig", _lora_label, "#0072b2", {"rsLoRA": "#003f73", "DoRA": "#7f9fc6"}
    ),
    "prolora": Method("mos.adapters.prolora:ProloraConfig", "PRoLoRA", "#009e73"),
    "tied_lora": Method("mos.adapters.tied_lora:TiedLoraConfig", "Tied LoRA", "#e69f00"),
    "vera": Method("peft:VeraConfig", "VeRA", "#cc79a7"),
    "miss": Method("peft:MissConfig", _miss_label, "#56b4e9"),
    "vblora": Method("peft:VBLoRAConfig", "VB-LoRA", "#332288"),
    "unilora": Method("peft:UniLoraConfig", "Uni-LoRA", "#44aa99", on_quantized=False),
    "lily": Method("peft:LilyConfig", "Lily", "#f0e442", merges=False),
    "randlora": Method("peft:RandLoraConfig", "RandLoRA", "#aa4499"),
    "lokr": Method("peft:LoKrConfig", "LoKr", "#999933", on_quantized=False),
    "hira": Method("peft:HiraConfig", "HiRA", "#cc6677"),
    "none": Method(None, _vanilla_label, "#9ca3af"),
    "full": Method(None, "Full fine-tuning", "#111827", on_quantized=False),
}
METHODS |= {entry.name: entry.load() for entry in entry_points(group="mos.methods")}


def register_all() -> None:
    """Make every method known to PEFT, for `get_peft_model` and `PeftModel.from_pretrained`."""
    for method in METHODS.values():
        if method.config is not None:
            import_module(method.config.partition(":")[0])


def peft_config(adapter: Mapping[str, Any]) -> PeftConfig | None:
    """The PEFT config that an adapter config describes; None for the methods `none` and `full`.

    Raises:
        UserError: the method or a key is unknown, a value has a wrong type, or the values do not go
            together.
    """
    options = _options(adapter)
    name = options.pop("method")
    method = METHODS[name]
    check(options, method.options, "adapter.")
    if method.config_cls is None:
        return None
    try:
        return method.config_cls(**{"task_type": "CAUSAL_LM", **options})
    except ValueError as error:
        raise UserError(f"adapter (method '{name}'): {error}") from error


def check_quantized_base(method: str) -> None:
    """Refuse a method that does not train on a quantised base.

    Raises:
        UserError: saying so.
    """
    if not METHODS[method].on_quantized:
        raise UserError(
            f"method '{method}' does not train on quantised base weights: use quantization=none."
        )


def attach(
    model: nn.Module, adapter: Mapping[str, Any], low_cpu_mem_usage: bool = False
) -> nn.Module:
    """The model with the adapter on it and only the adapter trainable.

    Method `none` freezes the model and `full` trains all of it; both return the model itself.

    Args:
        low_cpu_mem_usage: PEFT's: the adapter takes no memory either.

    Raises:
        UserError: as `peft_config`; or the adapter does not fit the model's layers.
    """
    from peft import get_peft_model

    config = peft_config(adapter)
    method = adapter["method"]
    if getattr(model, "is_quantized", False):
        check_quantized_base(method)
    if config is not None:
        try:
            return get_peft_model(model, config, low_cpu_mem_usage=low_cpu_mem_usage)
        except (ValueError, re.error) as error:  # target_modules may be a regular expression
            raise UserError(f"adapter (method '{method}'): {error}") from error
    return model.requires_grad_(method == "full")


def row_label(adapter: Mapping[str, Any], chat: bool = True) -> str:
    """The name of the method's row in the paper's tables, ablations included.

    Args:
        chat: whether evaluation prompts use the chat template; tells the two Vanilla rows apart.
    """
    options = _options(adapter)
    label = METHODS[options["method"]].label
    return label if isinstance(label, str) else label(options, chat)


def rank(adapter: Mapping[str, Any], n_blocks: int | None = None) -> int | None:
    """The rank column of the tables: `r`, or None for a method without one.

    Args:
        n_blocks: blocks of the model, which pure sharing (`r: all`) takes its rank from; None
            without it.
    """
    options = _options(adapter)
    if "r" in options and options["r"] != "all":
        return options["r"]
    config: Any = peft_config(options)
    if getattr(config, "r", None) == "all":
        return None if n_blocks is None else config.rank(n_blocks)
    return getattr(config, "r", None)


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
