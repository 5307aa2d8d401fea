"""The pools of a group of layers: gathered at the start of a forward pass, once for all layers.

A pool is cast to the compute dtype and gathered once, for every layer together; a layer then takes
its own slice. The routing is frozen, so its inverse (where each shard is read) is computed
beforehand, and the gradient of a pool is one segmented sum over it: in float32, without atomics, in
a fixed order. Launches therefore do not depend on the number of layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import Weights
from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.routing import GroupKey, check_index
from mos.adapters.shared import SharedGroup, SharedTensors


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
    ) -> tuple[torch.Tensor, ...]:
        ctx.readers, ctx.first_reader = readers, first_reader
        ctx.pool_dtype = pool.dtype
        width = pool.shape[1] * shards_per_vector
        ctx.vector_shape = (index.shape[0] // (n_layers * shards_per_vector), width)
        ctx.set_materialize_grads(False)
        shards = pool.to(dtype).index_select(0, index)
        return shards.view(n_layers, -1, width).unbind(0)  # L x (r, width)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        present = [grad for grad in grads if grad is not None]
        if not present:
            return (None,) * 7
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
        return (grad.to(ctx.pool_dtype), *(None,) * 6)


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

    def forward(self, pool: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
        """The vectors of every layer in `dtype`, L x `(r, width)`."""
        return _GatherShards.apply(
            pool,
            self.index,
            self.readers,
            self.first_reader,
            self.n_layers,
            self.shards_per_vector,
            dtype,
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


class Pool(nn.Module):
    """One side of a group: a pool by adapter, and what was gathered from it."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side
        self.add_module(f"mos_pool_{side}", Weights())  # adapter -> (n_shards, width / l)
        self.readers = nn.ModuleDict()
        self._routed: dict[str, list[tuple[torch.Tensor, int]]] = {}  # indices, as last seen
        self._slots: dict[str, _Vectors] = {}

    @property
    def weights_of_adapters(self) -> Weights:
        weights = self._modules[f"mos_pool_{self.side}"]
        assert isinstance(weights, Weights)
        return weights

    def of(self, adapter_name: str) -> nn.Parameter:
        return self.weights_of_adapters.of(adapter_name)

    def route(self, adapter_name: str, layers: Sequence[Any], config: MosConfig) -> None:
        """Read the pool by the layers' indices, if these are not what they were.

        Raises:
            ValueError: an index is not one that MoS could have drawn.
        """
        name = f"mos_index_{self.side}"
        indices = [layer._modules[name]._buffers[adapter_name] for layer in layers]
        routed, reader = self._routed.get(adapter_name), self.readers._modules.get(adapter_name)
        pool = self.of(adapter_name)
        if (
            routed is not None
            and len(routed) == len(indices)
            and all(
                index is seen and _version(index) == version
                for index, (seen, version) in zip(indices, routed, strict=True)
            )
            and (pool.is_meta or reader.index.device == pool.device)  # type: ignore[union-attr]
        ):
            return
        if any(index.is_meta for index in indices):
            return  # a model without memory
        for i, index in enumerate(indices):
            check_index(config, len(layers), i, index, f"layer {i} of {name}")
        if isinstance(reader, PoolReader) and reader.n_layers == len(indices):
            reader.reroute(indices)
        else:
            reader = PoolReader(indices, pool.shape[0], config.shards_per_vector)
            reader.train(self.training)
        self.readers[adapter_name] = reader if pool.is_meta else reader.to(pool.device)
        self._routed[adapter_name] = [(index, _version(index)) for index in indices]
        self._slots.pop(adapter_name, None)

    def forget(self, adapter_name: str) -> None:
        for kept in (self.readers._modules, self._routed, self._slots):
            kept.pop(adapter_name, None)

    def prepare(self, adapter_names: Sequence[str]) -> None:
        """Gather at the start of a forward pass, so that it happens once and outside of any block
        that is checkpointed.

        With gradients, always anew: an optimizer may have written to the pools in ways that leave
        no trace (bitsandbytes' kernels). Without, what was gathered is kept until a pool changes.
        """
        for unused in self._slots.keys() - set(adapter_names):
            del self._slots[unused]
        for name in adapter_names:
            slot = self._slots.get(name)
            if torch.is_grad_enabled() or slot is None or not self._unchanged(name, slot):
                self._gather(name)

    def release(self) -> None:
        self._slots.clear()

    def vectors(self, adapter_name: str) -> tuple[torch.Tensor, ...]:
        """The vectors of every layer, L x `(r, width)`, in the dtype to compute in."""
        slot = self._slots.get(adapter_name)
        if torch.compiler.is_compiling():
            return (slot or self._gather(adapter_name)).vectors
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
        return self._gather(adapter_name).vectors

    def _gather(self, adapter_name: str) -> _Vectors:
        pool, with_grad = self.of(adapter_name), torch.is_grad_enabled()
        compiling = torch.compiler.is_compiling()
        vectors = self.readers[adapter_name](pool, _compute_dtype(pool))
        if not compiling and vectors[0].grad_fn is not None:
            vectors[0].grad_fn.register_hook(partial(self._differentiated, adapter_name))
        slot = self._slots[adapter_name] = _Vectors(
            pool=pool,
            vectors=vectors,
            with_grad=with_grad,
            version=0 if compiling else pool._version,
            sample=None if compiling or with_grad else pool.detach()[:, 0].clone(),
        )
        return slot

    def _differentiated(self, adapter_name: str, _: Any, gradients: tuple) -> None:
        # Of every layer, so that those which are checkpointed have been recomputed too.
        if all(gradient is not None for gradient in gradients):
            self._slots.pop(adapter_name, None)

    def _unchanged(self, adapter_name: str, slot: _Vectors) -> bool:
        # Writing through `.data` (moving averages, hand-made updates) does not count as a version:
        # compare one entry of every shard as well.
        pool = self.of(adapter_name)
        return (
            slot.sample is not None
            and slot.pool is pool
            and slot.current()
            and slot.sample.device == pool.device
            and torch.equal(slot.sample, pool.detach()[:, 0])
        )

    def __getstate__(self) -> dict[str, Any]:
        # What was gathered belongs to a running computation: it is neither copied nor pickled.
        return {**self.__dict__, "_slots": {}, "_routed": {}}


class SharedPools(SharedGroup):
    """The pools of one group of layers.

    `lora_A` and `lora_B` are so called because LoRA+ gives what has `lora_B` in its name the higher
    learning rate.
    """

    def __init__(self, key: GroupKey) -> None:
        super().__init__()
        self.key = key
        self.lora_A, self.lora_B = Pool("A"), Pool("B")
        self.configs: dict[str, MosConfig] = {}

    def pool(self, side: str) -> Pool:
        return self.lora_A if side == "A" else self.lora_B

    def add(
        self, adapter_name: str, config: MosConfig, pool_A: torch.Tensor, pool_B: torch.Tensor
    ) -> None:
        self.configs[adapter_name] = config
        self.lora_A.weights_of_adapters.add(adapter_name, pool_A)
        self.lora_B.weights_of_adapters.add(adapter_name, pool_B)

    def n_layers(self, adapter_name: str) -> int:
        """L: how many layers read the pools of this adapter."""
        return len(self.layers[adapter_name])

    def route(self, adapter_names: Iterable[str]) -> None:
        """Read by the indices that the layers have now: they may have been loaded."""
        for name in adapter_names:
            if name in self.layers:
                for pool in (self.lora_A, self.lora_B):
                    pool.route(name, self.layers[name], self.configs[name])

    def prepare(self, adapter_names: Sequence[str]) -> None:
        names = [name for name in adapter_names if name in self.layers]
        if not torch.compiler.is_compiling():
            self.route(names)
        self.lora_A.prepare(names)
        self.lora_B.prepare(names)

    def release(self) -> None:
        self.lora_A.release()
        self.lora_B.release()

    def vectors(self, adapter_name: str, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of A `(r, in_features)` and columns of B `(r, out_features)` of one layer, in the
        dtype to compute in."""
        return self.lora_A.vectors(adapter_name)[layer], self.lora_B.vectors(adapter_name)[layer]

    def forget(self, adapter_name: str) -> None:
        super().forget(adapter_name)
        self.configs.pop(adapter_name, None)
        self.lora_A.forget(adapter_name)
        self.lora_B.forget(adapter_name)

    def move(self, adapter_name: str, dtype: torch.dtype | None = None) -> None:
        super().move(adapter_name, dtype)
        self.release()


class MosTensors(SharedTensors):
    """All pools of a model, gathered at the start of each of its forward passes."""

    def __init__(self) -> None:
        super().__init__()
        self.mixed_adapter_names: list[str] | None = None  # of a batch that mixes adapters
        self.register_load_state_dict_post_hook(_loaded)

    def before_forward(self, model: nn.Module, args: tuple) -> None:
        for group in self:
            layer = next(iter(group.layers.values()))[0]
            if layer.disable_adapters or layer.merged:
                return
            group.prepare(self.mixed_adapter_names or layer.active_adapters)

    def after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            # Nothing that was traced may be left behind. Otherwise the backward pass, or the next
            # forward pass in evaluation, still needs it.
            for group in self:
                group.release()

    def train(self, mode: bool = True) -> MosTensors:
        self.loaded()  # transformers puts tensors into a model without a word, then sets the mode
        return super().train(mode)

    def loaded(self) -> None:
        for group in self:
            group.route(list(group.layers))


def _loaded(tensors: MosTensors, incompatible_keys: Any) -> None:
    tensors.loaded()


def _version(tensor: torch.Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


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
