"""The pools of one group of layers, and reading them for all of its layers at once.

A forward pass casts each pool to the compute dtype and gathers it once, for every layer together; a
layer then takes its own slice. The routing is frozen, so its inverse (where each shard is read) is
computed beforehand, and the gradient of a pool is one segmented sum over it: in float32, without
atomics, in a fixed order. Launches therefore do not depend on the number of layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mos.adapters.mos.routing import GroupKey


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
        index = torch.cat([index.cpu() for index in indices]).long()
        # Where each shard is read: the positions in `index` sorted by shard, and where each begins.
        counts = torch.bincount(index, minlength=n_shards)
        tensors = {
            "index": index,
            "readers": index.argsort(stable=True),
            "first_reader": counts.cumsum(0) - counts,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor.to(torch.int32), persistent=False)

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


@dataclass(slots=True)
class _Vectors:
    """What was gathered from one pool, and the state that it was gathered in."""

    pool: nn.Parameter
    vectors: tuple[torch.Tensor, ...]  # L x (r, width)
    with_grad: bool
    version: int
    sample: torch.Tensor | None

    def current(self) -> bool:
        """Whether the pool is as it was, and the dtype to compute in too."""
        return self.version == self.pool._version and (
            self.vectors[0].dtype == _compute_dtype(self.pool)
        )


class SharedPools(nn.Module):
    """A pair of pools per adapter, shared by the layers of one group.

    The tuner model owns these modules, so that a state dict has each pool once; the layers refer
    to theirs without registering it.
    """

    def __init__(self, key: GroupKey) -> None:
        super().__init__()
        self.key = key
        self.pool_A = nn.ParameterDict()  # adapter -> (n_shards, in_features / l)
        self.pool_B = nn.ParameterDict()  # adapter -> (n_shards, out_features / l)
        self.readers_A = nn.ModuleDict()
        self.readers_B = nn.ModuleDict()
        self._slots: dict[tuple[str, str], _Vectors] = {}  # by side, A or B, and adapter

    def route(
        self,
        adapter_name: str,
        indices_A: Sequence[torch.Tensor],
        indices_B: Sequence[torch.Tensor],
        shards_per_vector: int,
    ) -> None:
        """Set the indices of all layers of the group, in their order. The pools exist already."""
        for readers, pools, indices in (
            (self.readers_A, self.pool_A, indices_A),
            (self.readers_B, self.pool_B, indices_B),
        ):
            pool = pools[adapter_name]
            reader = PoolReader(indices, pool.shape[0], shards_per_vector)
            readers[adapter_name] = reader if pool.is_meta else reader.to(pool.device)
        self._slots.clear()

    def n_layers(self, adapter_name: str) -> int:
        """L: how many layers read the pools of this adapter."""
        reader = self.readers_A[adapter_name]
        assert isinstance(reader, PoolReader)
        return reader.n_layers

    def forget(self, adapter_name: str) -> None:
        """Drop everything of an adapter."""
        for container in (self.pool_A, self.pool_B, self.readers_A, self.readers_B):
            if adapter_name in container:
                del container[adapter_name]
        self._slots.clear()

    def move(
        self, adapter_name: str, device: torch.device | None, dtype: torch.dtype | None = None
    ) -> None:
        """Move an adapter's pools, and their readers, unless they are on the meta device."""
        for pools, readers in ((self.pool_A, self.readers_A), (self.pool_B, self.readers_B)):
            pool = pools[adapter_name]
            if not pool.is_meta:
                # Only when needed: an optimizer may hold the parameter.
                if pool.device != (device or pool.device) or pool.dtype != (dtype or pool.dtype):
                    pools[adapter_name] = nn.Parameter(
                        pool.detach().to(device=device, dtype=dtype), pool.requires_grad
                    )
                    self._slots.clear()
                readers[adapter_name].to(pools[adapter_name].device)

    def prepare(self, adapter_names: Sequence[str]) -> None:
        """Gather at the start of a forward pass, so that it happens once and outside of any block
        that is checkpointed.

        With gradients, always anew: an optimizer may have written to the pools in ways that leave
        no trace (bitsandbytes' kernels). Without, what was gathered is kept until a pool changes.
        """
        keys = [(side, name) for name in adapter_names if name in self.pool_A for side in "AB"]
        for unused in self._slots.keys() - set(keys):
            del self._slots[unused]
        for key in keys:
            slot = self._slots.get(key)
            if torch.is_grad_enabled() or slot is None or not self._unchanged(key, slot):
                self._gather(key)

    def release(self) -> None:
        self._slots.clear()

    def vectors(self, adapter_name: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of A `(r, in_features)` and columns of B `(r, out_features)` of one layer, in the
        dtype to compute in."""
        return self._of_all("A", adapter_name)[layer], self._of_all("B", adapter_name)[layer]

    def _of_all(self, side: str, adapter_name: str) -> tuple[torch.Tensor, ...]:
        slot = self._slots.get((side, adapter_name))
        if torch.compiler.is_compiling():
            return (slot or self._gather((side, adapter_name))).vectors
        with_grad = torch.is_grad_enabled()
        # Otherwise the layer was called without the model around it, or is being recomputed.
        if slot is not None and slot.current() and (slot.with_grad or not with_grad):
            if slot.with_grad != with_grad and _is_distributed():
                raise RuntimeError(
                    "MoS cannot be trained by several processes with reentrant gradient "
                    "checkpointing: gradients of the shared pools would be silently wrong. Pass "
                    'gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            return slot.vectors
        return self._gather((side, adapter_name)).vectors

    def _gather(self, key: tuple[str, str]) -> _Vectors:
        side, adapter_name = key
        pool, with_grad = self._pool(key), torch.is_grad_enabled()
        reader = (self.readers_A if side == "A" else self.readers_B)[adapter_name]
        compiling = torch.compiler.is_compiling()
        slot = self._slots[key] = _Vectors(
            pool=pool,
            vectors=reader(pool, _compute_dtype(pool), None if compiling else (self._slots, key)),
            with_grad=with_grad,
            version=0 if compiling else pool._version,
            sample=None if compiling or with_grad else pool.detach()[:, 0].clone(),
        )
        return slot

    def _unchanged(self, key: tuple[str, str], slot: _Vectors) -> bool:
        # Writing through `.data` (moving averages, hand-made updates) does not count as a version:
        # compare one entry of every shard as well.
        pool = self._pool(key)
        return (
            slot.sample is not None
            and slot.pool is pool
            and slot.current()
            and slot.sample.device == pool.device
            and torch.equal(slot.sample, pool.detach()[:, 0])
        )

    def _pool(self, key: tuple[str, str]) -> nn.Parameter:
        return (self.pool_A if key[0] == "A" else self.pool_B)[key[1]]

    def __getstate__(self) -> dict[str, Any]:
        # What was gathered belongs to a running computation: it is neither copied nor pickled.
        return {**self.__dict__, "_slots": {}}


def _is_distributed() -> bool:
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def _compute_dtype(pool: torch.Tensor) -> torch.dtype:
    device_type = pool.device.type
    if torch.is_autocast_enabled(device_type) and pool.dtype != torch.float64:
        return torch.get_autocast_dtype(device_type)
    return pool.dtype
