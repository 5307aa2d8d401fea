from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import SharedLinear
from mos.adapters.rasa.config import RasaConfig
from mos.adapters.weights import SharedGroup, Weights


class RasaTensors(SharedGroup):
    """The pool of a group of layers, by adapter: `A (L * shared_rank, in)`,
    `B (out, L * shared_rank)`."""

    def __init__(self) -> None:
        super().__init__()
        self.rasa_pool_lora_A, self.rasa_pool_lora_B = Weights(), Weights()

    def add(self, adapter_name: str, A: torch.Tensor, B: torch.Tensor, init_weights: bool) -> None:
        reset(A, B, init_weights)
        self.rasa_pool_lora_A.add(adapter_name, A)
        self.rasa_pool_lora_B.add(adapter_name, B)


class RasaLinear(SharedLinear):
    """Linear layer with a RaSA update. Its own: `rasa_lora_A (r - shared_rank, in)`,
    `rasa_lora_B (out, r - shared_rank)` and the scales of the pool's ranks,
    `rasa_scale (L * shared_rank)`."""

    method_name = "rasa"
    shared_names = ("rasa_pool_lora_A", "rasa_pool_lora_B")
    adapter_layer_names: tuple[str, ...] = (
        *("rasa_lora_A", "rasa_lora_B", "rasa_scale"),
        *shared_names,
    )

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.rasa_lora_A, self.rasa_lora_B, self.rasa_scale = Weights(), Weights(), Weights()

    def update_layer(
        self, adapter_name: str, config: RasaConfig, group: RasaTensors, pool_rank: int
    ) -> None:
        own = config.r - config.shared_rank
        self.add_adapter_state(
            adapter_name, own + pool_rank, config.rasa_alpha, config.rasa_dropout
        )
        self.scaling[adapter_name] = config.rasa_alpha / config.r
        A, B = torch.empty(own, self.in_features), torch.empty(self.out_features, own)
        reset(A, B, config.init_weights)
        self.rasa_lora_A.add(adapter_name, A)
        self.rasa_lora_B.add(adapter_name, B)
        self.rasa_scale.add(adapter_name, torch.ones(pool_rank))
        self.join(adapter_name, group)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        A, B, scale = (
            w.of(adapter_name) for w in (self.rasa_lora_A, self.rasa_lora_B, self.rasa_scale)
        )
        group = self.groups[adapter_name]
        pool_A, pool_B = (
            weights.of(adapter_name).to(device=A.device, dtype=A.dtype)
            for weights in (group.rasa_pool_lora_A, group.rasa_pool_lora_B)
        )
        return torch.cat([A, scale[:, None] * pool_A]), torch.cat([B, pool_B], dim=1)


@torch.no_grad()
def reset(A: torch.Tensor, B: torch.Tensor, zero_update: bool) -> None:
    """As LoRA: A Kaiming-uniform with a = sqrt(5), B zero."""
    bound = 1 / math.sqrt(A.shape[1])
    A.uniform_(-bound, bound)
    bound = 0.0 if zero_update or not B.shape[1] else 1 / math.sqrt(B.shape[1])
    B.uniform_(-bound, bound)
