from __future__ import annotations

import torch
from peft import PeftConfig
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

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        for path, layer in model.named_modules():
            if isinstance(layer, ProloraLinear) and adapter_name in layer.prolora_features:
                features = remapped[f"{path}.prolora_features.{adapter_name}"].tolist()
                if features != [layer.in_features, layer.out_features]:
                    raise ValueError(
                        f"The adapter '{adapter_name}' was trained on a {path} of "
                        f"{tuple(features)} (in, out) features; this model's has "
                        f"{layer.in_features, layer.out_features}."
                    )
        return remapped
