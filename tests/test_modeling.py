"""Base models as they are loaded."""

from __future__ import annotations

import json
import shutil

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, GPT2Config

from eval.engines import products_in
from mos import MosConfig
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.export import merge
from mos.models import loading, sources
from mos.models.loading import (
    dequantize_weight,
    dequantized_base,
    load_base,
    load_tokenizer,
    with_adapter,
)
from mos.models.sources import resolve_model
from tests.adapters.tiny import adapted

NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


def test_random_weights_take_the_shapes_of_any_model_config(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    shapes = "{hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, vocab_size: 512}"
    (tmp_path / "model" / "small.yaml").write_text(f"architecture: {shapes}")
    monkeypatch.setattr(sources, "CONFIG_DIR", tmp_path)
    folder = resolve_model("random:small", tmp_path)
    assert load_base(folder, {**NF4, "bits": None}).model.embed_tokens.weight.shape == (512, 64)
    assert load_tokenizer(folder, "<pad>").pad_token == "<pad>"
    with pytest.raises(UserError, match="random:nothing: expected"):
        resolve_model("random:nothing", tmp_path)


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
    monkeypatch.setattr(loading, "load_base", lambda *_: pytest.fail("not in this process"))
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"CUDA|GPU"):
        dequantized_base(tiny_model_dir, NF4, tmp_path, lambda: stopped.append("the engine"))
    assert stopped == ["the engine"]
    assert not [*(tmp_path / "models").glob("*[0-9a-f]")]


@pytest.mark.parametrize("norms", ["float32", "bfloat16"])
def test_norms_say_the_type_of_the_sums_between_the_blocks(norms, tiny_model_dir):
    overrides = ["model=tiny_random", "adapter.r=8", f"quantization.norms={norms}"]
    config = validate(compose_config(overrides))
    quantization = config.quantization.dump()
    base = load_base(tiny_model_dir, quantization, torch.device("cpu"))
    model = with_adapter(base, quantization, config.adapter.dump())
    sums = []
    block = model.get_submodule("base_model.model.model.layers.0")
    block.register_forward_pre_hook(lambda _, args: sums.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.arange(3, 23)[None]).logits.float().sum().backward()
    in_bfloat16 = products_in("bfloat16", "cpu") == norms == "bfloat16"
    assert sums == [torch.bfloat16 if in_bfloat16 else torch.float32]
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.fixture
def gpt2_dir(tiny_model_dir, tmp_path):
    """Of a family of Conv1D layers, with a generation config that cannot be saved."""
    config = GPT2Config(
        vocab_size=260, n_embd=64, n_layer=2, n_head=2, n_positions=128, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    load_tokenizer(tiny_model_dir).save_pretrained(folder)
    settings = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 35]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_conv1d_and_odd_generation_configs_survive_the_copies_of_a_base(gpt2_dir, tmp_path):
    ids = torch.arange(3, 23)[None]
    live = load_base(gpt2_dir, NF4)
    live.save_pretrained(tmp_path / "checkpoint")
    copy = dequantized_base(gpt2_dir, NF4, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(gpt2_dir, dtype=torch.float32)
    assert plain.generation_config.eos_token_id == [2, 35]
    expected, found, far = (m(input_ids=ids).logits.float() for m in (live, plain, original))
    assert (found - expected).norm() < 0.3 * (far - expected).norm()
    adapter = adapted(MosConfig(r=4, equivalent_rank=2, shards_per_vector=2), original)
    adapter.save_pretrained(tmp_path / "adapter")
    merged = merge(copy, tmp_path / "adapter", tmp_path / "merged", torch.float32)
    trained = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits,
        trained(input_ids=ids).logits,
    )


EVERYWHERE = {"type": "Replace", "pattern": {"String": ""}, "content": "a"}
ODD = {"type": "Precompiled", "precompiled_charsmap": "gICAgA=="}
FAR = {
    **{"strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
}


@pytest.mark.parametrize(
    ("file", "key", "value", "reason"),
    [
        ("tokenizer_config.json", "model_max_length", "512", "model_max_length is '512'"),
        # what the library makes of these: a panic, an abort, as much memory as there is
        ("tokenizer.json", "normalizer", EVERYWHERE, "PanicException"),
        ("tokenizer.json", "normalizer", ODD, "ends its process by SIGABRT"),
        ("tokenizer.json", "padding", FAR, "ends its process by SIGABRT"),
    ],
)
def test_a_tokenizer_made_to_break_the_library_is_one_error(
    file, key, value, reason, tiny_model_dir, tmp_path
):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    changed = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**changed, key: value}))
    with pytest.raises(UserError, match=reason) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)
