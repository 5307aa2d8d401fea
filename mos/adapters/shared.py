"""Tensors that many layers read: the base model's root owns them, in groups of layers."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from mos.adapters.linear import FactoredLinear, Weights


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

    def weights(self) -> dict[str, Weights]:
        """Its tensors, by the names that its layers call them (`shared_names`)."""
        modules = ((path.rpartition(".")[2], module) for path, module in self.named_modules())
        return {name: module for name, module in modules if isinstance(module, Weights)}

    def forget(self, adapter_name: str) -> None:
        self.layers.pop(adapter_name, None)
        for weights in self.weights().values():
            if adapter_name in weights:
                del weights[adapter_name]

    def move(self, adapter_name: str, dtype: torch.dtype | None = None) -> None:
        """To the device of the first layer, where both are real, and to `dtype` if given."""
        if adapter_name not in self.layers:
            return
        layer = self.layers[adapter_name][0]
        device, _ = layer._get_base_layer_device_and_dtype(layer.get_base_layer())
        for weights in self.weights().values():
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


class SharedLinear(FactoredLinear):
    """A layer that reads tensors of groups, which are the base model's and not registered here."""

    shared_names: tuple[str, ...]  # those of `adapter_layer_names` that groups hold

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.groups: dict[str, Any] = {}  # adapter -> its group
        self.to_train = False  # an adapter was not added for inference alone
        for name in self.shared_names:
            # Adapter -> `Weight`, for PEFT to freeze and to train; past nn.Module's __setattr__,
            # which would make it the layer's own.
            self.__dict__[name] = nn.ModuleDict()

    def join(self, adapter_name: str, group: SharedGroup) -> None:
        self.groups[adapter_name] = group
        group.join(adapter_name, self)
        for name, weights in group.weights().items():
            getattr(self, name)[adapter_name] = weights[adapter_name]

    def requires_grad_(self, requires_grad: bool = True) -> SharedLinear:
        shared = any(len(group.layers[name]) > 1 for name, group in self.groups.items())
        if self.to_train and shared and not requires_grad:
            warnings.warn(
                "What this layer trains is shared: freezing it freezes all layers that share it.",
                stacklevel=2,
            )
        for name in self.shared_names:
            for weight in getattr(self, name).values():
                weight.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    def delete_adapter(self, adapter_name: str) -> None:
        if adapter_name in self.groups:
            self.groups.pop(adapter_name).forget(adapter_name)
        super().delete_adapter(adapter_name)
