"""The pools of a group of layers: gathered at the start of a forward pass, once for all layers.

A pool is cast to the compute dtype and gathered once, for every layer together; a layer then takes
its own slice. The gradient of a pool is one segmented sum over where each shard is read: in
float32, without atomics, in a fixed order. Launches therefore do not depend on the number of
layers. Nothing gathered outlives the pass, so that no write to a pool can be missed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import Weights
from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.routing import GroupKey
from mos.adapters.shared import SharedGroup, SharedTensors


class _GatherShards(torch.autograd.Function):
    """`pool[index]` as the vectors of some layers. Saves no tensors, so that checkpointing, which
    matches the saved tensors of a recomputation by number, never notices who gathered."""

    @staticmethod
    def forward(
        ctx: Any,
        pool: torch.Tensor,  # (n_shards, width / l)
        index: torch.Tensor,  # (L * r * l,)
        n_layers: int,
        shards_per_vector: int,
        dtype: torch.dtype,
    ) -> tuple[torch.Tensor, ...]:
        ctx.index, ctx.n_shards, ctx.pool_dtype = index, pool.shape[0], pool.dtype
        width = pool.shape[1] * shards_per_vector
        ctx.vector_shape = (index.shape[0] // (n_layers * shards_per_vector), width)
        ctx.set_materialize_grads(False)
        shards = pool.to(dtype).index_select(0, index)
        return shards.view(n_layers, -1, width).unbind(0)  # L x (r, width)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        present = [grad for grad in grads if grad is not None]
        if not present:
            return (None,) * 5
        if len(present) < len(grads):
            zero = present[0].new_zeros(ctx.vector_shape)
            grads = tuple(zero if grad is None else grad for grad in grads)
        accumulate = torch.promote_types(ctx.pool_dtype, torch.float32)
        stacked = torch.stack(grads).to(accumulate)  # type: ignore[arg-type]
        # The positions in `index` sorted by shard, and where those of each shard begin.
        in_order, readers = ctx.index.sort(stable=True)
        shards = torch.arange(ctx.n_shards, device=readers.device, dtype=in_order.dtype)
        grad = nn.functional.embedding_bag(
            readers,
            stacked.view(readers.shape[0], -1),  # (L * r * l, width / l)
            torch.searchsorted(in_order, shards),
            mode="sum",
        )
        return (grad.to(ctx.pool_dtype), *(None,) * 4)


class SharedPools(SharedGroup):
    """The pools of one group of layers.

    `lora_A` and `lora_B` are so called because LoRA+ gives what has `lora_B` in its name the higher
    learning rate.
    """

    def __init__(self, key: GroupKey) -> None:
        super().__init__()
        self.key = key
        self.lora_A, self.lora_B = nn.Module(), nn.Module()
        self.lora_A.add_module("mos_pool_A", Weights())  # adapter -> (n_shards, in_features / l)
        self.lora_B.add_module("mos_pool_B", Weights())  # adapter -> (n_shards, out_features / l)
        self.configs: dict[str, MosConfig] = {}  # as the group holds them
        self.gathered: dict[tuple[str, str], tuple[torch.Tensor, ...]] = {}  # during a pass

    def pool(self, side: str, adapter_name: str) -> nn.Parameter:
        return self.weights()[f"mos_pool_{side}"].of(adapter_name)

    def add(
        self, adapter_name: str, config: MosConfig, pool_A: torch.Tensor, pool_B: torch.Tensor
    ) -> None:
        self.configs[adapter_name] = config
        for side, pool in (("A", pool_A), ("B", pool_B)):
            self.weights()[f"mos_pool_{side}"].add(adapter_name, pool)

    def prepare(self, adapter_names: Sequence[str]) -> None:
        """Gather at the start of a forward pass, so that it happens once and outside of any block
        that is checkpointed."""
        self.gathered.clear()
        for name in adapter_names:
            for side in "AB" if name in self.layers else "":
                layers = self.layers[name]
                # offloaded ones are brought in when they run, and read for themselves
                if not any(layer.index(side, name).is_meta for layer in layers):
                    self.gathered[side, name] = self.read(side, name, layers)

    def read(self, side: str, adapter_name: str, layers: Sequence[Any]) -> tuple[torch.Tensor, ...]:
        """The vectors of some layers, each `(r, width)`, in the dtype to compute in."""
        pool = self.pool(side, adapter_name)
        indices = [layer.index(side, adapter_name).to(pool.device) for layer in layers]
        shards = self.configs[adapter_name].shards_per_vector
        return _GatherShards.apply(
            pool, torch.cat(indices), len(layers), shards, _compute_dtype(pool)
        )

    def vectors(self, side: str, adapter_name: str, layer: Any) -> torch.Tensor:
        """Rows of A `(r, in_features)` or columns of B `(r, out_features)` of one layer."""
        gathered = self.gathered.get((side, adapter_name))
        # None: the layer was called without the model around it, or is being recomputed.
        if gathered is not None:
            vectors, with_grad = gathered[layer.position[adapter_name]], torch.is_grad_enabled()
            if vectors.requires_grad and not with_grad and _is_distributed():
                raise RuntimeError(
                    "MoS cannot be trained by several processes with reentrant gradient "
                    "checkpointing: gradients of the shared pools would be silently wrong. Pass "
                    'gradient_checkpointing_kwargs={"use_reentrant": False}.'
                )
            pool = self.pool(side, adapter_name)
            differentiable = vectors.requires_grad or not (with_grad and pool.requires_grad)
            if differentiable and vectors.dtype == _compute_dtype(pool):
                return vectors
        return self.read(side, adapter_name, [layer])[0]

    def forget(self, adapter_name: str) -> None:
        super().forget(adapter_name)
        self.configs.pop(adapter_name, None)


class MosTensors(SharedTensors):
    """All pools of a model, gathered at the start of each of its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed_adapter_names: list[str] | None = None  # of a batch that mixes adapters

    def before_forward(self, model: nn.Module, args: tuple) -> None:
        for group in self:
            layer = next(iter(group.layers.values()))[0]
            if layer.disable_adapters or layer.merged:
                return
            group.prepare(self.mixed_adapter_names or layer.active_adapters)

    def after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        for group in self:
            group.gathered.clear()


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
