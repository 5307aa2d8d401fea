"""PRoLoRA against its definition, written out as loops in float64."""

from __future__ import annotations

import math
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from mos import ProloraConfig
from mos.adapters.prolora import ProloraLinear
from tests.adapters.tiny import gradients, logits, tiny_llama


def layer_of(r, u, m, n, in_features=10, out_features=7):
    torch.manual_seed(0)
    layer = ProloraLinear(nn.Linear(in_features, out_features, bias=False))
    config = ProloraConfig(
        r=r, unshared_rank=u, reduction_a=m, reduction_b=n, prolora_alpha=5, init_weights=False
    )
    layer._active_adapter = "default"
    layer.update_layer("default", config)
    return layer.double()


def reference_delta(layer, r, u, m, n):
    """The update, element by element, from copies of the parameters that collect gradients."""
    parts = {
        name: getattr(layer, name).of("default").detach().clone().requires_grad_()
        for name in layer.adapter_layer_names
        if "default" in getattr(layer, name)
    }
    h, o, shared = layer.in_features, layer.out_features, r - u
    zero = torch.zeros((), dtype=torch.float64)
    A = [[zero] * h for _ in range(r)]
    B = [[zero] * r for _ in range(o)]
    for i in range(shared):
        stride_a, stride_b = max(shared // m, 1), max(shared // n, 1)
        for column in range(h):
            c, place = divmod(column, math.ceil(h / m))
            A[i][column] = parts["prolora_A_shared"][(i + c * stride_a) % shared, place]
        for row in range(o):
            c, place = divmod(row, math.ceil(o / n))
            B[row][i] = parts["prolora_B_shared"][place, (i + c * stride_b) % shared]
    for i in range(u):
        for column in range(h):
            A[shared + i][column] = parts["prolora_A_unshared"][i, column]
        for row in range(o):
            B[row][shared + i] = parts["prolora_B_unshared"][row, i]
    rows = []
    for row in range(o):
        entries = [sum(B[row][i] * A[i][column] for i in range(r)) for column in range(h)]
        rows.append(torch.stack(entries) * 5 / r)
    return torch.stack(rows), parts


@pytest.mark.parametrize(
    ("r", "u", "m", "n"),
    [
        (4, 0, 2, 2),
        (4, 1, 3, 3),
        (6, 2, 3, 2),
        (5, 0, 3, 4),
        (3, 1, 5, 6),
        (3, 3, 2, 2),
        (4, 0, 1, 1),
    ],
)
def test_forward_and_every_gradient(r, u, m, n):
    layer = layer_of(r, u, m, n)
    x = torch.randn(3, 10, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 7, dtype=torch.float64)
    delta, parts = reference_delta(layer, r, u, m, n)
    y = x.detach().clone().requires_grad_()

    out = layer(x)
    expected = y @ layer.base_layer.weight.T + y @ delta.T
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(layer.get_delta_weight("default"), delta)
    (out * weight).sum().backward()
    (expected * weight).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    for name, part in parts.items():
        torch.testing.assert_close(getattr(layer, name).of("default").grad, part.grad)


def test_initialisation_has_the_fan_in_of_the_whole_vector():
    layer = ProloraLinear(nn.Linear(900, 40))
    layer.update_layer("default", ProloraConfig(r=8, unshared_rank=2, reduction_a=3, reduction_b=3))
    for A in (layer.prolora_A_shared, layer.prolora_A_unshared):
        largest = A.of("default").abs().max().item()
        assert 0.95 / 30 < largest <= 1 / 30
    for B in (layer.prolora_B_shared, layer.prolora_B_unshared):
        assert not B.of("default").any()


@pytest.mark.parametrize("options", [{"unshared_rank": 4}, {"reduction_a": 1, "reduction_b": 1}])
def test_without_sharing_it_is_lora(options):
    targets = ["q_proj", "v_proj", "down_proj"]
    prolora = ProloraConfig(r=4, prolora_alpha=8, target_modules=targets, **options)
    ours = get_peft_model(tiny_llama(), prolora).eval()
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False)
    theirs = get_peft_model(tiny_llama(), lora).eval()
    kind = "unshared" if options.get("unshared_rank") else "shared"
    for path in theirs.base_model.targeted_module_names:
        mine, other = (m.base_model.model.get_submodule(path) for m in (ours, theirs))
        for side in "AB":
            parameter = getattr(mine, f"prolora_{side}_{kind}").of("default")
            parameter.data.copy_(getattr(other, f"lora_{side}")["default"].weight)
    torch.testing.assert_close(logits(ours), logits(theirs), atol=1e-5, rtol=1e-5)
    found = gradients(ours)
    for name, gradient in gradients(theirs).items():
        mine = re.sub(r"lora_([AB])", rf"prolora_\1_{kind}", name)
        torch.testing.assert_close(found[mine], gradient, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"r": 0}, "r="),
        ({"r": 2, "unshared_rank": 3}, "unshared_rank"),
        ({"unshared_rank": -1}, "unshared_rank"),
        ({"reduction_a": 0}, "reduction_a"),
        ({"reduction_b": 0}, "reduction_b"),
        ({"prolora_dropout": 1.0}, "prolora_dropout"),
    ],
)
def test_impossible_values_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        ProloraConfig(**options)


def test_more_chunks_than_features_is_refused():
    with pytest.raises(ValueError, match="reduction_b"):
        layer_of(2, 0, 1, 8)
