"""MoS computes what the paper says: against a reference with explicit loops, in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from torch import nn
from transformers.pytorch_utils import Conv1D

from mos import MosConfig
from tests.adapters.mos.models import (
    MOS,
    PURE_SHARING,
    SWITCHES,
    TYPES,
    Decoder,
    llama,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)
from tests.adapters.mos.reference import loss_and_gradients


def assert_matches_reference(model, base, batch):
    adapter = get_peft_model_state_dict(model)
    expected_loss, expected = loss_and_gradients(base, adapter, model.peft_config["default"], batch)
    loss = model(batch, labels=batch).loss
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=0)
    found = pool_gradients(model, batch)
    assert len(found) == len(expected)
    for key, gradient in found.items():
        reference = expected[key.replace(".default", "")]
        torch.testing.assert_close(gradient, reference, rtol=1e-9, atol=1e-12)
    assert any(gradient.abs().max() > 1e-6 for gradient in found.values())


@pytest.mark.parametrize("kv_heads", [4, 2], ids=["mha", "gqa"])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_forward_and_gradients_equal_the_reference(switches, kv_heads):
    base = Decoder(kv_heads=kv_heads).double()
    model = mos_llama(switches, copy.deepcopy(base), target_modules=TYPES)
    assert_matches_reference(model, base, tokens())


@pytest.mark.parametrize(
    "targets",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": TYPES, "layers_to_transform": [0, 2], "layers_pattern": "layers"},
        {"target_modules": r"layers\.\d\.(gate|up|down)_proj"},
        {"target_modules": TYPES, "exclude_modules": ["layers.1.q_proj", "k_proj"]},
        {"target_modules": TYPES, "layers_to_transform": 1, "layers_pattern": "layers", "r": 3},
    ],
    ids=["two types", "two layers", "regex", "excluded", "one layer"],
)
def test_any_targets_equal_the_reference(targets):
    base = Decoder(layers=3).double()
    model = mos_llama(MOS, copy.deepcopy(base), **targets)
    assert_matches_reference(model, base, tokens())


def test_groups_count_the_layers_that_share_them():
    model = mos_llama(target_modules=TYPES, layers_to_transform=[0, 2])
    pool = "base_model.model.mos.q_proj_64x64.lora_A.mos_pool_A.default.weight"
    assert pools(model)[pool].shape == (
        3 * 2 * 4,
        16,
    )
    excluded = mos_llama(target_modules=TYPES, exclude_modules=["layers.1.self_attn.q_proj"])
    rows = {name.split(".")[3]: len(p) for name, p in pools(excluded).items()}
    assert rows["q_proj_64x64"] == 3 * 2 * 4
    assert rows["k_proj_64x32"] == 3 * 3 * 4


def test_layers_of_one_type_but_two_shapes_have_pools_of_their_own():
    class Block(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.up, self.down = nn.Linear(8, width), nn.Linear(width, 8)

        def forward(self, x):
            return x + self.down(self.up(x))

    base = nn.Sequential(Block(16), Block(32), Block(16))
    model = mos_llama(MOS, base, target_modules=["up", "down"], r=3)
    shapes = {
        name.removeprefix("base_model.model.mos."): p.shape for name, p in pools(model).items()
    }
    assert shapes["up_8x16.lora_B.mos_pool_B.default.weight"] == (3 * 2 * 4, 4)
    assert shapes["up_8x32.lora_B.mos_pool_B.default.weight"] == (3 * 1 * 4, 8)
    assert len(shapes) == 8


def test_conv1d_is_a_transposed_linear():
    torch.manual_seed(0)
    linear, conv = nn.Linear(8, 12), Conv1D(12, 8)
    conv.weight.data, conv.bias.data = linear.weight.data.T.clone(), linear.bias.data.clone()
    switches = {**MOS, "r": 3, "target_modules": ["0"]}
    models = [mos_llama(switches, nn.Sequential(layer)) for layer in (linear, conv)]
    models[1].load_state_dict(
        {k: v for k, v in models[0].state_dict().items() if "mos_" in k}, strict=False
    )
    x = torch.randn(3, 8)
    torch.testing.assert_close(models[1](x), models[0](x))
    torch.testing.assert_close(models[1].merge_and_unload()(x), models[0](x))


def test_starts_from_the_base_model_with_kaiming_rows():
    base = llama()
    expected = base(tokens()).logits
    model = mos_llama(base=base, init_weights=True)
    assert torch.equal(model(tokens()).logits, expected)
    for name, pool in pools(model).items():
        if "pool_B" in name:
            assert not pool.any()
        else:
            bound = 1 / math.sqrt(4 * pool.shape[1])  # fan-in of the vector of 4 shards
            assert pool.abs().max() <= bound
            assert pool.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


def test_dropout_acts_on_the_input_while_training_only():
    model = mos_llama(mos_dropout=0.5)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.ones(4000, 64)
    update = layer.eval()(x) - layer.base_layer(x)
    layer.train()
    torch.manual_seed(0)
    dropped = layer(x) - layer.base_layer(x)
    assert not torch.allclose(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), update[0], atol=0.05, rtol=0.05)


def train(model, steps=5):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for step in range(steps):
        loss = model(tokens(seed=step), labels=tokens(seed=step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    ("switches", "layers"),
    [({**MOS, "r": 3, "private_rank": 3}, 3), ({**PURE_SHARING, "equivalent_rank": 3}, 1)],
    ids=["p = e = r", "pure sharing of one layer"],
)
def test_is_lora_where_nothing_is_shared(switches, layers):
    """The same loss curve as PEFT's LoRA of rank e, from the same A."""
    base = llama(layers=layers)
    lora = get_peft_model(copy.deepcopy(base), LoraConfig(r=3, lora_alpha=16, target_modules=TYPES))
    model = get_peft_model(base, MosConfig(**switches, target_modules=TYPES))
    trainable = {
        m: sum(p.numel() for p in m.parameters() if p.requires_grad) for m in (lora, model)
    }
    assert trainable[lora] == trainable[model]
    for name, layer in lora.named_modules():
        if name.endswith("_proj"):
            mine = model.get_submodule(name)
            index = mine.mos_index_A["default"]
            shards = layer.lora_A["default"].weight.data.view(len(index), -1)
            mine.mos_pool_A["default"].weight.data[index] = shards
    curve = train(lora)
    assert train(model) == pytest.approx(curve, rel=1e-5)
    assert curve[-1] != pytest.approx(curve[0], rel=1e-3)


def test_gradients_are_deterministic():
    model = mos_llama()
    first, second = (pool_gradients(model, tokens()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
