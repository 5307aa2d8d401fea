"""What an adapter file holds, and the checks that it passes before any weight changes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import check_index, storage_dtype

_Module = TypeVar("_Module", bound=nn.Module)

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def compact(
    state_dict: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
) -> dict[str, torch.Tensor]:
    """The adapter's entries as stored: indices in the smallest integer type, pools in
    `config.save_dtype`."""
    dtypes = {}
    for name, module in _named(model, MosLinear):
        if adapter_name in module.position:
            n_shards = module.mos_pool_A[adapter_name].shape[0]
            for index in ("mos_index_A", "mos_index_B"):
                dtypes[f"{name}.{index}.{adapter_name}"] = storage_dtype(n_shards)
    if config.storage_dtype is not None:
        for name, _ in _named(model, SharedPools):
            for pool in ("pool_A", "pool_B"):
                dtypes[f"{name}.{pool}.{adapter_name}"] = config.storage_dtype
    return {
        key: tensor.to(dtypes[key]) if key in dtypes else tensor
        for key, tensor in state_dict.items()
    }


def check(
    state_dict: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
) -> dict[str, torch.Tensor]:
    """Check an adapter's types and indices, and return its entries as they are loaded.

    Args:
        state_dict: keyed as in the model. That no key is missing or foreign and every shape fits
            has been checked.

    Raises:
        ValueError: an entry is of the wrong type, or an index is not one that MoS could have drawn.
    """
    loaded = dict(state_dict)
    for name, layer in _named(model, MosLinear):
        if adapter_name in layer.position:
            _check_layer(state_dict, name, layer, config, adapter_name)
            for index in ("mos_index_A", "mos_index_B"):
                key = f"{name}.{index}.{adapter_name}"
                loaded[key] = state_dict[key].to(torch.int32)
    for name, group in _named(model, SharedPools):
        for pool in ("pool_A", "pool_B"):
            key = f"{name}.{pool}.{adapter_name}"
            if adapter_name in group.pool_A and not state_dict[key].is_floating_point():
                raise ValueError(
                    f"{key} is stored as {state_dict[key].dtype}, expected a floating point type."
                )
    return loaded


def _check_layer(
    state_dict: dict[str, torch.Tensor],
    name: str,
    layer: MosLinear,
    config: MosConfig,
    adapter_name: str,
) -> None:
    n_layers = layer.group.n_layers(adapter_name)
    keys = [f"{name}.{index}.{adapter_name}" for index in ("mos_index_A", "mos_index_B")]
    for key in keys:
        if state_dict[key].dtype not in _INTEGER_DTYPES:
            raise ValueError(
                f"{key} is stored as {state_dict[key].dtype}, expected an integer type."
            )
        check_index(config, n_layers, layer.position[adapter_name], state_dict[key], key)
    index_A, index_B = (state_dict[key].cpu().long() for key in keys)
    if not config.pair_dissociation and not torch.equal(index_A, index_B):
        raise ValueError(
            f"{keys[1]} differs from the index of A, although pair_dissociation is off."
        )


def _named(model: nn.Module, cls: type[_Module]) -> Iterator[tuple[str, _Module]]:
    for name, module in model.named_modules():
        if isinstance(module, cls):
            # FSDP wraps modules without showing it in the keys of a state dict.
            yield name.replace("_fsdp_wrapped_module.", ""), module
