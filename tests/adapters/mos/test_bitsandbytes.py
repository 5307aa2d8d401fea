"""MoS on 4-bit and 8-bit weights, and the CPU path of bitsandbytes that loses the gradient."""

from __future__ import annotations

import warnings

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model_state_dict
from torch import nn
from transformers import BitsAndBytesConfig, LlamaForCausalLM

from tests.adapters.mos.models import TYPES, llama, mos_llama, pool_gradients, tokens


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("base")
    llama(layers=2).save_pretrained(path)
    return path


def quantised(base_dir, bits):
    if bits == 4:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    else:
        config = BitsAndBytesConfig(load_in_8bit=True)
    return LlamaForCausalLM.from_pretrained(
        base_dir, quantization_config=config, dtype=torch.float32, device_map="cpu"
    )


def logits(model):
    with torch.no_grad():
        return model(tokens()).logits


@pytest.mark.parametrize("bits", [4, 8])
def test_quantised_weights_train_and_merge(bits, base_dir):
    model = mos_llama(base=quantised(base_dir, bits))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert isinstance(layer.base_layer, bnb.nn.Linear4bit if bits == 4 else bnb.nn.Linear8bitLt)
    assert all(g.abs().sum() > 0 for g in pool_gradients(model, tokens()).values())
    model.eval()
    expected = logits(model)
    with model.disable_adapter():
        base = logits(model)
    change = (expected - base).abs().mean()
    model.merge_adapter(safe_merge=True)
    assert (logits(model) - expected).abs().mean() < change / 2  # rounded to the bits again
    model.unmerge_adapter()
    assert (logits(model) - expected).abs().mean() < change / 2
    merged = model.merge_and_unload()
    assert isinstance(merged.model.layers[0].mlp.up_proj, type(layer.base_layer))


def dequantised(model):
    """The same model with plain weights: what the gradients must be."""
    plain = llama(layers=2)
    state = {}
    for name, module in model.base_model.model.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state)
            state[name.replace(".base_layer", "") + ".weight"] = weight.float()
    plain.load_state_dict(state, strict=False)
    plain.load_state_dict(
        {k: v for k, v in model.base_model.model.state_dict().items() if "norm" in k or "emb" in k},
        strict=False,
    )
    other = mos_llama(base=plain, target_modules=TYPES)
    other.load_state_dict(
        {k: v for k, v in model.state_dict().items() if "mos_" in k}, strict=False
    )
    return other


@pytest.mark.parametrize("evaluated", ["before", "between"])
def test_gradients_are_right_after_an_evaluation(evaluated, base_dir):
    """bitsandbytes 0.50 repacks 4-bit weights at the first evaluation on a CPU with AVX512-BF16 and
    multiplies outside of autograd from then on. A script that loads the model by itself and
    evaluates before it trains must get the gradients of the dequantised weights all the same."""
    base = quantised(base_dir, 4)
    if evaluated == "before":
        logits(base.eval())
    model = mos_llama(base=base, target_modules=TYPES)
    if evaluated == "between":
        logits(model.eval())
    model.train()
    expected = pool_gradients(dequantised(model).train(), tokens())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = pool_gradients(model, tokens())
    for name, gradient in expected.items():
        error = (found[name] - gradient).norm() / gradient.norm()
        assert error < (2e-2 if evaluated == "before" else 1e-5), name


def test_indices_stay_integers_on_quantised_weights(base_dir):
    entries = get_peft_model_state_dict(mos_llama(base=quantised(base_dir, 4)))
    assert {t.dtype for key, t in entries.items() if "index" in key} == {torch.uint8}


def test_layers_that_are_not_linear_are_left_alone(base_dir):
    model = mos_llama(base=quantised(base_dir, 4))
    assert isinstance(model.base_model.model.lm_head, nn.Linear)
