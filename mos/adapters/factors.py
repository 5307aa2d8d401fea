"""The exact LoRA form `scaling * B @ A` of a layer of any linear method, ours or PEFT's."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.miss.layer import MissLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.unilora.layer import UniLoraLayer
from peft.tuners.vblora.layer import VBLoRALayer
from peft.tuners.vera.layer import VeraLayer

from mos.adapters.linear import FactoredLinear
from mos.errors import UserError

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
