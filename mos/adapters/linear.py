"""The adapter layer of every method whose update is a product of two factors.

A method says what its factors are made of (`factors`); forward, merging, mixed batches, quantised
bases and export follow from them and are written once, here. So is what the factors of PEFT's own
layers are.
"""

from __future__ import annotations

import warnings
from functools import singledispatch
from typing import Any

import torch
from peft.import_utils import is_bnb_4bit_available
from peft.tuners.lora import LoraLayer
from peft.tuners.miss.layer import MissLayer
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.tuners.unilora.layer import UniLoraLayer
from peft.tuners.vblora.layer import VBLoRALayer
from peft.tuners.vera.layer import VeraLayer
from peft.utils.quantization_utils import quantization_extra_repr, resolve_quantization_backend
from torch import nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

from mos.errors import UserError

BASE_ROWS = "__base__"  # PEFT's name, in `adapter_names`, for the rows that get no adapter


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


class Dropout(nn.Dropout):
    """`nn.Dropout` with other random numbers on CPUs, where its own take longer than the products
    with A and B: torch draws 64 random bits for a value there, and 32 are enough.

    A value is dropped with the probability `p`, rounded to a multiple of 2**-32.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` of any shape; in training, zero with the probability p, else x / (1 - p)."""
        drawn = self.training and x.device.type == "cpu" and not torch.compiler.is_compiling()
        if not drawn or self.p == 1:
            return super().forward(x)
        words = torch.empty((x.numel() + 1) // 2, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int32)[: x.numel()].view(x.shape)  # uniform over all of int32
        kept = bits >= round(self.p * 2**32) - 2**31
        return x * kept.to(x.dtype).div_(1 - self.p)


def features(layer: nn.Module) -> tuple[int, int]:
    """`(in_features, out_features)` of a linear layer, plain or quantised."""
    in_features, out_features = _get_in_out_features(layer)
    assert in_features is not None
    assert out_features is not None
    return in_features, out_features


class FactoredLinear(nn.Module, BaseTunerLayer):
    """A linear layer `W` plus `scaling * B @ A`, the factors built from what the method trains.

    Subclasses name their parameters in `adapter_layer_names` and implement `factors`; adding an
    adapter calls `add_adapter_state`, which registers rank, scaling and dropout.
    """

    other_param_names: tuple[str, ...] = ("r", "scaling", "adapter_dropout")
    method_name: str  # printed before the class name

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__()
        self.base_layer = base_layer
        base = self.get_base_layer()
        self.quantization_backend = resolve_quantization_backend(base, **quantization_kwargs)
        self.in_features, self.out_features = features(base)
        # transformers' Conv1D stores its weight as (in_features, out_features)
        self.fan_in_fan_out = isinstance(base, Conv1D)
        self.r: dict[str, int] = {}
        self.scaling: dict[str, float] = {}
        self.adapter_dropout = nn.ModuleDict()
        self._disable_adapters = False
        self.merged_adapters: list[str] = []

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """`A (r, in_features)`, `B (out_features, r)`, differentiable, in the adapter's dtype."""
        raise NotImplementedError

    def lora_factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """The update as LoRA: `A (r, in_features)`, `B (out_features, r)` and the scaling."""
        A, B = self.factors(adapter_name)
        return A, B, self.scaling[adapter_name]

    def add_adapter_state(self, adapter_name: str, r: int, alpha: float, dropout: float) -> None:
        self.r[adapter_name] = r
        self.scaling[adapter_name] = alpha / r
        layer = Dropout(dropout) if dropout else nn.Identity()
        self.adapter_dropout[adapter_name] = layer.train(self.training)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple:
        # Where the layer runs, if accelerate has offloaded its weight to the CPU or a disk.
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)
        if device is not None and device.type == "meta" and hasattr(base_layer, "_hf_hook"):
            hooks = getattr(base_layer._hf_hook, "hooks", (base_layer._hf_hook,))
            runs_on = [getattr(hook, "execution_device", None) for hook in hooks]
            device = torch.device(next((d for d in runs_on if d is not None), "cpu"))
        return device, dtype

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # On the meta device an adapter would be lost; a layer may be there because it is offloaded.
        device = device or self._get_base_layer_device_and_dtype(self.get_base_layer())[0]
        if device is None or device.type != "meta":
            super()._move_adapter_to_device_of_base_layer(adapter_name, device)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        adapter_names = kwargs.pop("adapter_names", None)
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        if adapter_names is not None:
            return self._mixed_batch_forward(x, *args, adapter_names=adapter_names, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            return result
        for name in self.active_adapters:
            if name in self.r:
                result = self._add_update(result, x, name)
        return result

    def _add_update(self, result: torch.Tensor, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        """`result` plus an adapter's update of `x`, in the dtype of `result`.

        Not in place: autograd may need the base layer's result, and 4-bit layers ask for a copy of
        what is changed.
        """
        hidden, B = self._hidden(x, adapter_name)
        scaling = self.scaling[adapter_name]
        if result.dtype != hidden.dtype:
            return (result + (hidden * scaling) @ B).to(result.dtype)
        # One product that scales and adds: the update itself is never written to memory.
        rows, hidden = result.reshape(-1, self.out_features), hidden.reshape(-1, B.shape[0])
        return torch.addmm(rows, hidden, B, alpha=scaling).view_as(result)

    def _hidden(self, x: torch.Tensor, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """The input of B `(..., r)`, and the columns of B `(r, out_features)`."""
        A, B = self.factors(adapter_name)
        x = self.adapter_dropout[adapter_name](self._cast_input_dtype(x, A.dtype))
        return linear(x, A), B.T

    def _mixed_batch_forward(
        self, x: torch.Tensor, *args: Any, adapter_names: list[str], **kwargs: Any
    ) -> torch.Tensor:
        """Forward where row i of the batch uses the adapter `adapter_names[i]` (inference only)."""
        if self.merged:
            raise ValueError(
                "`adapter_names` needs unmerged adapters: call `unmerge_adapter` first."
            )
        if len(adapter_names) != len(x):
            raise ValueError(
                f"`adapter_names` names an adapter for each row of the batch, but got "
                f"{len(adapter_names)} names for {len(x)} rows."
            )
        result = self.base_layer(x, *args, **kwargs).clone()
        for name in dict.fromkeys(adapter_names):
            if name != BASE_ROWS and name in self.r:
                rows = [i for i, row_name in enumerate(adapter_names) if row_name == name]
                result[rows] = self._add_update(result[rows], x[rows], name)
        return result

    def get_delta_weight(self, adapter_name: str) -> torch.Tensor:
        """`scaling * B @ A` in the layout of the base weight, in float32 or better."""
        A, B, scaling = self.lora_factors(adapter_name)
        dtype = torch.promote_types(A.dtype, torch.float32)
        delta = (B.to(dtype) @ A.to(dtype)) * scaling  # (out_features, in_features)
        return delta.T if self.fan_in_fan_out else delta

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the adapters to the base weight.

        Args:
            safe_merge: refuse, and leave the weight as it was, if the sum is not finite.
            adapter_names: default: the active ones.
        """
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.r:
                continue
            weight = self.get_base_weight()
            if safe_merge:
                weight = weight.clone()
            weight += self.get_delta_weight(name).to(weight.device)
            if safe_merge and not torch.isfinite(weight).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            self.set_base_weight(weight)
            self.merged_adapters.append(name)

    @torch.no_grad()
    def unmerge(self) -> None:
        """Subtract every merged adapter from the base weight."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        while self.merged_adapters:
            weight = self.get_base_weight()
            weight -= self.get_delta_weight(self.merged_adapters.pop()).to(weight.device)
            self.set_base_weight(weight)

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        return True

    def __repr__(self) -> str:
        return f"{self.method_name}.{super().__repr__()}"

    def extra_repr(self) -> str:
        return quantization_extra_repr(self)


Factors = tuple[torch.Tensor, torch.Tensor, float]


@singledispatch
def lora_factors(layer: BaseTunerLayer, adapter_name: str) -> Factors:
    """`A (r, in_features)`, `B (out_features, r)` and the scaling of one adapter of a layer.

    A layer class of PEFT's says here how its update is such a product; ours have a method for it.

    Raises:
        UserError: the update is not linear in its input, or not a product of such factors.
    """
    raise _no_lora_form(f"{type(layer).__module__}.{type(layer).__name__}")


@lora_factors.register
def _(layer: FactoredLinear, adapter_name: str) -> Factors:
    return layer.lora_factors(adapter_name)


@lora_factors.register
def _(layer: LoraLayer, adapter_name: str) -> Factors:
    if layer.lora_variant.get(adapter_name) is not None or layer.lora_bias.get(adapter_name):
        raise _no_lora_form("this variant of LoRA")
    A, B = (side[adapter_name].get_parameter("weight") for side in (layer.lora_A, layer.lora_B))
    return A, B, layer.scaling[adapter_name]


@lora_factors.register
def _(layer: VeraLayer, adapter_name: str) -> Factors:
    shared_A: Any = layer.vera_A
    shared_B: Any = layer.vera_B
    d = layer.vera_lambda_d[adapter_name]  # (r)
    b = layer.vera_lambda_b[adapter_name]  # (out_features)
    A = shared_A[adapter_name][:, : layer.in_features].to(d)
    B = shared_B[adapter_name][: layer.out_features].to(d)
    return d[:, None] * A, b[:, None] * B, 1.0


@lora_factors.register
def _(layer: VBLoRALayer | UniLoraLayer, adapter_name: str) -> Factors:
    return *layer._get_lora_matrices(adapter_name), 1.0  # type: ignore[union-attr]


@lora_factors.register
def _(layer: MissLayer, adapter_name: str) -> Factors:
    if layer.miss_fn == "bat":  # type: ignore[attr-defined]
        raise _no_lora_form("MiSS with init_weights=bat, which multiplies the base weight,")
    block = layer.miss_block[adapter_name]  # (r, out_features), or (r, mini_r) to be repeated
    r = block.shape[0]
    repeats = layer.out_features // block.shape[1]
    # input feature j reads row j mod r
    A = torch.eye(r, dtype=block.dtype, device=block.device)
    A = A.repeat(1, -(-layer.in_features // r))[:, : layer.in_features]
    return A, block.repeat(1, repeats).T, 1.0


def _no_lora_form(what: str) -> UserError:
    return UserError(f"{what} has no exact LoRA form: merge it into the base instead (as=merged).")


def keep_4bit_weights_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights at evaluations on AVX512-BF16 CPUs,
    and undo it where it happened. It then multiplies in a way that autograd does not see, so that
    gradients are wrong, whether or not the layer is adapted, and merging reads packed data.
    """
    if not is_bnb_4bit_available():
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            weight: Any = module.weight
            if getattr(weight.quant_state, "packing_format_for_cpu", False):
                weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                    weight.data, weight.quant_state
                )
