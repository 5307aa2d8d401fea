from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import Weights
from mos.adapters.shared import SharedGroup, SharedLinear
from mos.adapters.tied_lora.config import TiedLoraConfig


class TiedTensors(SharedGroup):
    """What a group of blocks reads, by adapter: `A (r, in)`, `B (sum of out, r)`,
    `v (blocks, r)`."""

    def __init__(self) -> None:
        super().__init__()
        self.tied_lora_A, self.tied_lora_B, self.tied_lora_v = Weights(), Weights(), Weights()


class TiedLoraLinear(SharedLinear):
    """Linear layer with its rows of a Tied LoRA update; `tied_lora_u (out)` is its own."""

    method_name = "tied_lora"
    shared_names = ("tied_lora_A", "tied_lora_B", "tied_lora_v")
    adapter_layer_names: tuple[str, ...] = ("tied_lora_u", *shared_names)
    other_param_names = (*SharedLinear.other_param_names, "places")

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.tied_lora_u = Weights()
        # adapter -> number of the layer's block in the group, its first row of the joint B
        self.places: dict[str, tuple[int, int]] = {}

    def update_layer(
        self, adapter_name: str, config: TiedLoraConfig, group: TiedTensors, block: int, row: int
    ) -> None:
        self.places[adapter_name] = block, row
        self.add_adapter_state(
            adapter_name, config.r, config.tied_lora_alpha, config.tied_lora_dropout
        )
        self.tied_lora_u.add(adapter_name, torch.ones(self.out_features))
        self.join(adapter_name, group)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.tied_lora_u.of(adapter_name)  # (out)
        group, (block, row) = self.groups[adapter_name], self.places[adapter_name]
        A, B, v = (
            weights.of(adapter_name).to(device=u.device, dtype=u.dtype)
            for weights in (group.tied_lora_A, group.tied_lora_B, group.tied_lora_v)
        )
        return v[block, :, None] * A, u[:, None] * B[row : row + self.out_features]


@torch.no_grad()
def reset_shared(A: torch.Tensor, B: torch.Tensor, v: torch.Tensor, zero_update: bool) -> None:
    """As LoRA: Kaiming-uniform A, zero B; the vectors start at one."""
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    bound = 0.0 if zero_update else 1 / math.sqrt(B.shape[1])
    B.uniform_(-bound, bound)
    v.fill_(1)
