"""Tensors without memory, and what computing with them would allocate on a GPU."""

from __future__ import annotations

import math
import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from typing import Any

import bitsandbytes  # noqa: F401 (registers its operators)
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

MIB = 2**20
CPU = torch.device("cpu")
ops: Any = torch.ops


Block = tuple[int, int, list]  # start, size, the free ones of its kind


class Allocator:
    """torch's caching allocator for CUDA as it is by default, counting only.

    It takes the smallest free block that is large enough and splits off what is too much; freed
    neighbours are joined, and segments are kept. What is lost between blocks makes up a fifth of
    the memory of a training with checkpointing.

    Attributes:
        allocated: bytes in use.
        peak: the most that were.
        reserved: bytes of the segments.
    """

    def __init__(self) -> None:
        self.allocated = self.peak = self.reserved = 0
        self._next = 0  # start of the next segment
        self._small: list[tuple[int, int]] = []  # the free ones, (size, start)
        self._large: list[tuple[int, int]] = []
        self._from: dict[int, int] = {}  # their sizes by their starts
        self._up_to: dict[int, int] = {}  # and by their ends

    def take(self, size: int) -> Block:
        size = _up(size, 512)
        pool = self._small if size <= MIB else self._large
        place = bisect_left(pool, (size, 0))
        if place < len(pool):
            found, start = pool[place]
            self._remove(start, found, pool)
        else:
            found = 2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else _up(size, 2 * MIB)
            self.reserved += found
            start, self._next = self._next, self._next + found + 1  # segments are not joined
        if found - size > (0 if pool is self._small else MIB):
            self._add(start + size, found - size, pool)
            found = size
        self.allocated += found
        self.peak = max(self.peak, self.allocated)
        return start, found, pool

    def give_back(self, block: Block) -> None:
        start, size, pool = block
        self.allocated -= size
        if after := self._from.get(start + size):
            self._remove(start + size, after, pool)
        if before := self._up_to.get(start, 0):
            self._remove(start - before, before, pool)
        self._add(start - before, before + size + (after or 0), pool)

    def _add(self, start: int, size: int, pool: list) -> None:
        insort(pool, (size, start))
        self._from[start] = self._up_to[start + size] = size

    def _remove(self, start: int, size: int, pool: list) -> None:
        del pool[bisect_left(pool, (size, start))], self._from[start], self._up_to[start + size]


def _up(size: int, step: int) -> int:
    return -(-size // step) * step


class _Outline(torch.Tensor):
    """For autograd and autocast a tensor on the CPU; shapes are computed with `meta`."""

    meta: torch.Tensor

    @staticmethod
    def __new__(cls, meta: torch.Tensor) -> _Outline:
        place: Any = {"strides": meta.stride(), "storage_offset": meta.storage_offset()}
        outline = torch.Tensor._make_wrapper_subclass(
            cls, meta.size(), dtype=meta.dtype, device=CPU, **place
        )
        outline.meta = meta
        return outline

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):  # type: ignore[override]
        raise RuntimeError(f"{func} of a simulation, after its end")


class Simulation(TorchDispatchMode):
    """While it is entered, what is made is an outline, and what it would take is counted.

    Outlines say that they are on the CPU: without CUDA, torch differentiates nowhere else.

    Attributes:
        memory: of the GPU.
        flops: of matrix products.
    """

    def __init__(self) -> None:
        super().__init__()
        self.memory = Allocator()
        self.flops = 0
        self._held: dict[int, weakref.ref] = {}
        self._seen: dict[tuple, tuple] = {}  # blocks repeat, and torch takes long over a shape

    def hold(self, tensor: torch.Tensor) -> None:
        """Count the memory of a tensor for as long as it, or a view of it, is there."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held or not storage.nbytes():
            return
        block = self.memory.take(storage.nbytes())

        def dropped(_: Any) -> None:
            del self._held[key]
            self.memory.give_back(block)

        self._held[key] = weakref.ref(storage, dropped)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is ops.prim.device.default:
            return CPU
        if func is ops.aten._local_scalar_dense.default:
            return 1  # no value is known; LoKr asks whether a layer is not dropped
        known: dict[int, _Outline] = {}
        args = [_meta(value, known) for value in args]
        kwargs = {key: _meta(value, known) for key, value in (kwargs or {}).items()}
        makes = not known and any(argument.name == "device" for argument in func._schema.arguments)
        if makes or "device" in kwargs:
            kwargs["device"] = "meta"
        signature = (func, _signature(args), _signature(kwargs.items()))
        if signature in self._seen:
            flops, size, stride, dtype = self._seen[signature]
            made = torch.empty_strided(size, stride, dtype=dtype, device="meta")
        else:
            made = func(*args, **kwargs)
            formula = flop_registry.get(func.overloadpacket)
            flops = formula(*args, **kwargs, out_val=made) if formula else 0
            if func is ops.bitsandbytes.gemm_4bit.default:
                flops = 2 * made.numel() * args[2][1]
            if isinstance(made, torch.Tensor) and made.untyped_storage()._cdata not in self._held:
                self._seen[signature] = flops, *_signature(made)
        if func is ops.bitsandbytes.gemm_4bit.default:  # on CUDA it puts the whole weight somewhere
            self.memory.give_back(self.memory.take(math.prod(args[2]) * made.itemsize))
        self.flops += flops
        return self._outline(made, known)

    def _outline(self, value: Any, known: Mapping[int, _Outline]) -> Any:
        if isinstance(value, list | tuple):
            return [self._outline(item, known) for item in value]
        if not isinstance(value, torch.Tensor) or id(value) in known:
            return known.get(id(value), value)
        self.hold(value)
        return _Outline(value)


def _meta(value: Any, known: dict[int, _Outline]) -> Any:
    if isinstance(value, _Outline):
        known[id(value.meta)] = value
        return value.meta
    if isinstance(value, torch.Tensor):
        return value.to("meta")
    return [_meta(item, known) for item in value] if isinstance(value, list) else value


def _signature(value: Any) -> Any:
    """What shapes follow from: of tensors all but the values, of numbers the type too."""
    if isinstance(value, torch.Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, int | float):
        return type(value), value
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_signature, value))
    return value
