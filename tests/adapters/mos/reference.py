"""MoS written down from the paper with explicit loops, independent of the implementation.

Reads nothing of the adapter but its state dict and its config.
"""

from __future__ import annotations

import re

import torch
from torch.func import functional_call


def delta_weight(pool_A, pool_B, index_A, index_B, r, shards, alpha, scale=None):
    """`(alpha / r) * B diag(s) A`, shard by shard: rank j is the outer product of two vectors,
    each the concatenation of `shards` shards."""
    out = pool_B.shape[1] * shards
    delta = torch.zeros(out, pool_A.shape[1] * shards, dtype=pool_A.dtype)
    for j in range(r):
        row = torch.cat([pool_A[int(index_A[j * shards + i])] for i in range(shards)])
        column = torch.cat([pool_B[int(index_B[j * shards + i])] for i in range(shards)])
        rank_one = torch.outer(column, row)
        delta = delta + (rank_one if scale is None else scale[j] * rank_one)
    return delta * alpha / r


def loss_and_gradients(base, adapter: dict[str, torch.Tensor], config, batch):
    """Loss of `base` with the updates added to its weights, and the gradient of every pool.

    Args:
        base: the model without an adapter, float64.
        adapter: the adapter's state dict, as saved.
    """
    pools = {
        key: value.double().requires_grad_() for key, value in adapter.items() if "pool_" in key
    }
    weights = {}
    for key, index_A in adapter.items():
        match = re.fullmatch(r"base_model\.model\.(.*)\.mos_index_A", key)
        if not match:
            continue
        name = match[1]
        weight = base.get_submodule(name).weight
        out_features, in_features = weight.shape
        kind = name.rpartition(".")[2]
        group = f"base_model.model.mos.{kind}_{in_features}x{out_features}"
        scale = adapter.get(key.replace("index_A", "scale"))
        weights[f"{name}.weight"] = weight + delta_weight(
            pools[f"{group}.lora_A.mos_pool_A.weight"],
            pools[f"{group}.lora_B.mos_pool_B.weight"],
            index_A,
            adapter[key.replace("index_A", "index_B")],
            len(index_A) // config.shards_per_vector,
            config.shards_per_vector,
            config.mos_alpha,
            None if scale is None else scale.double(),
        )
    loss = functional_call(base, weights, (batch,), {"labels": batch}).loss
    gradients = torch.autograd.grad(loss, list(pools.values()), allow_unused=True)
    return loss, {
        key: torch.zeros_like(pool) if gradient is None else gradient
        for (key, pool), gradient in zip(pools.items(), gradients, strict=True)
    }
