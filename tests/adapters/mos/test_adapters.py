"""Several adapters on one model, and copies of it, behave as PEFT's users expect."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import LlamaForSequenceClassification

from mos import MosConfig
from mos.adapters.mos.layer import MosLinear
from tests.adapters.mos.models import (
    MOS,
    PURE_SHARING,
    llama,
    logits,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)


@pytest.fixture
def two_adapters():
    model = mos_llama().eval()
    config = MosConfig(
        **{**PURE_SHARING, "init_weights": False}, target_modules=["q_proj", "up_proj"]
    )
    model.add_adapter("other", config)
    return model


def test_switching_and_disabling(two_adapters):
    model, base = two_adapters, logits(llama())
    first = logits(model)
    model.set_adapter("other")
    second = logits(model)
    model.set_adapter("default")
    assert torch.equal(logits(model), first)
    with model.disable_adapter():
        assert torch.equal(logits(model), base)
    assert torch.equal(logits(model), first)
    assert not torch.allclose(first, base)
    assert not torch.allclose(first, second)
    assert not torch.allclose(second, base)


def test_both_active_add_up(two_adapters):
    layer = two_adapters.base_model.model.model.layers[0].self_attn.q_proj
    x = torch.randn(2, 64)
    two_adapters.base_model.set_adapter(["default", "other"])
    both = layer.get_delta_weight("default") + layer.get_delta_weight("other")
    torch.testing.assert_close(layer(x), layer.base_layer(x) + x @ both.T)


def test_adding_an_adapter_changes_no_trainability():
    model = mos_llama()
    frozen = next(name for name in pools(model))
    pools(model)[frozen].requires_grad_(False)
    before = {name: p.requires_grad for name, p in model.named_parameters()}
    model.add_adapter("other", MosConfig(**MOS))
    after = {name: p.requires_grad for name, p in model.named_parameters()}
    assert {name: after[name] for name in before} == before
    assert not any(after[name] for name in after.keys() - before.keys())
    assert len(after) == len(before) + 14


def test_deleting_an_adapter_leaves_nothing_of_it(two_adapters):
    two_adapters.set_adapter("other")
    expected = logits(two_adapters)
    two_adapters.delete_adapter("default")
    assert not any("default" in name for name in two_adapters.state_dict())
    assert all(
        "default" not in module.position
        for module in two_adapters.modules()
        if isinstance(module, MosLinear)
    )
    assert torch.equal(logits(two_adapters), expected)
    two_adapters.add_adapter("default", MosConfig(**MOS))


def test_a_batch_may_mix_adapters(two_adapters):
    batch = tokens(rows=3)
    expected = []
    for row, name in enumerate(["other", "default", None]):
        if name is None:
            with two_adapters.disable_adapter():
                expected.append(logits(two_adapters, batch[row : row + 1]))
        else:
            two_adapters.set_adapter(name)
            expected.append(logits(two_adapters, batch[row : row + 1]))
    names = ["other", "default", "__base__"]
    with torch.no_grad():
        mixed = two_adapters(batch, adapter_names=names).logits
    torch.testing.assert_close(mixed, torch.cat(expected))
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): wrong"):
        two_adapters(batch, adapter_names=["wrong", "default", "other"])
    with pytest.raises(ValueError, match="training mode"):
        two_adapters.train()(batch, adapter_names=names)


def test_modules_to_save_are_trained_and_stored(tmp_path):
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(llama(pad_token_id=0).config)
    model = mos_llama(base=copy.deepcopy(base), task_type="SEQ_CLS")
    assert model.base_model.model.score.modules_to_save["default"].weight.requires_grad
    torch.nn.init.ones_(model.base_model.model.score.modules_to_save["default"].weight)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_trainable_parameters_are_counted_once(capsys):
    model = mos_llama()
    model.print_trainable_parameters()
    expected = 3 * 3 * sum(layer.in_features + layer.out_features for layer in first_block(model))
    assert f"trainable params: {expected:,}" in capsys.readouterr().out


def first_block(model):
    return [m for n, m in model.named_modules() if isinstance(m, MosLinear) and "layers.0." in n]


@pytest.mark.parametrize(
    "clone",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_are_independent(clone):
    model = mos_llama()
    model(tokens(), labels=tokens())  # leaves what it gathered for the backward pass
    other = clone(model)
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    with torch.no_grad():
        for pool in pools(other).values():
            pool.zero_()
    assert torch.equal(logits(other), logits(llama()))
    assert torch.equal(logits(model), expected)
    assert other.base_model.model.model.layers[0].mlp.up_proj.groups["default"] in set(
        other.base_model.model.mos
    )


def test_kbit_preparation_works_on_plain_models():
    model = mos_llama(
        base=prepare_model_for_kbit_training(llama(), use_gradient_checkpointing=True)
    )
    assert all(g.abs().sum() > 0 for g in pool_gradients(model.train(), tokens()).values())
