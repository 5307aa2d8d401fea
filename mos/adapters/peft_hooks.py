"""What PEFT decides by lists of its own methods, told of ours.

PEFT looks these functions up in their modules when it calls them, so ours stand in for them there
and hand everything that is not ours on.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.lora import conversion
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import PeftType, hotswap, save_and_load, transformers_weight_conversion
from torch import nn
from transformers.core_model_loading import WeightRenaming

from mos.adapters import saved
from mos.adapters.config import FactoredConfig
from mos.adapters.linear import FactoredLinear
from mos.adapters.weights import SharedTensors

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
_weight_mapping = transformers_weight_conversion.build_peft_weight_mapping


def install() -> None:
    conversion._convert_module_to_lora = convert_module_to_lora
    hotswap.hotswap_adapter_from_state_dict = hotswap_from_state_dict
    save_and_load._get_adapter_state_dict_key_prefixes = key_prefixes
    transformers_weight_conversion.build_peft_weight_mapping = weight_mapping


def allow_hotswap(config_cls: type[PeftConfig], peft_type: Any) -> None:
    """`hotswap_adapter` for adapters of one configuration."""
    names = [field.name for field in fields(config_cls) if field.name not in SWAPPABLE]
    hotswap.CONFIG_KEYS_TO_CHECK[peft_type] = names


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
    for module in model.modules():
        if isinstance(module, SharedTensors):
            module.loaded()


def key_prefixes(model: Any) -> set[str]:
    """State dict prefixes that are not the base model's."""
    return _key_prefixes(model) | saved.shared_prefixes(model.base_model.model)


def weight_mapping(
    weight_conversions: list | None, adapter_name: str, peft_config: Any = None
) -> list:
    """How transformers' `load_adapter` renames a file's keys; files of former formats too."""
    mapping: list[Any] = _weight_mapping(weight_conversions, adapter_name, peft_config)
    if isinstance(peft_config, FactoredConfig):
        tuner_cls: Any = PEFT_TYPE_TO_TUNER_MAPPING[PeftType(peft_config.peft_type)]
        mapping = [WeightRenaming(*renaming) for renaming in tuner_cls.renamed] + mapping
    return mapping
