"""Base models as they are loaded."""

from __future__ import annotations

import bitsandbytes
import pytest
import torch
from transformers import AutoModelForCausalLM

from mos import modeling
from mos.modeling import dequantize_weight, dequantized_base, load_base
from mos.processor import products_in

NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


@pytest.mark.parametrize("bits", [4, None])
def test_without_bfloat16_the_same_weights_are_multiplied_in_float32(
    bits, tiny_model_dir, monkeypatch
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert products_in("bfloat16", "cpu") == "float32"
    assert products_in("bfloat16", "cuda") == "bfloat16"
    assert products_in("float16", "cpu") == "float16"
    quantization = {**NF4, "bits": bits}
    ids = torch.arange(3, 23)[None]
    model = load_base(tiny_model_dir, quantization)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).float()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.weight.quant_state.dtype = torch.float32
                plain.get_parameter(f"{name}.weight").copy_(dequantize_weight(module))
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_on_a_gpu_a_base_is_dequantised_in_a_process_that_ends(
    tiny_model_dir, tmp_path, monkeypatch
):
    """Here it fails for want of CUDA, and the error comes back."""
    stopped = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(modeling, "load_base", lambda *_: pytest.fail("not in this process"))
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"CUDA|GPU"):
        dequantized_base(tiny_model_dir, NF4, tmp_path, lambda: stopped.append("the engine"))
    assert stopped == ["the engine"]
    assert not [*(tmp_path / "models").glob("*[0-9a-f]")]
