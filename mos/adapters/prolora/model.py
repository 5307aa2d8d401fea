from __future__ import annotations

import torch
from peft import PeftConfig
from safetensors import safe_open
from torch import nn

from mos.adapters.prolora.layer import ProloraLinear
from mos.adapters.tuner import SAVED_PREFIX, FactoredTuner, Shapes, saved_paths


class ProloraModel(FactoredTuner):
    """A model whose linear layers carry PRoLoRA updates; everything is the layer's own."""

    prefix = "prolora_"
    tuner_layer_cls = ProloraLinear

    @classmethod
    def saved_shapes(cls, file: safe_open) -> Shapes:
        name = ".prolora_features"
        return {
            path: tuple(file.get_tensor(SAVED_PREFIX + path + name).tolist())
            for path in saved_paths(file, name)
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
                saved = remapped[f"{path}.prolora_features.{adapter_name}"].tolist()
                if saved != [layer.in_features, layer.out_features]:
                    raise ValueError(
                        f"The adapter '{adapter_name}' was trained on a {path} of "
                        f"{tuple(saved)} (in, out) features; this model's has "
                        f"{layer.in_features, layer.out_features}."
                    )
        return remapped
