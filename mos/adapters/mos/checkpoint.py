"""What an adapter file holds, and the checks that it passes before any weight changes."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLayer
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import check_index, storage_dtype

_INTEGER_DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def compact(
    state_dict: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
) -> dict[str, torch.Tensor]:
    """The adapter's entries as stored: indices in the smallest integer type, pools in
    `config.save_dtype`."""
    dtypes = {}
    for name, module in _named(model, MosLayer):
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
    """Check an adapter's entries, their keys those of the model, and return them as loaded.

    Raises:
        ValueError: a key is missing or foreign, a shape or a type differs from what the config and
            the model call for, or an index is not one that MoS could have drawn.
    """
    expected = _expected_entries(model, adapter_name)
    known = model.state_dict().keys()
    missing = sorted(expected.keys() - state_dict.keys())
    foreign = sorted(state_dict.keys() - known)
    if missing or foreign:
        raise ValueError(
            "The MoS adapter file does not fit the model and its config:"
            + _listed(" missing keys", missing)
            + _listed(" unexpected keys", foreign)
            + " Was it saved from a model with other shapes, blocks or target modules?"
        )
    for key, tensor in expected.items():
        found = state_dict[key]
        if found.shape != tensor.shape:
            raise ValueError(
                f"{key} has shape {tuple(found.shape)} in the adapter file, but the model and the "
                f"config (equivalent_rank={config.equivalent_rank}, r={config.r}, "
                f"shards_per_vector={config.shards_per_vector}) call for {tuple(tensor.shape)}."
            )
        integer = not tensor.is_floating_point()
        if integer != (found.dtype in _INTEGER_DTYPES) or (
            not integer and not found.is_floating_point()
        ):
            raise ValueError(
                f"{key} is stored as {found.dtype}, expected "
                f"{'an integer' if integer else 'a floating point'} type."
            )
    for name, layer in _named(model, MosLayer):
        if adapter_name in layer.position:
            _check_layer(state_dict, name, layer, config, adapter_name)
    return {
        key: value.to(torch.int32) if key in expected and value.dtype in _INTEGER_DTYPES else value
        for key, value in state_dict.items()
    }


def _check_layer(
    state_dict: dict[str, torch.Tensor],
    name: str,
    layer: MosLayer,
    config: MosConfig,
    adapter_name: str,
) -> None:
    n_layers = layer.group.readers_A[adapter_name].n_layers
    keys = [f"{name}.{index}.{adapter_name}" for index in ("mos_index_A", "mos_index_B")]
    for key in keys:
        check_index(config, n_layers, layer.position[adapter_name], state_dict[key], key)
    if not config.pair_dissociation and not torch.equal(
        state_dict[keys[0]].cpu().long(), state_dict[keys[1]].cpu().long()
    ):
        raise ValueError(
            f"{keys[1]} differs from the index of A, although pair_dissociation is off."
        )


def _expected_entries(model: nn.Module, adapter_name: str) -> dict[str, torch.Tensor]:
    entries = {}
    for name, group in _named(model, SharedPools):
        for pool in ("pool_A", "pool_B"):
            if adapter_name in getattr(group, pool):
                entries[f"{name}.{pool}.{adapter_name}"] = getattr(group, pool)[adapter_name]
    for name, layer in _named(model, MosLayer):
        for buffers in ("mos_index_A", "mos_index_B", "mos_scale"):
            if adapter_name in getattr(layer, buffers):
                entries[f"{name}.{buffers}.{adapter_name}"] = getattr(layer, buffers)[adapter_name]
    return entries


def _named(model: nn.Module, cls: type) -> Iterable[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if isinstance(module, cls):
            # FSDP wraps modules without showing it in the keys of a state dict.
            yield name.replace("_fsdp_wrapped_module.", ""), module


def _listed(title: str, keys: list[str]) -> str:
    if not keys:
        return ""
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return f"{title}: {', '.join(keys[:3])}{more}."
