from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import features
from mos.adapters.rasa.layer import RasaLinear, RasaTensors
from mos.adapters.saved import Shapes, keys_of, paths_with
from mos.adapters.shared import SharedTuner


class RasaModel(SharedTuner):
    """RaSA. Layers of one name and shape are one group, with one pool."""

    prefix = "rasa_"
    tuner_layer_cls = RasaLinear

    @classmethod
    def saved_shapes(cls, file: Any) -> Shapes:
        keys = keys_of(file, cls.renamed)
        return {
            path: tuple(
                file.get_slice(keys[f"{path}.rasa_lora_{side}.weight"]).get_shape()[axis]
                for side, axis in (("A", 1), ("B", 0))
            )
            for path in paths_with(keys, ".rasa_scale.weight")
        }

    def plan(
        self, adapter_name: str, config: Any, targets: dict[str, nn.Module], device: torch.device
    ) -> dict[str, tuple]:
        members: dict[str, list[str]] = defaultdict(list)  # group -> paths
        for path, base in targets.items():
            in_features, out_features = features(base)
            members[f"{path.rpartition('.')[2]}_{in_features}x{out_features}"].append(path)
        places: dict[str, tuple] = {}
        for name, paths in members.items():
            in_features, out_features = features(targets[paths[0]])
            pool_rank = config.shared_rank * len(paths)
            group = self.tensors.group(name, RasaTensors)
            A = torch.empty(pool_rank, in_features, device=device)
            B = torch.empty(out_features, pool_rank, device=device)
            group.add(adapter_name, A, B, config.init_weights)
            places |= dict.fromkeys(paths, (group, pool_rank))
        return places
