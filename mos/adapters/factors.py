"""The exact LoRA form `scaling * B @ A` of a layer of any linear method, ours or PEFT's."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from peft.tuners.miss.layer import MissLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.tuners.vera.layer import VeraLayer

from mos.errors import UserError


def lora_factors(
    layer: BaseTunerLayer, adapter_name: str
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """`A (r, in_features)`, `B (out_features, r)` and the scaling of one adapter of a layer.

    Raises:
        UserError: the update is not linear in its input, or not a product of such factors.
    """
    if hasattr(layer, "lora_factors"):
        A, B, scaling = layer.lora_factors(adapter_name)
        return A.detach(), B.detach(), scaling
    read = {LoraLayer: _lora, VeraLayer: _vera, MissLayer: _miss}
    for kind, factors in read.items():
        if isinstance(layer, kind):
            A, B, scaling = factors(layer, adapter_name)
            return A.detach(), B.detach(), scaling
    raise _no_lora_form(type(layer).__name__)


def _lora(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    if layer.lora_variant.get(name) is not None or layer.lora_bias.get(name):
        raise _no_lora_form("this variant of LoRA")
    return layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]


def _vera(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    d, b = layer.vera_lambda_d[name], layer.vera_lambda_b[name]  # (r), (out_features)
    A = layer.vera_A[name][:, : layer.in_features].to(d)
    B = layer.vera_B[name][: layer.out_features].to(d)
    return d[:, None] * A, b[:, None] * B, 1.0


def _miss(layer: Any, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
    if layer.miss_fn == "bat":
        raise _no_lora_form("MiSS with init_weights=bat, which multiplies the base weight,")
    block = layer.miss_block[name]  # (r, out_features), or (r, mini_r) to be repeated
    r = block.shape[0]
    repeats = layer.out_features // block.shape[1]
    # input feature j reads row j mod r
    A = torch.eye(r, dtype=block.dtype, device=block.device)
    A = A.repeat(1, -(-layer.in_features // r))[:, : layer.in_features]
    return A, block.repeat(1, repeats).T, 1.0


def _no_lora_form(what: str) -> UserError:
    return UserError(f"{what} has no exact LoRA form: merge it into the base instead (as=merged).")
