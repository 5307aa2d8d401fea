from __future__ import annotations

from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mos.adapters.prolora.layer import ProloraLinear
from mos.adapters.saved import Shapes, keys_of, paths_with
from mos.adapters.tuner import FactoredTuner


class ProloraModel(FactoredTuner):
    """A model whose linear layers carry PRoLoRA updates; everything is the layer's own."""

    prefix = "prolora_"
    tuner_layer_cls = ProloraLinear
    renamed = ((r"(\.prolora_[AB]_(?:un)?shared)$", r"\1.weight"),)

    @classmethod
    def saved_shapes(cls, file: safe_open) -> Shapes:
        keys, name = keys_of(file, cls.renamed), ".prolora_features"
        return {
            path: tuple(file.get_tensor(keys[path + name]).tolist())
            for path in paths_with(keys, name)
        }

    @staticmethod
    def check_loaded(
        entries: dict[str, torch.Tensor], model: nn.Module, config: Any, adapter_name: str
    ) -> dict[str, torch.Tensor]:
        for path, layer in model.named_modules():
            if isinstance(layer, ProloraLinear) and adapter_name in layer.prolora_features:
                features = entries[f"{path}.prolora_features.{adapter_name}"].tolist()
                if features != [layer.in_features, layer.out_features]:
                    raise ValueError(
                        f"The adapter '{adapter_name}' was trained on a {path} of "
                        f"{tuple(features)} (in, out) features; this model's has "
                        f"{layer.in_features, layer.out_features}."
                    )
        return entries
