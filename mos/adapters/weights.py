"""Trained tensors by adapter, under the names that PEFT's LoRA gives its own; a layer's, or shared
by the layers of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn


class Weight(nn.Module):
    """One trained tensor of one adapter."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(tensor)
        # PEFT's FSDP policy wraps each trainable module without children by itself, but this one is
        # read by the layers around it, when it would be sharded.
        self.child = nn.Identity()


class Weights(nn.ModuleDict):
    """Adapter name -> `Weight`. The parameter is then `<name>.<adapter>.weight`, as `lora_A` has
    it, which is what others look for (TRL copies what contains `.default.`)."""

    def add(self, adapter_name: str, tensor: torch.Tensor) -> None:
        self[adapter_name] = Weight(tensor).train(self.training)

    def of(self, adapter_name: str) -> nn.Parameter:
        """The tensor of an adapter.

        Raises:
            RuntimeError: FSDP1 has put it into a flat parameter.
        """
        module: Any = self[adapter_name]
        if "weight" not in module._parameters:
            raise RuntimeError(
                "Adapter weights cannot be read from FSDP's flat parameters: use FSDP2 "
                "(fsdp_version: 2), or FSDP1 with use_orig_params=True."
            )
        if module.weight.is_meta and hasattr(module, "_hf_hook"):
            # Offloaded by accelerate, whose hook acts when a module is called: this one is read.
            module._hf_hook.pre_forward(module)
        return module.weight


class SharedTensors(nn.Module):
    """Group of layers -> the tensors that they read. A child of the base model's root.

    There it is in the base model's state dict once, goes with the model when a tuner is discarded
    (PEFT's direct injection, transformers' own adapters), and is in the root's part of a model that
    FSDP2 has sharded, which is whole while its layers run.
    """

    def group(self, name: str, make: Callable[[], SharedGroup]) -> Any:
        if name not in self._modules:
            self.add_module(name, make().train(self.training))
        return self._modules[name]

    def __iter__(self) -> Iterator[Any]:
        return iter(self._modules.values())

    def loaded(self) -> None:
        """Called when tensors were loaded, in place or anew."""

    def forward(self, x: Any) -> Any:
        return x  # an nn.Sequential calls all of its children

    def forget(self, adapter_name: str) -> None:
        """Drop an adapter, and groups that have none left."""
        groups: dict[str, Any] = dict(self._modules)
        for name, group in groups.items():
            group.forget(adapter_name)
            if not group.layers:
                del self._modules[name]

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        """Called by PEFT after it assigned loaded tensors to an adapter made on the meta device."""
        for group in self:
            group.move(adapter_name)


class SharedGroup(nn.Module):
    """What one group of layers reads, and the layers themselves by adapter, in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.layers: dict[str, list[Any]] = {}

    def join(self, adapter_name: str, layer: Any) -> None:
        """Add a layer that reads this adapter's tensors; the first says where they are."""
        self.layers.setdefault(adapter_name, []).append(layer)
        if len(self.layers[adapter_name]) == 1:
            self.move(adapter_name)

    def weights(self) -> Iterator[Weights]:
        return (module for module in self.modules() if isinstance(module, Weights))

    def forget(self, adapter_name: str) -> None:
        self.layers.pop(adapter_name, None)
        for weights in self.weights():
            if adapter_name in weights:
                del weights[adapter_name]

    def move(self, adapter_name: str, dtype: torch.dtype | None = None) -> None:
        """To the device of the first layer, where both are real, and to `dtype` if given."""
        if adapter_name not in self.layers:
            return
        layer = self.layers[adapter_name][0]
        device, _ = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
        for weights in self.weights():
            weight = weights.of(adapter_name)
            if not weight.is_meta:
                to = None if device is None or device.type == "meta" else device
                weight.data = weight.data.to(device=to, dtype=dtype)

    def cast(self, adapter_name: str, upcast: bool) -> None:
        """Into the floating type of the first layer, or at least float32."""
        if adapter_name not in self.layers:
            return
        layer = self.layers[adapter_name][0]
        dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[1]
        if dtype is None or not dtype.is_floating_point:
            dtype = torch.float32
        self.move(adapter_name, torch.promote_types(dtype, torch.float32) if upcast else dtype)
