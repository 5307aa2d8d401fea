from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import FactoredLinear
from mos.adapters.shared import SharedParameters
from mos.adapters.tied_lora.config import TiedLoraConfig


@dataclass(frozen=True)
class Place:
    """Where a layer stands in the shared tensors of an adapter: which group of blocks, the number
    of its block in the group, and its rows of the joint projection's B."""

    group: str
    block: int
    first_row: int


class TiedTensors:
    """What the tuner owns and all its layers read, by group of blocks:
    `A (r, in)`, `B (sum of out, r)`, `v (blocks, r)`."""

    def __init__(self) -> None:
        self.A, self.B, self.v = SharedParameters(), SharedParameters(), SharedParameters()

    def __iter__(self):
        return iter((self.A, self.B, self.v))


class TiedLoraLinear(FactoredLinear):
    """Linear layer with its rows of a Tied LoRA update; `tied_lora_u (out)` is its own.

    The shared tensors are the tuner's: the layer refers to them without registering them, so that
    they have one name in the state dict.
    """

    method_name = "tied_lora"
    adapter_layer_names: tuple[str, ...] = (
        "tied_lora_u",
        "tied_lora_A",
        "tied_lora_B",
        "tied_lora_v",
    )
    other_param_names = (*FactoredLinear.other_param_names, "places")

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.tied_lora_u = nn.ParameterDict()
        self.places: dict[str, Place] = {}
        self.tensors = TiedTensors()

    def update_layer(
        self, adapter_name: str, config: TiedLoraConfig, tensors: TiedTensors, place: Place
    ) -> None:
        self.tensors = tensors
        self.places[adapter_name] = place
        self.add_adapter_state(
            adapter_name, config.r, config.tied_lora_alpha, config.tied_lora_dropout
        )
        self.tied_lora_u[adapter_name] = nn.Parameter(torch.ones(self.out_features))
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    # PEFT reaches the shared tensors through these to freeze, train and list them
    @property
    def tied_lora_A(self) -> dict[str, nn.Parameter]:  # noqa: N802
        return {a: self.tensors.A.get(p.group, a) for a, p in self.places.items()}

    @property
    def tied_lora_B(self) -> dict[str, nn.Parameter]:  # noqa: N802
        return {a: self.tensors.B.get(p.group, a) for a, p in self.places.items()}

    @property
    def tied_lora_v(self) -> dict[str, nn.Parameter]:
        return {a: self.tensors.v.get(p.group, a) for a, p in self.places.items()}

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        u = self.tied_lora_u[adapter_name]  # (out)
        place = self.places[adapter_name]
        A, B, v = (
            tensor.get(place.group, adapter_name).to(device=u.device, dtype=u.dtype)
            for tensor in self.tensors
        )
        rows = B[place.first_row : place.first_row + self.out_features]
        return v[place.block, :, None] * A, u[:, None] * rows


@torch.no_grad()
def reset_shared(A: torch.Tensor, B: torch.Tensor, v: torch.Tensor, zero_update: bool) -> None:
    """As LoRA: Kaiming-uniform A, zero B; the vectors start at one."""
    nn.init.kaiming_uniform_(A, a=math.sqrt(5))
    bound = 0.0 if zero_update else 1 / math.sqrt(B.shape[1])
    B.uniform_(-bound, bound)
    v.fill_(1)
