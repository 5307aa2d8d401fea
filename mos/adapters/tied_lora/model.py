from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from mos.adapters.linear import features
from mos.adapters.tied_lora.layer import TiedLoraLinear, TiedTensors, reset_shared
from mos.adapters.tuner import SharedTuner


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
