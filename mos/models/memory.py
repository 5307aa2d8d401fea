"""What a training takes, from a simulation of one step: parameters, files, memory, operations."""

from __future__ import annotations

import json
import math
import weakref
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest.mock import patch

import bitsandbytes as bnb
import torch
from accelerate.utils import convert_outputs_to_fp32
from bitsandbytes.functional import QuantState
from peft import PeftModel, get_peft_model_state_dict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from mos.adapters import rank
from mos.config import TrainConfig
from mos.errors import UserError
from mos.models.loading import skeleton, with_adapter

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


# Bytes of optimizer state per trainable parameter: two moments in fp32, or in blocks of 8 bits.
OPTIMIZER_BYTES = {"8bit": 2 + 8 / 256, "lion": 4.0, "sgd": 0.0, "adafactor": 0.1}
ADAM_BYTES = 8.0  # which unknown optimizers count as
PAGED_FROM = 100_000  # parameters of a tensor from which bitsandbytes pages its state
GIB = 2**30
CONTEXT_BYTES = 500 * 2**20  # CUDA's own, with the kernels that torch and bitsandbytes load


@dataclass(frozen=True)
class Estimate:
    """A training, counted; bytes where nothing else is said.

    Attributes:
        base_parameters: tied ones once.
        rank: working rank, None without one.
        adapter_bytes: tensors of the saved adapter.
        weights_bytes: base and adapter in memory.
        optimizer_bytes: its state, wherever it is.
        peak_memory_bytes: the most that tensors take on the GPU, as torch counts them.
        card_memory_bytes: what the GPU needs for that: the allocator's segments, paged optimizer
            state and CUDA's context.
        batch_flops: products of one forward and backward pass.
    """

    base_parameters: int
    trainable_parameters: int
    rank: int | None
    adapter_bytes: int
    weights_bytes: int
    optimizer_bytes: int
    peak_memory_bytes: int
    card_memory_bytes: int
    batch_flops: int


def estimate(config: TrainConfig) -> Estimate:
    """Count a base model with the adapter of a config, and simulate a training step with them.

    Takes neither weights nor a GPU, and some seconds.

    Raises:
        UserError: unknown shapes, or an adapter that does not fit them.
    """
    return _estimate(config.model_dump_json(include=PARTS))


# What a training's memory and operations follow from.
PARTS: Any = {
    **dict.fromkeys(("model", "quantization", "adapter", "trainer"), True),
    "data": {"max_seq_length"},
}


@cache  # members of a sweep may differ in what does not matter here
def _estimate(parts: str) -> Estimate:
    config = json.loads(parts)
    model: Any = skeleton(config["model"])
    if model is None:
        raise UserError(
            f"model.path={config['model']['path']} is not on this machine and model.architecture is"
            " null: give the shapes there (see configs/model/llama2_7b.yaml), or a local folder."
        )
    model.to(getattr(torch, config["quantization"]["compute_dtype"])).config.use_cache = False
    base = sum(p.numel() for p in model.parameters())
    _quantise(model, config["quantization"])
    # Drawing the first values of large adapters takes seconds.
    with patch("torch.nn.init.kaiming_uniform_", lambda tensor, *_, **__: tensor):
        adapted: Any = with_adapter(model, config["quantization"], config["adapter"])
    trained = [p for p in adapted.parameters() if p.requires_grad]
    saved = (
        get_peft_model_state_dict(adapted).values() if isinstance(adapted, PeftModel) else trained
    )
    optim = config["trainer"]["optim"]
    kind = "8bit" if "8bit" in optim else optim.removeprefix("paged_").split("_")[0]
    states = {p: round(OPTIMIZER_BYTES.get(kind, ADAM_BYTES) * p.numel()) for p in trained}
    paged = [s for p, s in states.items() if "paged" in optim and p.numel() >= PAGED_FROM]
    with Simulation() as simulation:
        _enter(adapted, simulation)
        memory = simulation.memory
        weights = memory.allocated
        memory.take(sum(states.values()) - sum(paged))
        passes = _step(adapted, config) if trained else 1
    return Estimate(
        base_parameters=base,
        trainable_parameters=sum(p.numel() for p in trained),
        rank=rank(config["adapter"], model.config.num_hidden_layers),
        adapter_bytes=sum(tensor.nbytes for tensor in saved),
        weights_bytes=weights,
        optimizer_bytes=sum(states.values()),
        peak_memory_bytes=memory.peak,
        card_memory_bytes=memory.reserved + sum(paged) + CONTEXT_BYTES,
        batch_flops=simulation.flops // passes,
    )


def _quantise(model: Any, quantization: Mapping[str, Any]) -> None:
    """Put bitsandbytes' layers in the place of linear ones, on the meta device."""
    bits, head = quantization["bits"], model.get_output_embeddings()
    if bits is None:
        return
    model.is_quantized, model.quantization_method = True, "bitsandbytes"
    setattr(model, f"is_loaded_in_{bits}bit", True)
    for name, linear in list(model.named_modules()):
        if isinstance(linear, nn.Linear) and linear is not head:
            with torch.device("meta"):
                layer = (_with_8_bits if bits == 8 else _with_4_bits)(linear, quantization)
            model.set_submodule(name, layer)


def _with_8_bits(linear: nn.Linear, quantization: Mapping[str, Any]) -> nn.Module:
    shape, bias = linear.weight.shape, linear.bias is not None
    layer: Any = bnb.nn.Linear8bitLt(shape[1], shape[0], bias, has_fp16_weights=False)
    layer.weight = bnb.nn.Int8Params(torch.empty(shape, dtype=torch.int8), requires_grad=False)
    layer.state.SCB = torch.empty(shape[0])
    return layer


class Params4bit(bnb.nn.Params4bit):
    def __deepcopy__(self, memo: dict) -> Params4bit:
        return self  # a copy, which DoRA makes, cannot be on the meta device


def _with_4_bits(linear: nn.Linear, quantization: Mapping[str, Any]) -> nn.Module:
    """A scale for 64 weights, in 8 bits with one for 256 of them where they are quantised too."""
    shape, dtype, bias = linear.weight.shape, linear.weight.dtype, linear.bias is not None
    double, kind = quantization["double_quant"], quantization["quant_type"]
    scales, code, options = torch.empty(-(-shape.numel() // 64)), torch.empty(256), {}
    if double:
        outer = QuantState(torch.empty(-(-len(scales) // 256)), None, code, 256)
        outer.dtype, scales = scales.dtype, scales.to(torch.uint8)
        options = {"offset": torch.zeros((), device="cpu"), "state2": outer}
    state = QuantState(scales, shape, code, 64, kind, dtype, **options)
    packed = torch.empty(shape.numel() // 2, 1, dtype=torch.uint8)
    layer: Any = bnb.nn.Linear4bit(shape[1], shape[0], bias, dtype, double, kind)
    layer.weight = Params4bit(
        packed, False, state, compress_statistics=double, quant_type=kind, bnb_quantized=True
    )
    return layer


def _enter(model: nn.Module, simulation: Simulation) -> None:
    """Put outlines in the place of a model's tensors."""
    entered: dict[torch.Tensor, torch.Tensor] = {}  # tied ones once

    def enter(tensor: torch.Tensor) -> torch.Tensor:
        if not (tensor.is_meta or tensor.is_floating_point()):
            simulation.hold(tensor)
            return tensor  # an index, whose values a method looks at
        if tensor not in entered:
            outline = torch.empty_like(tensor, device="cpu")
            if isinstance(tensor, nn.Parameter):
                outline = nn.Parameter(outline, tensor.requires_grad)
                # PEFT knows bitsandbytes' weights by the name of their class.
                outline.__class__ = type(type(tensor).__name__, (type(outline),), tensor.__dict__)
            entered[tensor] = outline
        return entered[tensor]

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            found: Any = {name: t for name, t in tensors.items() if t is not None}
            tensors.update({name: enter(tensor) for name, tensor in found.items()})
        if isinstance(module, nn.Dropout):  # on CUDA a mask takes one byte for a value
            module.forward = partial(_dropout, module.p)  # type: ignore[method-assign]
        elif isinstance(module, bnb.nn.Linear8bitLt):
            module.state.CB = module.weight
            # On CUDA, products of 8 bits are no business of autocast and have their input's type.
            module.forward = torch.autocast("cpu", enabled=False)(module.forward)  # type: ignore[method-assign]
        elif state := getattr(getattr(module, "weight", None), "quant_state", None):
            for level in (state, state.state2)[: 1 + state.nested]:
                simulation.hold(level.absmax)


def _dropout(p: float, x: torch.Tensor) -> torch.Tensor:
    return torch.native_dropout(x, p, True)[0]


def _step(model: Any, config: Mapping[str, Any]) -> int:
    """Forward and backward passes of full batches, as transformers' Trainer and accelerate do them.

    Returns how many there were.
    """
    trainer = config["trainer"]
    if trainer.get("gradient_checkpointing"):
        options = trainer.get("gradient_checkpointing_kwargs", {"use_reentrant": False})
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    forward = model.train().forward
    for key, dtype in (("bf16", torch.bfloat16), ("fp16", torch.float16)):
        if trainer.get(key):
            forward = convert_outputs_to_fp32(torch.autocast("cpu", dtype)(forward))
    rows, length = trainer["per_device_train_batch_size"], config["data"]["max_seq_length"]
    ids = torch.zeros(rows, length, dtype=torch.long)
    mask = torch.zeros(rows, 1, length, length, dtype=torch.bool)  # as transformers makes it
    batch = {"input_ids": ids, "labels": ids, "attention_mask": mask}
    # With several to a step, there are gradients in the forward pass.
    passes = min(2, trainer.get("gradient_accumulation_steps", 1))
    for _ in range(passes):
        forward(**batch, num_items_in_batch=ids.sum())["loss"].backward()
    return passes
