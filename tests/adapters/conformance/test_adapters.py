"""Several adapters on one model: added, switched, combined, disabled, deleted, mixed in a batch."""

from __future__ import annotations

import pytest
import torch

from tests.adapters.tiny import adapted, logits, randomise, tiny_llama, token_ids


@pytest.fixture
def two(make_config):
    """A model with the adapters `default` and `other`, and the logits of each and of the base."""
    model = adapted(make_config())
    model.add_adapter("other", make_config(r=3))
    model.set_adapter("other")
    randomise(model, seed=5)
    outputs = {"other": logits(model), "__base__": logits(tiny_llama())}
    model.set_adapter("default")
    outputs["default"] = logits(model)
    assert not torch.allclose(outputs["default"], outputs["other"], atol=1e-3)
    return model, outputs


def trainable(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def test_starts_as_the_base(make_config):
    from peft import get_peft_model

    model = get_peft_model(tiny_llama(), make_config()).eval()
    assert torch.equal(logits(model), logits(tiny_llama()))


def test_init_weights_false_starts_elsewhere(make_config):
    from peft import get_peft_model

    model = get_peft_model(tiny_llama(), make_config(init_weights=False)).eval()
    assert not torch.allclose(logits(model), logits(tiny_llama()), atol=1e-3)


def test_initialisation_repeats_with_the_seed(make_config):
    from peft import get_peft_model

    def start(seed):
        base = tiny_llama()
        torch.manual_seed(seed)
        model = get_peft_model(base, make_config())
        return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}

    a, b, c = start(3), start(3), start(4)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert any(not torch.equal(a[n], c[n]) for n in a)


def test_only_the_adapter_is_trainable(make_config):
    model = adapted(make_config())
    prefix = model.base_model.prefix
    assert trainable(model)
    assert all(prefix in name for name in trainable(model))
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert model.get_nb_trainable_parameters()[0] == count
    status = model.get_model_status()
    assert (status.requires_grad, status.available_adapters) == ({"default": True}, ["default"])


def test_switching(two):
    model, outputs = two
    for name in ("other", "default", "other"):
        model.set_adapter(name)
        assert torch.equal(logits(model), outputs[name])


def test_only_the_active_adapter_trains(two):
    model, _ = two
    names = trainable(model)
    assert names
    assert all("default" in name for name in names)
    model.set_adapter("other")
    assert trainable(model)
    assert not names & trainable(model)


def test_adding_an_adapter_leaves_the_others_alone(make_config):
    model = adapted(make_config())
    before, names = logits(model), trainable(model)
    model.add_adapter("other", make_config(r=3, inference_mode=True))
    assert torch.equal(logits(model), before)
    assert trainable(model) == names


def test_both_active_adds_both_updates(two):
    model, _ = two
    model.base_model.set_adapter(["default", "other"])
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.k_proj")
    x = torch.randn(3, layer.in_features, generator=torch.Generator().manual_seed(0))
    expected = layer.base_layer(x)
    for name in ("default", "other"):
        A, B, scaling = layer.lora_factors(name)
        expected = expected + scaling * (x @ A.T) @ B.T
    torch.testing.assert_close(layer(x), expected)


def test_disabled_is_the_base_and_comes_back(two):
    model, outputs = two
    names = trainable(model)
    with model.disable_adapter():
        assert torch.equal(logits(model), outputs["__base__"])
    assert torch.equal(logits(model), outputs["default"])
    assert trainable(model) == names


def test_deleting(two):
    model, outputs = two
    model.delete_adapter("default")
    assert torch.equal(logits(model), outputs["other"])
    assert not any("default" in key for key in model.state_dict())
    model.add_adapter("default", model.peft_config["other"])


def test_rows_of_a_batch_with_their_own_adapters(two):
    model, outputs = two
    ids = token_ids(rows=2).repeat(3, 1)
    names = ["default", "default", "other", "other", "__base__", "__base__"]
    mixed = logits(model, ids, adapter_names=names)
    for i, name in enumerate(["default", "other", "__base__"]):
        torch.testing.assert_close(mixed[2 * i : 2 * i + 2], outputs[name])
    with pytest.raises(ValueError, match="nobody"):
        logits(model, ids, adapter_names=["nobody"] * 6)
    with pytest.raises(ValueError, match=r"(?i)train"):
        logits(model.train(), ids, adapter_names=names)


def test_lora_factors_are_the_update(make_config):
    model = adapted(make_config()).double()
    layers = [m for m in model.modules() if isinstance(m, model.base_model.tuner_layer_cls)]
    assert layers
    for layer in layers:
        A, B, scaling = layer.lora_factors("default")
        assert A.shape == (layer.r["default"], layer.in_features)
        assert B.shape == (layer.out_features, layer.r["default"])
        x = torch.randn(2, layer.in_features, dtype=torch.float64)
        update = layer(x) - layer.base_layer(x)
        torch.testing.assert_close(update, scaling * x @ A.T @ B.T)


def test_blocks_can_be_left_out(make_main_config):
    model = adapted(make_main_config(layers_to_transform=[1], r=3))
    assert all(".layers.1." in path for path in model.base_model.targeted_module_names)


def test_unknown_target_is_refused_by_name(make_config):
    with pytest.raises(ValueError, match="q_porj"):
        adapted(make_config(target_modules=["q_porj", "k_proj"]))


def test_target_that_is_not_linear_is_refused_before_anything_changes(make_config):
    base = tiny_llama()
    with pytest.raises((ValueError, TypeError), match="embed_tokens"):
        adapted(make_config(target_modules=["q_proj", "embed_tokens"]), base)
    assert type(base.model.layers[0].self_attn.q_proj) is torch.nn.Linear


def test_all_linear(make_main_config):
    targeted = adapted(make_main_config(target_modules="all-linear")).base_model
    assert len(targeted.targeted_module_names) == 14
