"""What autograd saves in one forward pass, counted on the meta device."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from mos.config import TrainConfig
from mos.estimate import BF16, Anatomy, base_model


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


def activations(config: TrainConfig, anatomy: Anatomy) -> Activations:
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
