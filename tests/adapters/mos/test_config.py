"""Settings that make no sense are refused by name, before any module is touched."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from torch import nn

from mos import MosConfig
from mos.adapters.mos import MosLinear
from tests.adapters.mos.models import MOS, TYPES, llama, mos_llama, pools, tokens


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0 must be an integer of at least 1"),
        ({"r": 2.0}, "r=2.0 must be an integer"),
        ({"equivalent_rank": 0}, "equivalent_rank=0"),
        ({"shards_per_vector": -1}, "shards_per_vector=-1"),
        ({"private_rank": -1}, "private_rank=-1"),
        ({"private_rank": 4}, "private_rank=4 must not exceed equivalent_rank=3"),
        ({"r": 2}, "equivalent_rank=3 must not exceed r=2"),
        ({"r": 5, "private_rank": 3}, "r must be 3 then"),
        ({"r": "all"}, "needs pair_dissociation=False, shards_per_vector=1 and private_rank=0"),
        ({"mos_dropout": 1.0}, "mos_dropout=1.0 must be in"),
        ({"mos_alpha": 0}, "mos_alpha=0 must be positive"),
        ({"random_scaling": {"mean": 1}}, "random_scaling must be None or"),
        ({"random_scaling": {"mean": 1, "std": -1}}, "random_scaling must be None or"),
        ({"save_dtype": "int8"}, "save_dtype='int8' must be None or one of"),
        ({"layers_pattern": "layers"}, "`layers_pattern` needs `layers_to_transform`"),
        ({"format_version": 3}, "reads version 2. Upgrade mos"),
    ],
)
def test_bad_values_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        MosConfig(**{**MOS, **settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["q_proj", "k_prj"]}, "'k_prj'.* Did you mean 'k_proj'"),
        ({"target_modules": ["nothing"]}, "not found in the base model"),
        ({"target_modules": ["q_proj", "input_layernorm"]}, "input_layernorm .* is not supported"),
    ],
)
def test_what_does_not_fit_the_model_leaves_it_untouched(settings, message):
    base = llama()
    modules, expected = dict(base.named_modules()), base(tokens()).logits
    with pytest.raises((ValueError, TypeError), match=message):
        get_peft_model(base, MosConfig(**{**MOS, "target_modules": TYPES, **settings}))
    assert dict(base.named_modules()) == modules
    assert (base(tokens()).logits == expected).all()
    assert not base._forward_pre_hooks


def test_a_second_adapter_that_does_not_fit_leaves_the_first_untouched():
    model = mos_llama()
    keys, expected = model.state_dict().keys(), model(tokens()).logits
    with pytest.raises(ValueError, match="not found in the base model"):
        model.add_adapter("other", MosConfig(**MOS, target_modules=["nothing"]))
    assert model.state_dict().keys() == keys
    assert list(model.peft_config) == ["default"]
    assert (model(tokens()).logits == expected).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora_alpha": 16}, "'lora_alpha'. Here it is mos_alpha"),
        ({"lora_dropout": 0.1}, "'lora_dropout'. Here it is mos_dropout"),
        ({"bias": "none"}, "'bias'. Biases of the base model are not trained"),
        ({"use_rslora": True}, "unexpected keyword argument 'use_rslora'"),
    ],
)
def test_arguments_of_lora_are_answered_with_ours(settings, message):
    with pytest.raises(TypeError, match=message):
        MosConfig(**settings)


def test_a_failure_while_modules_are_replaced_is_rolled_back(monkeypatch):
    update, calls = MosLinear.update_layer, []

    def fail_at_the_fourth(*args):
        calls.append(args)
        if len(calls) == 4:
            raise MemoryError
        update(*args)

    monkeypatch.setattr(MosLinear, "update_layer", fail_at_the_fourth)
    base = llama()
    modules = dict(base.named_modules())
    with pytest.raises(MemoryError):
        mos_llama(base=base)
    assert dict(base.named_modules()) == modules


def test_all_linear_layers_but_the_head_by_default():
    model = mos_llama()
    targeted = {name.rpartition(".")[2] for name in model.targeted_module_names}
    assert targeted == set(TYPES) == model.peft_config["default"].target_modules
    with pytest.raises(ValueError, match="Please specify `target_modules`"):
        mos_llama(base=nn.Sequential(nn.Linear(8, 8)))


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
