"""Tensors that many layers read."""

from __future__ import annotations

import torch
from torch import nn


class SharedParameters(nn.Module):
    """Tensors that many layers read, by group and adapter, registered and so saved once.

    Not an `nn.ModuleDict`: PEFT takes the keys of those for adapter names and would skip the groups
    when it loads.
    """

    def add(self, group: str, adapter_name: str, tensor: torch.Tensor) -> None:
        if group not in self._modules:
            self.add_module(group, nn.ParameterDict())
        self._group(group)[adapter_name] = nn.Parameter(tensor)

    def get(self, group: str, adapter_name: str) -> nn.Parameter:
        return self._group(group)[adapter_name]

    def parameters_of(self, adapter_name: str) -> list[nn.Parameter]:
        groups = map(self._group, self._modules)
        return [group[adapter_name] for group in groups if adapter_name in group]

    def remove(self, adapter_name: str) -> None:
        for name in list(self._modules):
            group = self._group(name)
            if adapter_name in group:
                del group[adapter_name]
            if not len(group):
                del self._modules[name]

    def _group(self, name: str) -> nn.ParameterDict:
        group = self._modules[name]
        assert isinstance(group, nn.ParameterDict)
        return group
