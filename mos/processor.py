"""What the processor can do."""

from __future__ import annotations


def products_in(dtype: str, device: str) -> str:
    """The type in which matrix products asked for in `dtype` are made.

    A processor without instructions for bfloat16 (AVX-512 or AMX; ARM's own) takes some seven times
    as long for them as in float32, which is taken there, with the same weights.

    Args:
        dtype: "bfloat16", "float16" or "float32".
        device: "cuda" or "cpu".
    """
    import torch

    if device != "cpu" or dtype != "bfloat16":
        return dtype
    return dtype if torch.ops.mkldnn._is_mkldnn_bf16_supported() else "float32"
