"""A MoS adapter as it is saved: pools in memory, A and B of a layer made when they are asked for.

Adapters of one configuration and routing seed read the same shards for the same layers. What they
read, the `Plan`, is kept once for all of them; what differs, the pools, is a quarter of their LoRA
(e = 8, r = 32).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import SafetensorError, safe_open

from mos.adapters import WEIGHTS
from mos.adapters.folder import adapter_config
from mos.adapters.mos import MosConfig, MosModel
from mos.adapters.mos.routing import GroupKey, check_index
from mos.adapters.saved import Shapes, all_finite, keys_of
from mos.errors import UserError
from mos.interchange import check_only_factors


@dataclass(frozen=True)
class Reading:
    """What one layer reads: the pools of its group, and shards of them."""

    group: str
    index_A: torch.Tensor  # (r * l,)  # noqa: N815
    index_B: torch.Tensor  # (r * l,)  # noqa: N815


@dataclass(frozen=True)
class Plan:
    """What every layer of an adapter reads; immutable, shared by the adapters that read the same.

    Attributes:
        rank: of all layers.
        shapes: path of a layer -> (in_features, out_features).
        readings: path of a layer -> its `Reading`.
    """

    rank: int
    shapes: Shapes
    readings: Mapping[str, Reading]


@dataclass(frozen=True)
class Adapter:
    """Attributes:
    plan: shared.
    pool_A: group -> (shards, in_features / l).
    pool_B: group -> (shards, out_features / l), with alpha / r in it.
    scale: path of a layer -> random scaling (r,), if there is any.
    """

    plan: Plan
    pool_A: Mapping[str, torch.Tensor]  # noqa: N815
    pool_B: Mapping[str, torch.Tensor]  # noqa: N815
    scale: Mapping[str, torch.Tensor]

    def factors(self, path: str) -> tuple[torch.Tensor, torch.Tensor]:
        """A (r, in_features), and B (out_features, r), a view that is transposed in memory."""
        reading, rank = self.plan.readings[path], self.plan.rank
        A = self.pool_A[reading.group].index_select(0, reading.index_A).view(rank, -1)
        B = self.pool_B[reading.group].index_select(0, reading.index_B).view(rank, -1)
        if path in self.scale:
            B = B * self.scale[path][:, None].to(B)
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
    try:
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            shapes = MosModel.saved_shapes(file)
            keys = keys_of(file, MosModel.renamed)
            tensors = {name: file.get_tensor(key) for name, key in keys.items()}
    except SafetensorError as error:
        raise UserError(f"{WEIGHTS} is damaged ({error})") from error
    try:
        return _build(config, shapes, tensors, dtype)
    except KeyError as error:
        raise UserError(f"{WEIGHTS} has no {error.args[0]}") from error
    except ValueError as error:
        raise UserError(str(error)) from error


def _build(
    config: MosConfig, shapes: Shapes, tensors: dict[str, torch.Tensor], dtype: torch.dtype
) -> Adapter:
    groups: dict[GroupKey, list[str]] = {}
    for path, (in_features, out_features) in shapes.items():
        key = GroupKey(path.rpartition(".")[2], in_features, out_features)
        groups.setdefault(key, []).append(path)
    if not groups:
        raise ValueError(f"{WEIGHTS} adapts no layer")
    readings: dict[str, Reading] = {}
    pools: dict[str, dict[str, torch.Tensor]] = {"A": {}, "B": {}}
    scale: dict[str, torch.Tensor] = {}
    digest = hashlib.sha256()
    ranks = {config.rank(len(paths)) for paths in groups.values()}
    if len(ranks) > 1:
        raise ValueError(f"its layers have the ranks {sorted(ranks)}, and vLLM wants one")
    (rank,) = ranks
    for group, paths in groups.items():
        widths = {"A": group.in_features, "B": group.out_features}
        for side, width in widths.items():
            name = f"mos.{group.name}.lora_{side}.mos_pool_{side}.weight"
            expected = (config.n_shards(len(paths)), width // config.shards_per_vector)
            pools[side][group.name] = _pool(name, tensors.pop(name), expected).to(dtype)
        pools["B"][group.name] *= config.mos_alpha / rank
        for position, path in enumerate(paths):
            indices = []
            for side in "AB":
                name = f"{path}.mos_index_{side}"
                index = tensors.pop(name)
                length = rank * config.shards_per_vector
                if tuple(index.shape) != (length,) or index.is_floating_point():
                    raise ValueError(
                        f"{name} is {index.dtype} {tuple(index.shape)}, but by adapter_config.json"
                        f" it is {length} integers"
                    )
                check_index(config, len(paths), position, index, name)
                indices.append(index.to(torch.int32))
                digest.update(f"{name} {group.name} {rank}".encode())
                digest.update(indices[-1].numpy().tobytes())
            readings[path] = Reading(group.name, *indices)
            if config.random_scaling is not None:
                scale[path] = tensors.pop(f"{path}.mos_scale")
    if tensors:
        raise ValueError(f"{WEIGHTS} holds what is not part of this adapter: {min(tensors)}")
    plan = Plan(rank, shapes, readings)
    plan = _PLANS.setdefault(digest.hexdigest(), plan)
    return Adapter(plan, pools["A"], pools["B"], scale)


def _pool(name: str, pool: torch.Tensor, expected: tuple[int, int]) -> torch.Tensor:
    if tuple(pool.shape) != expected or not pool.is_floating_point():
        raise ValueError(f"{name} is {pool.dtype} {tuple(pool.shape)}, expected {expected}")
    if not all_finite(pool):
        raise ValueError(f"{name} has numbers that are not finite")
    return pool
