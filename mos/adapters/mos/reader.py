"""Reading a pool for all of its layers at once.

A pool is cast to the compute dtype and gathered once, for every layer together; a layer then takes
its own slice. The routing is frozen, so its inverse (where each shard is read) is computed
beforehand, and the gradient of a pool is one segmented sum over it: in float32, without atomics, in
a fixed order. Launches therefore do not depend on the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


class _GatherShards(torch.autograd.Function):
    """`pool[index]` for all layers of a group. Saves no tensors, so that checkpointing, which
    matches the saved tensors of a recomputation by number, never notices it."""

    @staticmethod
    def forward(
        ctx: Any,
        pool: torch.Tensor,  # (n_shards, width / l)
        index: torch.Tensor,  # (L * r * l,)
        readers: torch.Tensor,  # (L * r * l,)
        first_reader: torch.Tensor,  # (n_shards,)
        n_layers: int,
        shards_per_vector: int,
        dtype: torch.dtype,
        release: tuple[dict, Any] | None,
    ) -> tuple[torch.Tensor, ...]:
        ctx.readers, ctx.first_reader, ctx.release = readers, first_reader, release
        ctx.pool_dtype = pool.dtype
        width = pool.shape[1] * shards_per_vector
        ctx.vector_shape = (index.shape[0] // (n_layers * shards_per_vector), width)
        ctx.set_materialize_grads(False)
        shards = pool.to(dtype).index_select(0, index)
        return shards.view(n_layers, -1, width).unbind(0)  # L x (r, width)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        present = [grad for grad in grads if grad is not None]
        if ctx.release is not None and len(present) == len(grads):
            # Every layer has been differentiated, and recomputed if it was checkpointed.
            slots, key = ctx.release
            slots.pop(key, None)
        if not present:
            return (None,) * 8
        if len(present) < len(grads):
            zero = present[0].new_zeros(ctx.vector_shape)
            grads = tuple(zero if grad is None else grad for grad in grads)
        accumulate = torch.promote_types(ctx.pool_dtype, torch.float32)
        stacked = torch.stack(grads).to(accumulate)  # type: ignore[arg-type]
        grad = nn.functional.embedding_bag(
            ctx.readers,
            stacked.view(ctx.readers.shape[0], -1),  # (L * r * l, width / l)
            ctx.first_reader,
            mode="sum",
        )
        return (grad.to(ctx.pool_dtype), *(None,) * 7)


class PoolReader(nn.Module):
    """Reads one pool for all of its layers, by their frozen indices.

    Args:
        indices: index of each layer, L x `(r * l,)`.
        n_shards: rows of the pool.
        shards_per_vector: l.
    """

    index: torch.Tensor
    readers: torch.Tensor
    first_reader: torch.Tensor

    def __init__(
        self, indices: Sequence[torch.Tensor], n_shards: int, shards_per_vector: int
    ) -> None:
        super().__init__()
        self.n_layers, self.shards_per_vector = len(indices), shards_per_vector
        self.n_shards = n_shards
        for name, tensor in self._tensors(indices).items():
            self.register_buffer(name, tensor, persistent=False)

    def _tensors(self, indices: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        index = torch.cat([index.cpu() for index in indices]).long()
        # Where each shard is read: the positions in `index` sorted by shard, and where each begins.
        counts = torch.bincount(index, minlength=self.n_shards)
        tensors = {
            "index": index,
            "readers": index.argsort(stable=True),
            "first_reader": counts.cumsum(0) - counts,
        }
        return {name: tensor.to(torch.int32) for name, tensor in tensors.items()}

    def reroute(self, indices: Sequence[torch.Tensor]) -> None:
        """Read by other indices, in place: what was compiled goes on to hold."""
        for name, tensor in self._tensors(indices).items():
            getattr(self, name).copy_(tensor)

    def forward(
        self, pool: torch.Tensor, dtype: torch.dtype, release: tuple[dict, Any] | None = None
    ) -> tuple[torch.Tensor, ...]:
        """The vectors of every layer in `dtype`, L x `(r, width)`."""
        return _GatherShards.apply(
            pool,
            self.index,
            self.readers,
            self.first_reader,
            self.n_layers,
            self.shards_per_vector,
            dtype,
            release,
        )
