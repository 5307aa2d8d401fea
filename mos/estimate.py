"""What a job costs, counted on the meta device before anything is loaded: parameters, bytes, time.

Parameters and adapter files are exact. Memory is a sum of exact parts and of what autograd saves in
one forward pass on the meta device; kernels' scratch space and fragmentation come on top.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from mos.adapters import peft_config, rank
from mos.errors import UserError
from mos.modeling import skeleton

GIB = 2**30
BF16 = 2
# Methods whose layers compute with A and B that are put together once a forward pass.
MATERIALISED = ("mos", "prolora", "tied_lora")
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

    @property
    def lora_parameters(self) -> int | None:
        """Parameters of the adapter written as a LoRA; None where it has no rank."""
        return None if self.rank is None else self.rank * sum(h + o for h, o in self.adapted)


def base_model(config: Mapping[str, Any]) -> PreTrainedModel:
    """The base model on the meta device.

    Raises:
        UserError: its shapes are not known without a download.
    """
    model = skeleton(config["model"])
    if model is None:
        raise UserError(
            f"model.path={config['model']['path']} is not on this machine and model.architecture is"
            " null: give the shapes there (see configs/model/llama2_7b.yaml), or a local folder."
        )
    return model


def count(config: Mapping[str, Any]) -> Anatomy:
    """Count a base model and the adapter of a config.

    Raises:
        UserError: unknown shapes, or an adapter that does not fit them.
    """
    model = base_model(config)
    base = sum(p.numel() for p in model.parameters())
    head = model.get_output_embeddings().weight
    linears = [
        m.weight for m in model.modules() if isinstance(m, nn.Linear) and m.weight is not head
    ]
    adapter = config["adapter"]
    adapted = with_adapter(model, adapter)
    layers: list[tuple[str, Any]] = []
    if isinstance(adapted, PeftModel):
        layers = [
            (name.removeprefix("base_model.model."), module.get_base_layer())
            for name, module in adapted.named_modules()
            if isinstance(module, BaseTunerLayer)
        ]
        trainable = [p for p in adapted.parameters() if p.requires_grad]
        saved = list(get_peft_model_state_dict(adapted).values())
        trainable_bytes = _bytes(trainable)
        adapter_bytes = _bytes(saved)
    else:
        trainable = list(model.parameters()) if adapter["method"] == "full" else []
        trainable_bytes = adapter_bytes = _itemsize(config) * sum(p.numel() for p in trainable)
    return Anatomy(
        base=base,
        linear=sum(w.numel() for w in linears),
        linear_rows=sum(w.shape[0] for w in linears),
        linear_width=sum(sum(w.shape) for w in linears),
        largest_linear=max(w.numel() for w in linears),
        head=head.numel(),
        trainable=sum(p.numel() for p in trainable),
        trainable_bytes=trainable_bytes,
        adapter_bytes=adapter_bytes,
        adapted=tuple((m.in_features, m.out_features) for _, m in layers),
        names=tuple(name for name, _ in layers),
        rank=rank(adapter, model.config.num_hidden_layers),
    )


def with_adapter(model: PreTrainedModel, adapter: Mapping[str, Any]) -> nn.Module:
    """`mos.adapters.attach` on the meta device."""
    config = peft_config(adapter)
    if config is None:
        return model
    try:
        return get_peft_model(model, config, low_cpu_mem_usage=True)
    except ValueError as error:
        raise UserError(f"adapter (method '{adapter['method']}'): {error}") from error


def weights_bytes(anatomy: Anatomy, quantization: Mapping[str, Any]) -> int:
    """The base model in memory: quantised linear layers, all else in the compute type.

    4 bits: blocks of 64 weights share a scale, in fp32, or with double quantisation in 8 bits with
    an fp32 scale for every 256 of them. 8 bits: an fp32 scale for every output feature.
    """
    itemsize = torch.finfo(getattr(torch, quantization["compute_dtype"])).bits // 8
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


@dataclass(frozen=True)
class Activations:
    """Bytes that autograd saves in one forward pass: in blocks, and outside of them.

    The first block saves less than the others, as its input needs no gradient.
    """

    blocks: int
    first_block: int
    block: int
    block_input: int
    outside: int

    def peak(self, checkpointing: bool) -> int:
        """With checkpointing: the blocks' inputs, and one block at a time as a whole."""
        if checkpointing:
            return self.blocks * self.block_input + self.block + self.outside
        return self.first_block + (self.blocks - 1) * self.block + self.outside


def activations(config: Mapping[str, Any], anatomy: Anatomy) -> Activations:
    """Run a forward pass in bf16 on the meta device and count what autograd keeps.

    Two blocks stand for all, both with the adapters of the one that has most. An adapter counts as
    a LoRA of the same rank: its layers compute the same. Attention keeps its inputs and its output,
    as fused kernels do.
    """
    model = base_model(config)
    AttentionInterface.register("planned", _attend)
    AttentionMaskInterface.register("planned", lambda *args, **kwargs: None)
    model.set_attn_implementation("planned")
    model.config.use_cache = False
    count = len(model.model.layers)
    model.model.layers = blocks = model.model.layers[:2]
    network: nn.Module = model
    if anatomy.names:
        per_block = Counter(name.split(".")[2] for name in anatomy.names)
        busiest = f"model.layers.{per_block.most_common(1)[0][0]}."
        lora = LoraConfig(
            r=anatomy.rank or 8,
            lora_dropout=_dropout(config["adapter"]),
            target_modules=[
                f"model.layers.{block}.{name.removeprefix(busiest)}"
                for name in anatomy.names
                if name.startswith(busiest)
                for block in range(len(blocks))
            ],
        )
        network = get_peft_model(model, lora, low_cpu_mem_usage=True)
    else:
        network.requires_grad_(config["adapter"]["method"] == "full")
    network.to(torch.bfloat16).train()
    batch = config["trainer"]["per_device_train_batch_size"]
    length = config["data"]["max_seq_length"]
    ids = torch.empty(batch, length, dtype=torch.long, device="meta")
    saved = {None: 0} | dict.fromkeys(range(len(blocks)), 0)
    with _saved_bytes(network, blocks, saved):
        network(input_ids=ids, labels=ids, attention_mask=torch.ones_like(ids))
    logits = batch * length * model.config.vocab_size
    return Activations(
        blocks=count,
        first_block=saved[0],
        block=saved[len(blocks) - 1],
        block_input=batch * length * model.config.hidden_size * BF16,
        # The gradient of the logits, in fp32 and in bf16, is there with what the loss saved.
        outside=saved[None] + logits * (4 + BF16),
    )


def _dropout(adapter: Mapping[str, Any]) -> float:
    return next((v for k, v in adapter.items() if k.endswith("_dropout") and v), 0.0)


@contextmanager
def _saved_bytes(
    network: nn.Module, blocks: nn.ModuleList, saved: dict[int | None, int]
) -> Iterator[None]:
    """Add what autograd saves to `saved`, under the number of the block that runs."""
    weights = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    kept: dict[int, torch.Tensor] = {}
    running: list[int | None] = [None]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights and storage._cdata not in kept:
            kept[storage._cdata] = tensor
            saved[running[0]] += storage.nbytes()
        return tensor

    hooks = []
    for index, block in enumerate(blocks):
        enter = lambda *_, index=index: running.__setitem__(0, index)  # noqa: E731
        hooks.append(block.register_forward_pre_hook(enter))
        hooks.append(block.register_forward_hook(lambda *_: running.__setitem__(0, None)))
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
    finally:
        for hook in hooks:
            hook.remove()


class _Attention(torch.autograd.Function):
    """What a fused kernel keeps: its three inputs and its output."""

    @staticmethod
    def forward(ctx, query, key, value):
        output = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, output)
        return output


def _attend(module, query, key, value, attention_mask, **options):
    return _Attention.apply(query, key, value).transpose(1, 2).contiguous(), None


def training_flops(config: Mapping[str, Any], anatomy: Anatomy) -> float:
    """Floating-point operations of all steps on full-length batches (so an upper bound).

    2 a weight and token forward, 2 for the gradient of the input, 2 more for that of the weight
    where it is trained, 2 more forward with checkpointing; attention likewise on length x width.
    """
    trainer, data = config["trainer"], config["data"]
    length = data["max_seq_length"]
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


def device_of(config: Mapping[str, Any]) -> dict[str, Any]:
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


def _itemsize(config: Mapping[str, Any]) -> int:
    return torch.finfo(getattr(torch, config["quantization"]["compute_dtype"])).bits // 8


def _bytes(tensors: Sequence[torch.Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
