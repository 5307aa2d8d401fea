"""vLLM's LoRA kernels for CPUs, with one product for all rows of an adapter.

Its own gather an adapter's weights anew for every token, and take the number -1, of rows that ask
for no adapter, for the last adapter. The arguments are those of `vllm.lora.ops.torch_ops.lora_ops`:

    inputs (tokens, in), weights (slots, [1,] out, in), indices (tokens,): the slot of each row.
"""

from __future__ import annotations

import torch


def bgmv_shrink(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    scaling: float = 1.0,
) -> None:
    """Put what the adapters make of their rows into `output_tensor`'s first columns."""
    found = _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    output_tensor[:, : found.shape[1]] = scaling * found


def bgmv_expand(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    add_inputs: bool = True,
) -> None:
    """Add it to the first columns, as many as both have, or put it there."""
    width = min(lora_b_weights.shape[-2], output_tensor.shape[1])
    bgmv_expand_slice(
        inputs,
        lora_b_weights[..., :width, :],
        output_tensor,
        lora_indices_tensor,
        0,
        width,
        add_inputs,
    )


def bgmv_expand_slice(
    inputs: torch.Tensor,
    lora_b_weights: torch.Tensor,
    output_tensor: torch.Tensor,
    lora_indices_tensor: torch.Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Add it to the columns from `slice_offset` on, or put it there."""
    found = _products(inputs, lora_b_weights, lora_indices_tensor, output_tensor.dtype)
    found = found[: len(output_tensor)]
    columns = output_tensor[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        columns += found
    else:
        columns.copy_(found)


def _products(
    inputs: torch.Tensor, weights: torch.Tensor, indices: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Each row's product with its adapter's weights, zeros for those without: (tokens, out)."""
    weights = weights.flatten(1, -2) if weights.dim() == 4 else weights
    found = torch.zeros(len(inputs), weights.shape[1], dtype=dtype)
    for slot in indices.unique().tolist():
        if slot >= 0:
            rows = indices == slot
            found[rows] = inputs[rows].to(dtype) @ weights[slot].to(dtype).T
    return found
