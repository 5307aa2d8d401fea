"""Tied LoRA against its definition, in float64."""

from __future__ import annotations

import pytest
import torch

from mos import TiedLoraConfig
from tests.adapters.tiny import BLOCKS, HIDDEN, KV, adapted, gradients, logits, tiny_llama

GROUP = "q_proj+k_proj+v_proj:64+32+32x64"


def reference_model(model, config, parts):
    """The base with weights `W + alpha / r * diag(u) B diag(v) A`, block by block."""
    base = tiny_llama().double().requires_grad_(False)
    for k in range(BLOCKS):
        attention = base.model.layers[k].self_attn
        u = torch.cat([parts[k, name] for name in ("q_proj", "k_proj", "v_proj")])
        delta = torch.diag(u) @ parts["B"] @ torch.diag(parts["v"][k]) @ parts["A"]
        delta = delta * config.tied_lora_alpha / config.r  # (q + k + v, h)
        first = 0
        for name, width in (("q_proj", HIDDEN), ("k_proj", KV), ("v_proj", KV)):
            linear = getattr(attention, name)
            weight = linear.weight.detach()
            del linear.weight
            linear.weight = weight + delta[first : first + width]
            first += width
    return base


def test_forward_and_every_gradient():
    config = TiedLoraConfig(r=5, tied_lora_alpha=7)
    model = adapted(config).double()
    names = {
        "A": f"base_model.model.tied_lora.{GROUP}.tied_lora_A.default.weight",
        "B": f"base_model.model.tied_lora.{GROUP}.tied_lora_B.default.weight",
        "v": f"base_model.model.tied_lora.{GROUP}.tied_lora_v.default.weight",
        **{
            (k, p): f"base_model.model.model.layers.{k}.self_attn.{p}.tied_lora_u.default.weight"
            for k in range(BLOCKS)
            for p in ("q_proj", "k_proj", "v_proj")
        },
    }
    parameters = dict(model.named_parameters())
    parts = {k: parameters[n].detach().clone().requires_grad_() for k, n in names.items()}
    reference = reference_model(model, config, parts)
    torch.testing.assert_close(logits(model), logits(reference))

    found = gradients(model)
    assert set(found) == set(names.values())
    gradients(reference)
    for key, part in parts.items():
        torch.testing.assert_close(found[names[key]], part.grad)


def test_parameter_count():
    model = adapted(TiedLoraConfig(r=5))
    width = HIDDEN + 2 * KV
    assert model.get_nb_trainable_parameters()[0] == 5 * (HIDDEN + width) + BLOCKS * (5 + width)


def test_targets_of_another_input_width_are_another_projection():
    model = adapted(TiedLoraConfig(r=3, target_modules="all-linear"))
    groups = {name for name, _ in model.base_model.model.tied_lora.named_children()}
    assert groups == {
        "q_proj+k_proj+v_proj+o_proj:64+32+32+64x64",
        "gate_proj+up_proj:128+128x64",
        "down_proj:64x128",
    }


@pytest.mark.parametrize(
    ("options", "named"), [({"r": 0}, "r="), ({"tied_lora_dropout": -1}, "dropout")]
)
def test_impossible_values_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        TiedLoraConfig(**options)
