"""Tied LoRA: one pair of factors for all blocks, two vectors per block (arXiv 2311.09578)."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from peft.utils import PeftType
from torch import nn

from mos.adapters.config import FactoredConfig
from mos.adapters.linear import Weights, features
from mos.adapters.registration import register
from mos.adapters.shared import SharedGroup, SharedLinear
from mos.adapters.tuner import SharedTuner


@dataclass
class TiedLoraConfig(FactoredConfig):
    """Tied LoRA (arXiv 2311.09578): `diag(u) B diag(v) A`, with A and B shared by all blocks.

    Args:
        r: rank of the update.
        tied_lora_alpha: the update is scaled by `tied_lora_alpha / r`.
        tied_lora_dropout: dropout on the input of A.
        target_modules: as in `FactoredConfig`; default q_proj, k_proj, v_proj. The targets of a
            block that read inputs of one width are taken as one projection.
    """

    r: int = field(default=8)
    tied_lora_alpha: float = field(default=16)
    tied_lora_dropout: float = field(default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("TIED_LORA")
        self.check_whole("r", 1)
        self.check_dropout("tied_lora_dropout")


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


class Place(NamedTuple):
    """Where a layer stands in the shared tensors of an adapter: which group of blocks, the number
    of its block in the group, and its first row of the joint projection's B."""

    group: str
    block: int
    row: int


class TiedLoraModel(SharedTuner):
    """Tied LoRA.

    The targets of one block (one parent module) that have the same input width are one joint
    projection; blocks whose joint projections have the same names and widths are one group, with
    one A, one B and a row of v for each block.
    """

    prefix = "tied_lora_"
    tuner_layer_cls = TiedLoraLinear
    default_targets: ClassVar[set[str]] = {"q_proj", "k_proj", "v_proj"}

    def share(
        self, adapter_name: str, config: Any, targets: dict[str, nn.Module], device: torch.device
    ) -> dict[str, tuple]:
        places = places_of(targets)
        members: dict[str, list[str]] = defaultdict(list)  # group -> paths
        for path, place in places.items():
            members[place.group].append(path)
        groups = {}
        for name, paths in members.items():
            in_features, _ = features(targets[paths[0]])
            blocks = 1 + max(places[path].block for path in paths)
            in_block_0 = [path for path in paths if places[path].block == 0]
            out_features = sum(features(targets[path])[1] for path in in_block_0)
            shapes = (config.r, in_features), (out_features, config.r), (blocks, config.r)
            A, B, v = (torch.empty(shape, device=device) for shape in shapes)
            reset_shared(A, B, v, zero_update=config.init_weights)
            group = groups[name] = self.tensors.group(name, TiedTensors)
            group.tied_lora_A.add(adapter_name, A)
            group.tied_lora_B.add(adapter_name, B)
            group.tied_lora_v.add(adapter_name, v)
        return {path: (groups[group], block, row) for path, (group, block, row) in places.items()}


def places_of(targets: dict[str, nn.Module]) -> dict[str, Place]:
    """Where each target stands in the shared tensors: see `TiedLoraModel`."""
    projections: dict[tuple[str, int], list[str]] = defaultdict(list)  # (block, width) -> paths
    for path, module in targets.items():
        parent = path.rpartition(".")[0]
        projections[parent, features(module)[0]].append(path)

    places: dict[str, Place] = {}
    blocks: dict[str, int] = defaultdict(int)  # group -> blocks so far
    for (_, width), paths in projections.items():
        names = "+".join(path.rpartition(".")[2] for path in paths)
        heights = [features(targets[path])[1] for path in paths]
        group = f"{names}:{'+'.join(map(str, heights))}x{width}"
        for i, path in enumerate(paths):
            places[path] = Place(group, blocks[group], sum(heights[:i]))
        blocks[group] += 1
    return places


register("tied_lora", TiedLoraConfig, TiedLoraModel)
