"""A linear layer whose update is built from shared shards."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from torch import nn

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import Route
from mos.adapters.shared import SharedLinear


class MosLinear(SharedLinear):
    """Knows its place in its group and its frozen indices. The pools are the group's."""

    method_name = "mos"
    shared_names = ("mos_pool_A", "mos_pool_B")
    adapter_layer_names = shared_names
    other_param_names = (
        *SharedLinear.other_param_names,
        "mos_index_A",
        "mos_index_B",
        "mos_scale",
        "position",
    )

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.position: dict[str, int] = {}  # which layer of its group this is
        self.mos_index_A = BufferDict(persistent=True)  # (r * l,), integers
        self.mos_index_B = BufferDict(persistent=True)
        self.mos_scale = BufferDict(persistent=True)  # (r,), with random scaling only

    def update_layer(
        self, adapter_name: str, config: MosConfig, group: SharedPools, route: Route
    ) -> None:
        """Add an adapter, whose pools the group has already."""
        self.position[adapter_name] = route.position
        rank = route.index_A.shape[0] // group.configs[adapter_name].shards_per_vector
        self.add_adapter_state(adapter_name, rank, config.mos_alpha, config.mos_dropout)
        self.mos_index_A[adapter_name] = route.index_A
        self.mos_index_B[adapter_name] = route.index_B
        if route.scale is not None:
            self.mos_scale[adapter_name] = route.scale
        self.join(adapter_name, group)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def route(self, adapter_name: str) -> Route:
        """A copy of what an adapter of this layer reads."""
        scale = None
        if adapter_name in self.mos_scale:
            scale = self.mos_scale[adapter_name].clone()
        index_A, index_B = (self.index(side, adapter_name).clone() for side in "AB")
        return Route(self.position[adapter_name], index_A, index_B, scale)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own would cast the scale, and the pools once for each layer.
        if adapter_name not in self.position:
            return
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if device is None or device.type == "meta":
            return
        for buffers in (self.mos_index_A, self.mos_index_B, self.mos_scale):
            if adapter_name in buffers:
                buffers[adapter_name] = buffers[adapter_name].to(device)

    def index(self, side: str, adapter_name: str) -> torch.Tensor:
        """The shards that A or B is made of, `(r * l,)`."""
        return getattr(self, f"mos_index_{side}")[adapter_name]

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        rank, group = self.r[adapter_name], self.groups[adapter_name]
        A, B = (_read(group.pool(s, adapter_name), self.index(s, adapter_name)) for s in "AB")
        A, B = A.view(rank, -1), B.view(rank, -1).T
        if adapter_name in self.mos_scale:
            B = B * self.mos_scale[adapter_name].to(B)
        return A, B.contiguous()

    def _hidden(self, x: torch.Tensor, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        group = self.groups[adapter_name]
        A, B = (group.vectors(side, adapter_name, self).to(x.device) for side in "AB")
        x = self.adapter_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        hidden = nn.functional.linear(x, A)
        if adapter_name in self.mos_scale:
            hidden = (hidden * self.mos_scale[adapter_name].to(x.device)).to(B.dtype)
        return hidden, B


def _read(pool: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return pool.index_select(0, index.to(pool.device, torch.int32))
