"""Merging into weights of any precision, and computing on them."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from mos import MosConfig
from tests.adapters.mos.models import (
    MOS,
    llama,
    logits,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)],
    ids=["fp32", "bf16", "fp16"],
)
def test_merging(dtype, tolerance, safe_merge):
    model = mos_llama(base=llama().to(dtype)).eval()
    weight = model.base_model.model.model.layers[0].mlp.up_proj.base_layer.weight
    before, expected = weight.clone(), logits(model)
    model.merge_adapter(safe_merge=safe_merge)
    assert not torch.equal(weight, before)
    torch.testing.assert_close(logits(model), expected, atol=tolerance, rtol=tolerance)
    model.unmerge_adapter()
    torch.testing.assert_close(weight, before, atol=tolerance / 10, rtol=0)
    torch.testing.assert_close(logits(model), expected, atol=tolerance, rtol=tolerance)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    torch.testing.assert_close(logits(merged), expected, atol=tolerance, rtol=tolerance)


def test_unloading_leaves_the_plain_model():
    base = llama()
    expected, keys = logits(base), base.state_dict().keys()
    model = mos_llama(base=base)
    logits(model)
    unloaded = model.unload()
    assert unloaded.state_dict().keys() == keys
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks
    assert torch.equal(logits(unloaded), expected)


def test_safe_merge_refuses_what_is_not_finite():
    model = mos_llama(target_modules=["q_proj"])
    pool = next(iter(pools(model).values()))
    before = model.base_model.model.model.layers[0].self_attn.q_proj.weight.clone()
    with torch.no_grad():
        pool.fill_(torch.nan)
    with pytest.raises(ValueError, match="NaNs detected in the merged weights"):
        model.merge_adapter(safe_merge=True)
    assert torch.equal(model.base_model.model.model.layers[0].self_attn.q_proj.weight, before)


def test_pools_are_float32_unless_told_otherwise():
    model = mos_llama(base=llama().bfloat16())
    assert {p.dtype for p in pools(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    config = MosConfig(**MOS)
    model = PeftModel(llama().bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in pools(model).values()} == {torch.bfloat16}
    assert all(g.dtype == torch.bfloat16 for g in pool_gradients(model, tokens()).values())
    assert {p.dtype for p in pools(mos_llama(base=llama().double())).values()} == {torch.float64}


def test_autocast_computes_in_its_dtype_and_keeps_float32_gradients():
    model = mos_llama()
    exact = pool_gradients(model, tokens())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = pool_gradients(model, tokens())
        layer = model.base_model.model.model.layers[0].mlp.up_proj
        assert layer(torch.randn(2, 64)).dtype == torch.bfloat16
    for name, gradient in low.items():
        assert gradient.dtype == torch.float32
        assert (
            torch.nn.functional.cosine_similarity(gradient.flatten(), exact[name].flatten(), dim=0)
            > 0.98
        )
