"""What a training takes, from a simulation of one step: parameters, files, memory, operations."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

from mos.config import TrainConfig
from mos.errors import UserError
from mos.methods import rank
from mos.modeling import skeleton, with_adapter
from mos.simulation import Simulation

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
