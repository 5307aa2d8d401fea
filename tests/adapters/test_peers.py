"""PEFT's methods in this house: counted without weights, trained (on four bits too), saved, loaded,
merged and as LoRA; or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import prepare_model_for_kbit_training
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from mos.adapters import attach
from mos.adapters.linear import keep_4bit_weights_unpacked, lora_factors
from mos.adapters.saved import adapter_config, load
from mos.config import compose_config, resolved, validate
from mos.errors import UserError
from mos.models.interchange import merge
from tests.adapters.tiny import BLOCKS, gradients, logits, randomise, tiny_llama

WIDTHS = [(64, 64), (64, 32), (64, 32), (64, 64), (64, 128), (64, 128), (128, 64)]  # (in, out)
LORA = BLOCKS * sum(h + o for h, o in WIDTHS)  # parameters of a LoRA of rank 1
OUT = BLOCKS * sum(o for _, o in WIDTHS)
# file: changes, trainable parameters
PEERS = {
    "rslora": ({"r": 4}, 4 * LORA),
    "dora": ({"r": 4}, 4 * LORA + OUT),
    "vblora": ({"r": 3, "num_vectors": 8, "vector_length": 16}, 8 * 16 + 3 * LORA // 16 * 8),
    "unilora": ({"r": 3, "theta_d_length": 50}, 50),
    # one A and four B for each of the seven types, and a router for each layer
    "lily": ({"r": 4}, 4 * sum(h + 4 * o for h, o in WIDTHS) + BLOCKS * 7 * 4 * 4),
    "randlora": (
        {"r": 16, "randlora_alpha": 32},
        BLOCKS * sum(min(w) // 16 * (16 + min(w)) for w in WIDTHS),
    ),
    # 64 = 8 x 8, 32 = 4 x 8, 128 = 8 x 16: whole matrices, and factors for 8 x 16
    "lokr": ({"r": 4}, 1856),
    "hira": ({"r": 4}, 4 * LORA),
}
HAVE_LORA_FORM = {"rslora", "vblora", "unilora"}


def options(name: str) -> dict:
    return {**resolved(compose_config([f"adapter={name}"]).adapter), **PEERS[name][0]}


def trainable(model) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def moved(model: torch.nn.Module) -> torch.nn.Module:
    randomise(model)
    return model.eval()


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny_llama")
    tiny_llama().save_pretrained(path)
    return path


def test_rslora_is_scaled_by_the_root_of_its_rank():
    model = attach(tiny_llama(), options("rslora"))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    assert lora_factors(layer, "default")[2] == 16 / 4**0.5


@pytest.mark.parametrize("name", PEERS)
def test_trained_saved_loaded_and_merged(name, base_dir, tmp_path):
    model = attach(tiny_llama(), options(name))
    assert trainable(model) == PEERS[name][1]
    shapes = attach(tiny_llama().to("meta"), options(name), low_cpu_mem_usage=True)
    assert trainable(shapes) == PEERS[name][1]
    moved(model)
    assert gradients(model.train()).keys() == {
        n for n, p in model.named_parameters() if p.requires_grad
    }
    model.eval().save_pretrained(tmp_path / "adapter")
    config = adapter_config(tmp_path / "adapter")
    base = tiny_llama()
    torch.manual_seed(9)  # what is drawn again when loading comes from the adapter's own seed
    loaded = load(base, tmp_path / "adapter", copy.deepcopy(config))
    assert torch.equal(logits(loaded), logits(model))
    if name == "lily":
        with pytest.raises(UserError, match="cannot be merged"):
            merge(base_dir, tmp_path / "adapter", tmp_path / "merged")
    else:
        merged = loaded.merge_and_unload(safe_merge=True)
        torch.testing.assert_close(logits(merged), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", PEERS)
def test_starts_as_the_base_and_is_the_base_when_disabled(name):
    model, base = attach(tiny_llama(), options(name)).eval(), logits(tiny_llama())
    starts_elsewhere = name in ("vblora", "unilora")  # from zero, their vectors would not move
    assert torch.allclose(logits(model), base, atol=1e-5) != starts_elsewhere
    moved(model)
    assert not torch.allclose(logits(model), base, atol=1e-2)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize("name", PEERS)
def test_checkpointing_gives_the_same_gradients(name):
    model = moved(attach(tiny_llama(), options(name))).train()
    torch.manual_seed(1)  # the same dropout
    expected = gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(1)
    torch.testing.assert_close(gradients(model), expected)


@pytest.mark.parametrize("name", PEERS)
def test_lora_form(name):
    model = moved(attach(tiny_llama(), options(name))).double()
    for layer in (m for m in model.modules() if isinstance(m, BaseTunerLayer)):
        if name not in HAVE_LORA_FORM:
            with pytest.raises(UserError, match="no exact LoRA form"):
                lora_factors(layer, "default")
            continue
        A, B, scaling = lora_factors(layer, "default")
        x = torch.randn(2, layer.in_features, dtype=torch.float64)
        update = layer(x) - layer.get_base_layer()(x)
        torch.testing.assert_close(update, scaling * x @ A.T @ B.T)


def quantised(base_dir) -> torch.nn.Module:
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )
    model = AutoModelForCausalLM.from_pretrained(
        base_dir, quantization_config=config, device_map={"": "cpu"}
    )
    keep_4bit_weights_unpacked(model)
    return model


@pytest.mark.parametrize("name", PEERS)
def test_four_bits(name, base_dir):
    """Gradients are those on the dequantised weights, or the method is refused by name."""
    base = quantised(base_dir)
    plain = tiny_llama()
    plain.load_state_dict(copy.deepcopy(base).dequantize().float().state_dict())
    base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    if name in ("unilora", "lokr"):
        with pytest.raises(UserError, match=f"'{name}' does not train on quantised"):
            attach(base, options(name))
        return
    model = moved(attach(base, options(name)))
    reference = attach(plain, options(name)).eval()
    values = dict(model.named_parameters())
    for key, parameter in reference.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(values[key])
    torch.testing.assert_close(gradients(model), gradients(reference), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["adapter=lily", "eval=[base,mmlu]"], "no benchmark can be answered"),
        (["adapter=unilora", "quantization=nf4"], "'unilora' does not train on quantised"),
        (["adapter=lokr", "quantization=nf4"], "'lokr' does not train on quantised"),
    ],
)
def test_refused_before_anything_is_loaded(overrides, message):
    with pytest.raises(UserError, match=message):
        validate(compose_config(overrides))
