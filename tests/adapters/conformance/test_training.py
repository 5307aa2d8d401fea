"""Gradients: of plain, checkpointed, autocast, compiled and quantised models."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from tests.adapters.tiny import adapted, gradients, logits, tiny_llama, token_ids


def test_training_lowers_the_loss_and_leaves_the_base_alone(make_config):
    model = adapted(make_config()).train()
    frozen = {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    ids = token_ids()
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = []
    for _ in range(5):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in parameters)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_gives_the_same_gradients(make_config, reentrant):
    model = adapted(make_config()).train()
    expected = gradients(model)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    torch.testing.assert_close(gradients(model), expected)


def test_dropout_acts_in_training_only(make_main_config):
    name = f"{make_main_config().peft_type.value.lower()}_dropout"
    model = adapted(make_main_config(**{name: 0.5}))
    assert torch.equal(logits(model), logits(model))
    model.train()
    assert not torch.equal(logits(model), logits(model))


def test_autocast_keeps_parameters_and_gradients_in_float32(make_config):
    model = adapted(make_config(), tiny_llama(torch.bfloat16)).train()
    reference = gradients(adapted(make_config(), tiny_llama(torch.bfloat16).float()).train())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = gradients(model)
    assert found.keys() == reference.keys()
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32
        error = (gradient - reference[name]).norm() / reference[name].norm()
        assert error < 0.2, name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_adapter_dtype(make_config, dtype):
    model = get_peft_model(tiny_llama(dtype), make_config())
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert logits(model).dtype == dtype
    model = get_peft_model(tiny_llama(dtype), make_config(), autocast_adapter_dtype=False)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {dtype}
    assert torch.isfinite(logits(model)).all()


class TwoBlocks(torch.nn.Module):
    """Little enough to compile in a test, with what the methods look for in a model."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        names = ("q_proj", "k_proj", "v_proj")
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict({name: torch.nn.Linear(64, 64) for name in names}) for _ in range(2)
        )

    def forward(self, x):
        for block in self.layers:
            x = x + block["q_proj"](x) * block["k_proj"](x).tanh() + block["v_proj"](x)
        return x


def test_compiles_without_graph_breaks(make_main_config):
    config = make_main_config(target_modules=["q_proj", "k_proj", "v_proj"])
    model = adapted(config, TwoBlocks()).train()
    x = torch.randn(3, 64)
    model(x).square().sum().backward()
    expected = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    torch._dynamo.reset()
    compiled = torch.compile(model.base_model.model, backend="aot_eager", fullgraph=True)
    compiled(x).square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.testing.assert_close(found, expected)


def quantised(base_dir, bits: int):
    config = {
        4: BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        ),
        8: BitsAndBytesConfig(load_in_8bit=True),
    }[bits]
    return AutoModelForCausalLM.from_pretrained(
        base_dir, quantization_config=config, device_map={"": "cpu"}
    )


def test_four_bit_base_has_the_gradients_of_its_dequantised_weights(make_config, base_dir):
    # layers without adapter are quantised too, and gradients go through them
    config = make_config(target_modules=["q_proj", "v_proj"])
    base = quantised(base_dir, 4)
    model = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    model = adapted(copy.deepcopy(config), model)
    plain = tiny_llama()
    plain.load_state_dict(quantised(base_dir, 4).dequantize().float().state_dict())
    reference = adapted(config, plain)
    torch.testing.assert_close(logits(model), logits(reference), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gradients(model), gradients(reference), atol=1e-4, rtol=1e-3)


def test_merge_into_four_bits(make_config, base_dir):
    model = adapted(make_config(), quantised(base_dir, 4))
    layer = model.get_submodule("base_model.model.model.layers.0.self_attn.q_proj")
    exact = layer.get_base_weight() + layer.get_delta_weight("default")
    expected = logits(model)
    merged = model.merge_and_unload()
    weight = merged.model.layers[0].self_attn.q_proj.weight
    assert type(weight).__name__ == "Params4bit"
    # the sum is quantised again: near the exact one, and nearer than without the adapter
    error = (logits(merged) - expected).norm()
    assert error < 0.5 * (logits(quantised(base_dir, 4)) - expected).norm()
    from peft.utils.integrations import dequantize_bnb_weight

    found = dequantize_bnb_weight(weight, state=weight.quant_state)
    assert (found - exact).norm() < 0.15 * exact.norm()


def test_eight_bit_base_trains_and_merges(make_main_config, base_dir):
    model = adapted(make_main_config(), quantised(base_dir, 8))
    expected = logits(model)
    found = gradients(model)
    assert found
    assert all(torch.isfinite(g).all() for g in found.values())
    merged = model.merge_and_unload()
    base_error = (logits(quantised(base_dir, 8)) - expected).norm()
    assert (logits(merged) - expected).norm() < 0.5 * base_error
