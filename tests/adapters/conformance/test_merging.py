"""Merging into plain and quantised bases, and back."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.tiny import adapted, logits, randomise, tiny_llama


def weights(model) -> dict[str, torch.Tensor]:
    base = {k: v for k, v in model.state_dict().items() if k.endswith("base_layer.weight")}
    return {name: tensor.clone() for name, tensor in base.items()}


def test_merge_and_unload_is_a_plain_model(make_config):
    model = adapted(make_config())
    expected = logits(model)
    merged = model.merge_and_unload()
    assert set(merged.state_dict()) == set(tiny_llama().state_dict())
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)


def test_unmerge_restores_the_weights(make_config):
    model = adapted(make_config()).double()
    expected, before = logits(model), weights(model)
    model.merge_adapter(safe_merge=True)
    assert any(not torch.equal(before[k], v) for k, v in weights(model).items())
    torch.testing.assert_close(logits(model), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(weights(model), before)
    torch.testing.assert_close(logits(model), expected)


def test_disabling_a_merged_adapter_unmerges_it(make_main_config):
    model = adapted(make_main_config()).double()
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits(model), logits(tiny_llama().double()))


def test_two_adapters_merge_and_unmerge(make_main_config):
    model = adapted(make_main_config()).double()
    before = weights(model)
    model.add_adapter("other", make_main_config(r=3))
    model.double()
    model.set_adapter("other")
    randomise(model, seed=2)
    model.base_model.set_adapter(["default", "other"])
    expected = logits(model)
    model.merge_adapter(adapter_names=["default", "other"])
    torch.testing.assert_close(logits(model), expected)
    model.unmerge_adapter()
    torch.testing.assert_close(weights(model), before)


def test_safe_merge_refuses_what_is_not_finite(make_config):
    model = adapted(make_config())
    before = weights(model)
    parameter = next(p for p in model.parameters() if p.requires_grad)
    parameter.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="NaN"):
        model.merge_and_unload(safe_merge=True)
    first = next(iter(before))
    assert torch.equal(weights(model)[first], before[first])


def test_unload_gives_the_base_back(make_config):
    model = adapted(make_config())
    assert torch.equal(logits(model.unload()), logits(tiny_llama()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_bases_merge_in_float32_and_round_once(make_config, dtype):
    model = adapted(make_config(), tiny_llama(dtype))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    A, B, scaling = layer.lora_factors("default")
    expected = (layer.base_layer.weight.float() + scaling * B @ A).to(dtype)
    model.merge_adapter()
    assert layer.base_layer.weight.dtype == dtype
    torch.testing.assert_close(layer.base_layer.weight, expected)
