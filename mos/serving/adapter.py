"""A MoS adapter as it is saved: pools in memory, A and B of a layer made when they are asked for.

Adapters of one configuration and routing seed read the same shards for the same layers. What they
read, the `Plan`, is checked and kept once for all of them; what differs, the pools, is a quarter of
their LoRA (e = 8, r = 32).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, deserialize
from safetensors.torch import load

from mos.adapters import WEIGHTS
from mos.adapters.mos import MosConfig, MosModel
from mos.adapters.mos.routing import check_index, grouped
from mos.adapters.saved import Shapes, adapter_config, all_finite, keys_of
from mos.errors import UserError
from mos.models.interchange import check_only_factors

# What a config says that no layer depends on.
_WHENCE = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")


@dataclass(frozen=True)
class Reading:
    """What one layer reads: the pools of its group, and shards of them."""

    group: str
    index_A: torch.Tensor  # (r * l,)  # noqa: N815
    index_B: torch.Tensor  # (r * l,)  # noqa: N815
    scale: torch.Tensor | None
    """Random scaling, (r,)."""


@dataclass(frozen=True)
class Plan:
    """What every layer of an adapter reads; immutable, shared by the adapters that read the same.

    Attributes:
        config: of the first adapter; in those that share the plan, only what `_WHENCE` names
            differs.
        rank: of all layers.
        shapes: path of a layer -> (in_features, out_features).
        readings: path of a layer -> its `Reading`.
        pools: group -> the keys of its pools A and B in the file.
        stored: of the pools in the file.
    """

    config: MosConfig
    rank: int
    shapes: Shapes
    readings: Mapping[str, Reading]
    pools: Mapping[str, tuple[str, str]]
    stored: torch.dtype


@dataclass(frozen=True)
class Adapter:
    """What is kept of one adapter: its pools.

    Attributes:
        plan: what its layers read, shared with adapters that read the same.
        pool_A: group -> (shards, in_features / l).
        pool_B: group -> (shards, out_features / l), with alpha / r in it.
    """

    plan: Plan
    pool_A: Mapping[str, torch.Tensor]  # noqa: N815
    pool_B: Mapping[str, torch.Tensor]  # noqa: N815

    def factors(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in_features), and B (out_features, r), a view that is transposed in memory."""
        reading, rank = self.plan.readings[path], self.plan.rank
        A = self.pool_A[reading.group].index_select(0, reading.index_A).view(rank, -1)
        B = self.pool_B[reading.group].index_select(0, reading.index_B).view(rank, -1)
        if reading.scale is not None:
            B = B * reading.scale[:, None].to(B)
        return A, B.T


_PLANS: WeakValueDictionary[str, Plan] = WeakValueDictionary()


def read_adapter(folder: Path, dtype: torch.dtype) -> Adapter:
    """Read an adapter folder, with pools in `dtype`; the base model's weights are not needed.

    Raises:
        UserError: it is no MoS adapter, it holds more than factors, or its file is damaged or not
            the one that its config is for.
    """
    config = adapter_config(folder)
    if not isinstance(config, MosConfig):
        raise UserError(f"a {config.peft_type} adapter, not a MoS one")
    check_only_factors(config)
    file = (folder / WEIGHTS).read_bytes()
    try:
        stored = dict(deserialize(file))
    except SafetensorError as error:
        raise UserError(f"{WEIGHTS} is damaged ({error})") from error
    try:
        key = _digest(config, stored)
        plan = _PLANS.get(key) or _PLANS.setdefault(key, _plan(config, load(file)))
    except KeyError as error:
        raise UserError(f"{WEIGHTS} has no {error.args[0]}") from error
    except ValueError as error:
        raise UserError(str(error)) from error
    names = [name for sides in plan.pools.values() for name in sides]
    flat = {name: torch.frombuffer(stored[name]["data"], dtype=plan.stored) for name in names}
    for name, pool in flat.items():
        if not all_finite(pool):
            raise UserError(f"{name} has numbers that are not finite")
    # One piece of memory: of 14 pieces the allocator wastes a fifth, once there are many adapters.
    parts = torch.cat([*flat.values()]).to(dtype).split([len(pool) for pool in flat.values()])
    pools = {n: part.view(stored[n]["shape"]) for n, part in zip(names, parts, strict=True)}
    scale = config.mos_alpha / plan.rank
    pool_A = {group: pools[name] for group, (name, _) in plan.pools.items()}
    pool_B = {group: pools[name].mul_(scale) for group, (_, name) in plan.pools.items()}
    return Adapter(plan, pool_A, pool_B)


def _digest(config: MosConfig, stored: Mapping[str, Any]) -> str:
    """Of all that a plan is made from: the config, names and shapes, what is not a pool."""
    said = {k: v for k, v in config.to_dict().items() if k not in _WHENCE}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=sorted).encode())
    for name, entry in sorted(stored.items()):
        digest.update(f"{name} {entry['dtype']} {entry['shape']}".encode())
        if len(entry["shape"]) == 1:
            digest.update(entry["data"])
    return digest.hexdigest()


def _plan(config: MosConfig, tensors: Mapping[str, torch.Tensor]) -> Plan:
    shapes = MosModel.saved_shapes(tensors)
    keys = keys_of(tensors)
    groups = grouped(config, shapes)
    if not groups:
        raise ValueError(f"{WEIGHTS} adapts no layer")
    ranks = {fitted.rank(len(paths)) for fitted, paths in groups.values()}
    if len(ranks) > 1:
        raise ValueError(f"its layers have the ranks {sorted(ranks)}, and vLLM wants one")
    (rank,) = ranks
    readings: dict[str, Reading] = {}
    pools: dict[str, tuple[str, str]] = {}
    dtypes = set()
    for group, (fitted, paths) in groups.items():
        names = [f"mos.{group.name}.lora_{side}.mos_pool_{side}.weight" for side in "AB"]
        pools[group.name] = keys[names[0]], keys[names[1]]
        for name, width in zip(names, group.features, strict=True):
            pool = tensors[keys.pop(name)]
            expected = (fitted.n_shards(len(paths)), width // fitted.shards_per_vector)
            if tuple(pool.shape) != expected or not pool.is_floating_point():
                raise ValueError(f"{name} is {pool.dtype} {tuple(pool.shape)}, expected {expected}")
            dtypes.add(pool.dtype)
        for position, path in enumerate(paths):
            indices = []
            for side in "AB":
                name = f"{path}.mos_index_{side}"
                index = tensors[keys.pop(name)]
                length = rank * fitted.shards_per_vector
                if tuple(index.shape) != (length,) or index.is_floating_point():
                    raise ValueError(
                        f"{name} is {index.dtype} {tuple(index.shape)}, but by adapter_config.json"
                        f" it is {length} integers"
                    )
                check_index(fitted, len(paths), position, index, name)
                indices.append(index.long())
            scale = None
            if config.random_scaling is not None:
                scale = tensors[keys.pop(f"{path}.mos_scale")].clone()
            readings[path] = Reading(group.name, indices[0], indices[1], scale)
    if keys:
        raise ValueError(f"{WEIGHTS} holds what is not part of this adapter: {min(keys)}")
    if len(dtypes) > 1:
        raise ValueError(f"its pools are of different types: {', '.join(map(str, dtypes))}")
    return Plan(config, rank, shapes, readings, pools, dtypes.pop())
