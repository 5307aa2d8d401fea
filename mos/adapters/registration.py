"""Making a method known to PEFT from outside of its tree.

PEFT (0.18 to 0.21) has no entry points for external methods. Its mappings are keyed by the members
of the `PeftType` enum, so a method gets a member of its own first and is then registered through
the public `register_peft_method`. What PEFT decides by lists of its own methods is told of ours by
functions that stand in for its own: it looks them up in their modules when it calls them, and ours
hand everything that is not ours on.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from aenum import extend_enum
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import conversion
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import PeftType, hotswap, register_peft_method, save_and_load
from torch import nn

from mos.adapters import saved
from mos.adapters.config import FactoredConfig
from mos.adapters.linear import FactoredLinear

# Two adapters that differ in these only can take each other's place in a compiled model.
SWAPPABLE = {
    *(field.name for field in fields(PeftConfig)),
    "routing_seed",
    "init_weights",
    "save_dtype",
    "format_version",
}

_convert_module_to_lora = conversion._convert_module_to_lora
_hotswap_from_state_dict = hotswap.hotswap_adapter_from_state_dict
_key_prefixes = save_and_load._get_adapter_state_dict_key_prefixes


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a PEFT method, so that `get_peft_model`, `PeftModel.from_pretrained` and
    `AutoPeftModel` serve it as they serve PEFT's own.

    Registering the same classes again (a module reloaded in a notebook) replaces them.

    Args:
        name: lower case. The method's `PeftType` is its upper case and its parameters' prefix is
            `name + "_"`, which transformers hard-codes.
        config_cls: its config; sets `peft_type = PeftType(name.upper())`.
        model_cls: its tuner, with `prefix = name + "_"`.

    Raises:
        RuntimeError: PEFT, or another package, already has a method of this name.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        extend_enum(PeftType, value, value)
    peft_type = PeftType(value)
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    conversion._convert_module_to_lora = convert_module_to_lora
    hotswap.hotswap_adapter_from_state_dict = hotswap_from_state_dict
    save_and_load._get_adapter_state_dict_key_prefixes = key_prefixes
    if issubclass(config_cls, FactoredConfig):
        names = [field.name for field in fields(config_cls) if field.name not in SWAPPABLE]
        hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = names
    if present is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    elif (present.__module__, present.__qualname__) == (
        config_cls.__module__,
        config_cls.__qualname__,
    ):
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    else:
        raise RuntimeError(
            f"PEFT already has a method named '{name}' "
            f"({present.__module__}.{present.__qualname__}), so "
            f"{config_cls.__module__}.{config_cls.__qualname__} cannot be registered. "
            "Use a PEFT version without it."
        )


@torch.no_grad()
def convert_module_to_lora(
    module: BaseTunerLayer, rank: float, adapter_name: str = "default"
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """`A (r, in)`, `B (out, r)` with the scaling in B, and their rank.

    The method's own factors where `rank` is at least theirs; else, and for a share of the energy
    (a float), the best approximation, from the small factors instead of their product.
    """
    if not isinstance(module, FactoredLinear):
        return _convert_module_to_lora(module, rank, adapter_name)
    A, B, scaling = module.lora_factors(adapter_name)
    A, B = A.float(), B.float() * scaling
    if isinstance(rank, int) and rank >= A.shape[0]:
        return A.contiguous(), B.contiguous(), A.shape[0]
    Q_A, R_A = torch.linalg.qr(A.T)  # (in, k), (k, r)
    Q_B, R_B = torch.linalg.qr(B)
    U, S, V = torch.linalg.svd(R_B @ R_A.T, full_matrices=False)
    n = rank if isinstance(rank, int) else conversion._find_cutoff_index(S, threshold=rank)
    return (V[:n] @ Q_A.T).contiguous(), (Q_B @ (U[:, :n] * S[:n])).contiguous(), n


@torch.no_grad()
def hotswap_from_state_dict(
    model: nn.Module,
    state_dict: dict[str, torch.Tensor],
    adapter_name: str,
    config: Any,
    parameter_prefix: str = "lora_",
) -> None:
    """Copy an adapter's tensors into those of a loaded one, in place."""
    if not isinstance(config, FactoredConfig):
        _hotswap_from_state_dict(model, state_dict, adapter_name, config, parameter_prefix)
        return
    model = getattr(model, "_orig_mod", model)
    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and adapter_name in module.merged_adapters:
            raise ValueError(f"Adapter '{adapter_name}' is merged: call `unmerge_adapter` first.")
    tuner_cls: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(config.peft_type)]
    entries = tuner_cls._remap_adapter_state_dict_for_load(
        model,
        config,
        adapter_name,
        {
            tuner_cls._remove_adapter_name_from_key(key, adapter_name): tensor
            for key, tensor in state_dict.items()
        },
    )
    in_model = model.state_dict()
    for key, tensor in entries.items():
        in_model[key].copy_(tensor)


def key_prefixes(model: Any) -> set[str]:
    """State dict prefixes that are not the base model's."""
    return _key_prefixes(model) | saved.shared_prefixes(model.base_model.model)
