"""What a job costs, counted on the meta device before anything is loaded: parameters, bytes, time.

Parameters and adapter files are exact. Memory is a sum of exact parts and of what autograd saves
(activations.py); kernels' scratch space and fragmentation come on top.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel

from mos.adapters.config import FactoredConfig
from mos.adapters.linear import features, lora_factors
from mos.config import TrainConfig
from mos.errors import UserError
from mos.methods import attach, peft_config, rank
from mos.modeling import skeleton

GIB = 2**30
BF16 = 2
# Bytes of optimizer state per trainable parameter: two moments in fp32, or in blocks of 8 bits.
OPTIMIZER_BYTES = {"adamw": 8.0, "8bit": 2 + 8 / 256, "lion": 4.0, "sgd": 0.0, "adafactor": 0.1}
# Dense bf16 peak of a GPU (FLOP/s), and the share of it that QLoRA training is taken to reach.
GPU_PEAK = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "4090": 165e12, "L40": 181e12}
GPU_SHARE = 0.35
# SmolLM2-135M, NF4, batch 4 x 128: 2.2 s a step on two cores (4 FLOP a weight and token).
CPU_RATE_PER_CORE = 4 * 134.5e6 * 512 / 2.2 / 2
ASSUMED_GPU = ("A100 40 GB, as the paper's", 40 * GIB)


@dataclass(frozen=True)
class Anatomy:
    """A model with its adapter, counted.

    Attributes:
        base: parameters of the base model, tied ones once.
        linear: weights of the blocks' linear layers (those that are quantised).
        linear_rows: their output features in all.
        linear_width: their input and output features in all: parameters of a LoRA on all of them,
            a unit of rank.
        largest_linear: weights of the largest one.
        head: weights of the output head.
        trainable: trainable parameters.
        trainable_bytes: their size in memory.
        adapter_bytes: tensors of the saved adapter.
        adapted: (in_features, out_features) of every adapted layer.
        names: the adapted layers.
        rank: working rank, None without one.
        lora_parameters: of the adapter written as a LoRA; None where it has no such form.
        materialised: whether A and B are put together once a forward pass, as the methods of this
            project do.
    """

    base: int
    linear: int
    linear_rows: int
    linear_width: int
    largest_linear: int
    head: int
    trainable: int
    trainable_bytes: int
    adapter_bytes: int
    adapted: tuple[tuple[int, int], ...]
    names: tuple[str, ...]
    rank: int | None
    lora_parameters: int | None
    materialised: bool


def base_model(config: TrainConfig) -> PreTrainedModel:
    """The base model on the meta device.

    Raises:
        UserError: its shapes are not known without a download.
    """
    model = skeleton(config.model.dump())
    if model is None:
        raise UserError(
            f"model.path={config['model']['path']} is not on this machine and model.architecture is"
            " null: give the shapes there (see configs/model/llama2_7b.yaml), or a local folder."
        )
    return model


def count(config: TrainConfig) -> Anatomy:
    """Count a base model and the adapter of a config.

    Raises:
        UserError: unknown shapes, or an adapter that does not fit them.
    """
    model, adapter = base_model(config), config["adapter"]
    base = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight
    linears = [
        m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head
    ]
    adapted: Any = attach(model, adapter, low_cpu_mem_usage=True)
    trainable = [p for p in adapted.parameters() if p.requires_grad]
    parameters = sum(p.numel() for p in trainable)
    layers: list[tuple[str, Any]] = []
    if isinstance(adapted, PeftModel):
        layers = [
            (name.removeprefix("base_model.model."), module)
            for name, module in adapted.named_modules()
            if isinstance(module, BaseTunerLayer)
        ]
        trainable_bytes = sum(p.nbytes for p in trainable)
        adapter_bytes = sum(t.nbytes for t in get_peft_model_state_dict(adapted).values())
    else:
        trainable_bytes = adapter_bytes = _itemsize(config["quantization"]) * parameters
    return Anatomy(
        base=base,
        linear=sum(w.numel() for w in linears),
        linear_rows=sum(w.shape[0] for w in linears),
        linear_width=sum(sum(w.shape) for w in linears),
        largest_linear=max(w.numel() for w in linears),
        head=head.numel(),
        trainable=parameters,
        trainable_bytes=trainable_bytes,
        adapter_bytes=adapter_bytes,
        adapted=tuple(features(layer.get_base_layer()) for _, layer in layers),
        names=tuple(name for name, _ in layers),
        rank=rank(adapter, model.config.num_hidden_layers),
        lora_parameters=_lora_parameters([layer for _, layer in layers]),
        materialised=isinstance(peft_config(adapter), FactoredConfig),
    )


def trainable_parameters(config: TrainConfig) -> int:
    """Trainable parameters of the adapter of a config, which is quicker than `count`.

    Raises:
        UserError: as `count`.
    """
    adapted = attach(base_model(config), config["adapter"], low_cpu_mem_usage=True)
    return sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def _lora_parameters(layers: Sequence[Any]) -> int | None:
    try:
        # VB-LoRA's factors look at values while training
        factors = [lora_factors(layer.eval(), "default") for layer in layers]
    except UserError:
        return None
    return sum(A.numel() + B.numel() for A, B, _ in factors) or None


def weights_bytes(anatomy: Anatomy, quantization: Mapping[str, Any]) -> int:
    """The base model in memory: quantised linear layers, all else in the compute type.

    4 bits: blocks of 64 weights share a scale, in fp32, or with double quantisation in 8 bits with
    an fp32 scale for every 256 of them. 8 bits: an fp32 scale for every output feature.
    """
    itemsize = _itemsize(quantization)
    rest = (anatomy.base - anatomy.linear) * itemsize
    if quantization["bits"] is None:
        return rest + anatomy.linear * itemsize
    if quantization["bits"] == 8:
        return rest + anatomy.linear + 4 * anatomy.linear_rows
    blocks = anatomy.linear / 64
    scales = blocks * (1 + 4 / 256) if quantization["double_quant"] else 4 * blocks
    return rest + math.ceil(anatomy.linear / 2 + scales)


def optimizer_bytes(anatomy: Anatomy, optim: str) -> int:
    """Optimizer state; paged optimizers may move it to host memory. Unknown ones count as Adam."""
    kind = "8bit" if "8bit" in optim else optim.removeprefix("paged_").split("_")[0]
    return math.ceil(anatomy.trainable * OPTIMIZER_BYTES.get(kind, OPTIMIZER_BYTES["adamw"]))


def training_flops(config: TrainConfig, anatomy: Anatomy) -> float | None:
    """Floating-point operations of all steps on full-length batches (so an upper bound).

    None where steps are counted in epochs, whose length is known once the data is read.
    2 a weight and token forward, 2 for the gradient of the input, 2 more for that of the weight
    where it is trained, 2 more forward with checkpointing; attention likewise on length x width.
    """
    trainer, data = config["trainer"], config["data"]
    length = data["max_seq_length"]
    if trainer["max_steps"] < 0:
        return None
    tokens = (
        trainer["max_steps"]
        * trainer["per_device_train_batch_size"]
        * trainer.get("gradient_accumulation_steps", 1)
        * length
    )
    full = config["adapter"]["method"] == "full"
    passes = 2 + int(full) + int(bool(trainer.get("gradient_checkpointing")))
    shape = base_model(config).config
    attention = 2 * shape.num_hidden_layers * length * shape.hidden_size
    adapter = 3 * 2 * (anatomy.lora_parameters or 0)
    return tokens * (passes * 2 * (anatomy.linear + anatomy.head + attention) + adapter)


def device_of(config: TrainConfig) -> dict[str, Any]:
    """Name, memory (bytes) and training rate (FLOP/s) of the device that the config asks for."""
    if config["device"] != "cpu" and torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        peak = next((rate for name, rate in GPU_PEAK.items() if name in gpu.name), None)
        return {
            "name": gpu.name,
            "memory_bytes": gpu.total_memory,
            "flops_per_second": peak and peak * GPU_SHARE,
            "assumed": False,
        }
    if config["device"] == "cuda":
        name, memory = ASSUMED_GPU
        rate = GPU_PEAK["A100"] * GPU_SHARE
        return {"name": name, "memory_bytes": memory, "flops_per_second": rate, "assumed": True}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "name": f"CPU, {cores} cores",
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "flops_per_second": (cores or 1) * CPU_RATE_PER_CORE,
        "assumed": False,
    }


def _itemsize(quantization: Mapping[str, Any]) -> int:
    return getattr(torch, quantization["compute_dtype"]).itemsize
