"""Dropout whose random numbers are drawn fast on a CPU."""

from __future__ import annotations

import torch
from torch import nn


class Dropout(nn.Dropout):
    """`nn.Dropout` with other random numbers on CPUs, where its own take longer than the products
    with A and B: torch draws 64 random bits for a value there, and 32 are enough.

    A value is dropped with the probability `p`, rounded to a multiple of 2**-32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of any shape; in training, zero with the probability p, else x / (1 - p)."""
        drawn = self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not drawn or self.p == 1:
            return super().forward(x)
        words = torch.empty((x.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int32)[: x.numel()].view(x.shape)  # uniform over all of int32
        kept = bits >= round(self.p * 2**32) - 2**31
        return x * kept.to(x.dtype).div_(1 - self.p)
