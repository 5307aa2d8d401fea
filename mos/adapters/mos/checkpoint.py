"""What a MoS file holds, and the checks of its types and indices."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.routing import check_index, storage_dtype
from mos.adapters.saved import unwrapped

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def compact(
    entries: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
) -> dict[str, torch.Tensor]:
    """An adapter's entries as stored: indices in the smallest integer type, pools in
    `config.save_dtype`."""
    stored = dict(entries)
    for keys, layer in _layers(model, adapter_name):
        dtype = storage_dtype(layer.mos_pool_A[adapter_name].get_parameter("weight").shape[0])
        stored.update({key: entries[key].to(dtype) for key in keys if key in entries})
    if config.storage_dtype is not None:
        pools = [key for key in entries if ".mos_pool_" in key]
        stored.update({key: entries[key].to(config.storage_dtype) for key in pools})
    return stored


def check(
    entries: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
) -> dict[str, torch.Tensor]:
    """Check an adapter's types and indices, and return its entries as they are loaded.

    Args:
        entries: keyed as in the model. That no key is missing or foreign and every shape fits has
            been checked.

    Raises:
        ValueError: an entry is of the wrong type, or an index is not one that MoS could have drawn.
    """
    loaded = dict(entries)
    for keys, layer in _layers(model, adapter_name):
        for key in keys:
            if entries[key].dtype not in _INTEGER_DTYPES:
                raise ValueError(
                    f"{key} is stored as {entries[key].dtype}, expected an integer type."
                )
            n_layers = layer.groups[adapter_name].n_layers(adapter_name)
            check_index(config, n_layers, layer.position[adapter_name], entries[key], key)
            loaded[key] = entries[key].to(torch.int32)
        index_A, index_B = (loaded[key] for key in keys)
        if not config.pair_dissociation and not torch.equal(index_A, index_B):
            raise ValueError(
                f"{keys[1]} differs from the index of A, although pair_dissociation is off."
            )
    for key, tensor in entries.items():
        if ".mos_pool_" in key and not tensor.is_floating_point():
            raise ValueError(f"{key} is stored as {tensor.dtype}, expected a floating point type.")
    return loaded


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[list[str], MosLinear]]:
    """The keys of each layer's indices, and the layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, MosLinear) and adapter_name in layer.position:
            prefix = unwrapped(name)
            yield [f"{prefix}.mos_index_{side}.{adapter_name}" for side in "AB"], layer
