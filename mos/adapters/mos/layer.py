"""A linear layer whose update is built from shared shards."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _get_in_out_features,
    check_adapters_to_merge,
)
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import Routing


class MosLayer(BaseTunerLayer):
    """A layer's place in its group and its frozen indices. The pools are the group's."""

    adapter_layer_names = ("mos_pool_A", "mos_pool_B")
    other_param_names = (
        "mos_index_A",
        "mos_index_B",
        "mos_scale",
        "mos_dropout",
        "r",
        "scaling",
        "position",
    )

    def __init__(self, base_layer: nn.Module, group: SharedPools, **kwargs: Any) -> None:
        self.base_layer = base_layer
        self.quantization_backend = resolve_quantization_backend(
            self.get_base_layer(), get_apply_tensor_subclass=kwargs.get("get_apply_tensor_subclass")
        )
        # In a tuple, so that the pools are registered by the tuner model alone.
        self._group = (group,)
        self.in_features, self.out_features = _get_in_out_features(self.get_base_layer())
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.position: dict[str, int] = {}  # which layer of its group this is
        self.mos_dropout = nn.ModuleDict()
        self.mos_index_A = BufferDict(persistent=True)  # (r * l,), int32
        self.mos_index_B = BufferDict(persistent=True)
        self.mos_scale = BufferDict(persistent=True)  # (r,), with random scaling only
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    @property
    def group(self) -> SharedPools:
        return self._group[0]

    @property
    def mos_pool_A(self) -> nn.ParameterDict:  # noqa: N802
        return self.group.pool_A

    @property
    def mos_pool_B(self) -> nn.ParameterDict:  # noqa: N802
        return self.group.pool_B

    def update_layer(
        self, adapter_name: str, config: MosConfig, position: int, routing: Routing
    ) -> None:
        """Add an adapter, whose pools the group has already."""
        rank = routing.index_A.shape[0] // config.shards_per_vector
        self.r[adapter_name] = rank
        self.scaling[adapter_name] = config.mos_alpha / rank
        self.position[adapter_name] = position
        self.mos_dropout[adapter_name] = (
            nn.Dropout(config.mos_dropout) if config.mos_dropout > 0 else nn.Identity()
        )
        self.mos_index_A[adapter_name] = routing.index_A
        self.mos_index_B[adapter_name] = routing.index_B
        if routing.scale is not None:
            self.mos_scale[adapter_name] = routing.scale
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # Unlike PEFT's own, leaves the dtype alone and moves the pools with the layer that owns
        # them in name, the first of the group.
        if adapter_name not in self.position:
            return
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if device is None or device.type == "meta":
            return
        for buffers in (self.mos_index_A, self.mos_index_B, self.mos_scale):
            if adapter_name in buffers:
                buffers[adapter_name] = buffers[adapter_name].to(device)
        if self.position[adapter_name] == 0:
            self.group.move(adapter_name, device)

    def lora_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The exact linear factors: `delta = scaling * B @ A`.

        Returns:
            A `(r, in_features)`, B `(out_features, r)`, both in the dtype of the pools and
            detached, and the scaling alpha / r. Random scaling is part of B.
        """
        rank = self.r[adapter_name]
        A = _read(self.mos_pool_A[adapter_name], self.mos_index_A[adapter_name]).view(rank, -1)
        B = _read(self.mos_pool_B[adapter_name], self.mos_index_B[adapter_name]).view(rank, -1).T
        if adapter_name in self.mos_scale:
            B = B * self.mos_scale[adapter_name].to(B)
        return A, B.contiguous(), self.scaling[adapter_name]

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True


def _read(pool: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    return pool.detach().index_select(0, index.to(pool.device))


class Linear(nn.Module, MosLayer):
    """MoS on `nn.Linear`, transformers' `Conv1D`, or a quantised linear layer."""

    def __init__(
        self,
        base_layer: nn.Module,
        group: SharedPools,
        adapter_name: str,
        config: MosConfig,
        position: int,
        routing: Routing,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        MosLayer.__init__(self, base_layer, group, **kwargs)
        self.fan_in_fan_out = isinstance(self.get_base_layer(), Conv1D)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, config, position, routing)

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """The update of the base weight, in its layout and, at least, in float32."""
        A, B, scaling = self.lora_factors(adapter_name)
        dtype = torch.promote_types(A.dtype, torch.float32)
        delta = (B.to(dtype) @ A.to(dtype)) * scaling
        return delta.T if self.fan_in_fan_out else delta

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the updates of the adapters (default: the active ones) to the base weight.

        Args:
            safe_merge: refuse, leaving the weight as it is, if the result has a NaN or an infinity.

        Raises:
            ValueError: with safe_merge, the merged weight is not finite.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.position:
                continue
            weight = self._shifted_base_weight(name, 1)
            if safe_merge and not torch.isfinite(weight).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            self.set_base_weight(weight)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Subtract what was merged from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            name = self.merged_adapters.pop()
            if name in self.position:
                self.set_base_weight(self._shifted_base_weight(name, -1))

    def _shifted_base_weight(self, adapter_name: str, sign: int) -> torch.Tensor:
        weight = self.get_base_weight()
        # The sum is rounded once, at the end.
        delta = self.get_delta_weight(adapter_name).to(weight.device)
        return (weight + sign * delta).to(weight.dtype)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        if self.disable_adapters and self.merged:
            self.unmerge()
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters or self.merged:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.position:
                result = self._add_update(result, x, adapter_name)
        return result

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        """Each example of the batch through the adapter of its own ("__base__": none)."""
        if len(x) != len(adapter_names):
            raise ValueError(
                "Length of `adapter_names` should be the same as the number of inputs, but got "
                f"{len(adapter_names)} and {len(x)} respectively."
            )
        if self.merged:
            raise ValueError(
                "Cannot pass `adapter_names` when there are merged adapters, please call "
                "`unmerge_adapter` first."
            )
        result = self.base_layer(x, *args, **kwargs).clone()
        if self.disable_adapters:
            return result
        for name in dict.fromkeys(adapter_names):
            if name in self.position:
                rows = [row for row, other in enumerate(adapter_names) if other == name]
                result[rows] = self._add_update(result[rows], x[rows], name)
        return result

    def _add_update(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        A, B = self.group(adapter_name, self.position[adapter_name])  # (r, in), (r, out)
        A, B = A.to(x.device), B.to(x.device)
        x = self.mos_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        hidden = nn.functional.linear(x, A) * self.scaling[adapter_name]  # (..., r)
        if adapter_name in self.mos_scale:
            hidden = (hidden * self.mos_scale[adapter_name].to(x.device)).to(B.dtype)
        if result.dtype == B.dtype:
            update = torch.addmm(
                result.reshape(-1, self.out_features), hidden.reshape(-1, B.shape[0]), B
            )
            return update.view_as(result)
        return result + (hidden @ B).to(result.dtype)

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)

    def __repr__(self) -> str:
        return "mos." + super().__repr__()
