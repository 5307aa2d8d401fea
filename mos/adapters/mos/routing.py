"""Routing: which shards of the pools make up the A and B of each layer (method, section 3).

Public shards come first in a pool and may be read by every layer. The last `p * L * l` are private:
layer k owns `p * l` of them. A layer's index lists `r * l` shards: `(r - p) * l` public ones, then
its private ones in order. Row j of A is the concatenation of shards `index[j*l : (j+1)*l]`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mos.adapters.mos.config import MosConfig


@dataclass(frozen=True)
class GroupKey:
    """Layers that share a pair of pools: one type of one shape."""

    type: str
    in_features: int
    out_features: int

    @property
    def features(self) -> tuple[int, int]:
        return self.in_features, self.out_features

    @property
    def name(self) -> str:
        return f"{self.type}_{self.in_features}x{self.out_features}"


def grouped(
    config: MosConfig, shapes: Mapping[str, tuple[int, int]]
) -> dict[GroupKey, tuple[MosConfig, list[str]]]:
    """The groups that layers form: the config as a group can hold it, and the layers' paths.

    Args:
        shapes: path of a layer -> (in_features, out_features), blocks in their order.
    """
    groups: dict[GroupKey, list[str]] = {}
    for path, widths in shapes.items():
        groups.setdefault(GroupKey(path.rpartition(".")[2], *widths), []).append(path)
    return {key: (config.fitted(len(paths), *key.features), paths) for key, paths in groups.items()}


@dataclass
class Route:
    """A layer's place in its group and what it reads, frozen from the start.

    Attributes:
        position: which layer of the group it is.
        index_A: shards of pool_A, `(r * l,)`, int32.
        index_B: shards of pool_B, `(r * l,)`, int32.
        scale: random scaling, `(r,)`, float32, or None.
    """

    position: int
    index_A: torch.Tensor  # noqa: N815
    index_B: torch.Tensor  # noqa: N815
    scale: torch.Tensor | None


def draw(config: MosConfig, n_layers: int, generator: torch.Generator) -> Iterator[Route]:
    """Draw what the layers of one group read, in their order."""
    r, n_shards = config.rank(n_layers), config.n_shards(n_layers)
    for layer in range(n_layers):
        if _is_pure_sharing(config, n_layers):
            index_A = index_B = torch.arange(n_shards, dtype=torch.int32)
        else:
            index_A = _draw_index(config, n_layers, layer, generator)
            if config.pair_dissociation:
                index_B = _draw_index(config, n_layers, layer, generator)
            else:
                index_B = index_A
        scale = None
        if config.random_scaling is not None:
            mean, std = config.random_scaling["mean"], config.random_scaling["std"]
            scale = torch.empty(r).normal_(mean, std, generator=generator)
        yield Route(layer, index_A, index_B.clone(), scale)


def _is_pure_sharing(config: MosConfig, n_layers: int) -> bool:
    """Whether a layer reads the whole pool as unbroken pairs. Their order is then immaterial."""
    return (
        config.shards_per_vector == 1
        and config.private_rank == 0
        and not config.pair_dissociation
        and config.rank(n_layers) == config.n_shards(n_layers)
    )


def _draw_index(
    config: MosConfig, n_layers: int, layer: int, generator: torch.Generator
) -> torch.Tensor:
    n_read = (config.rank(n_layers) - config.private_rank) * config.shards_per_vector
    public = torch.randperm(config.n_public(n_layers), generator=generator)[:n_read]
    return torch.cat([public, private_shards(config, n_layers, layer)]).to(torch.int32)


def private_shards(config: MosConfig, n_layers: int, layer: int) -> torch.Tensor:
    """The shards that only the `layer`-th layer of its group reads, `(p * l,)`."""
    n_private = config.private_rank * config.shards_per_vector
    first = config.n_public(n_layers) + layer * n_private
    return torch.arange(first, first + n_private)


def check_index(
    config: MosConfig, n_layers: int, layer: int, index: torch.Tensor, where: str
) -> None:
    """Raise ValueError unless `index` is one that MoS could have drawn for this layer."""
    n_shards, n_public = config.n_shards(n_layers), config.n_public(n_layers)
    index = index.detach().cpu().long()
    lowest, highest = int(index.min()), int(index.max())
    if lowest < 0 or highest >= n_shards:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"{where}: shard {wrong} is outside of the pool of {n_shards} shards.")
    private = private_shards(config, n_layers, layer)
    public = index[: len(index) - len(private)]
    if (public >= n_public).any():
        shard = int(public[public >= n_public][0])
        raise ValueError(
            f"{where}: reads shard {shard} as a public one, but shards from {n_public} on are "
            "private. A private shard must not be shared."
        )
    if not torch.equal(index[len(public) :], private):
        raise ValueError(
            f"{where}: its private shards must be {private.tolist()}, found "
            f"{index[len(public) :].tolist()}. A private shard must not be shared."
        )
    if len(public.unique()) != len(public):
        raise ValueError(f"{where}: a public shard is read more than once by the same layer.")


def storage_dtype(n_shards: int) -> torch.dtype:
    """The smallest integer type that holds the numbers of `n_shards` shards."""
    for dtype in (torch.uint8, torch.int16, torch.int32):
        if n_shards - 1 <= torch.iinfo(dtype).max:
            return dtype
    return torch.int64
