"""From an adapter config to a model: what is accepted, and how each mistake is named."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from mos.adapters import METHODS, attach, peft_config, rank, row_label
from mos.errors import UserError
from tests.adapters.tiny import logits, tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj"]
SMALL = {
    "mos": {"r": 4, "equivalent_rank": 3, "shards_per_vector": 4, "private_rank": 1},
    "lora": {"r": 4},
    "prolora": {"r": 4},
    "tied_lora": {"r": 4},
    "vera": {"r": 4},
    "miss": {"r": 4},
    "vblora": {"r": 4, "num_vectors": 8, "vector_length": 16},
    "unilora": {"r": 4, "theta_d_length": 50},
    "lily": {"r": 4},
    "randlora": {"r": 4},
    "lokr": {"r": 4},
    "hira": {"r": 4},
}


def adapter(method: str, **options) -> dict:
    return {"method": method, "target_modules": TARGETS, **SMALL[method], **options}


@pytest.mark.parametrize("method", list(SMALL))
def test_each_method_is_its_peft_config(method):
    config = peft_config(OmegaConf.create(adapter(method)))
    assert type(config) is METHODS[method].config_cls
    assert config.r == 4
    assert config.task_type == "CAUSAL_LM"
    assert config.target_modules == set(TARGETS)


@pytest.mark.parametrize("method", list(METHODS))
def test_attached_model_trains_what_the_method_says(method):
    options = {"method": method} if method in ("none", "full") else adapter(method)
    model = attach(tiny_llama(), options)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    if method == "none":
        assert not trainable
    elif method == "full":
        assert trainable == {n for n, _ in tiny_llama().named_parameters()}
    else:
        assert trainable
        assert not any("base_layer" in name or "embed" in name for name in trainable)
    assert logits(model.eval()).shape[-1] == 97


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "adapter.method is not set"),
        ({"method": "lroa"}, "Did you mean 'lora'"),
        ({"method": "lora", "rank": 4}, r"adapter\.rank"),
        ({"method": "mos", "equivalent_rnk": 4}, "Did you mean 'equivalent_rank'"),
        ({"method": "none", "r": 4}, "There are none"),
        ({"method": "lora", "r": "four"}, r'adapter\.r="four": expected a valid integer'),
        ({"method": "lora", "r": True}, r"adapter\.r=true: expected a valid integer"),
        ({"method": "lora", "r": 0}, "at least 1"),
        ({"method": "lora", "bias": "some"}, r"adapter\.bias.*'none', 'all' or 'lora_only'"),
        ({"method": "miss", "init_weights": "bta"}, r"adapter\.init_weights.*'bat' or 'mini'"),
        ({"method": "lora", "target_modules": [1]}, r"adapter\.target_modules"),
        ({"method": "mos", "equivalent_rank": 2, "private_rank": 3}, "private_rank"),
        ({"method": "prolora", "r": 4, "unshared_rank": 5}, "unshared_rank"),
        ({"method": "tied_lora", "tied_lora_dropout": 2.0}, "tied_lora_dropout"),
        ({"method": "vblora", "save_only_topk_weights": True}, "cannot be continued"),
        ({"method": "lily", "num_B": 1}, "num_B"),
    ],
)
def test_mistakes_are_named_before_a_model_is_needed(options, message):
    with pytest.raises(UserError, match=message):
        peft_config(options)


def test_an_adapter_that_does_not_fit_the_model_is_named():
    with pytest.raises(UserError, match="q_porj"):
        attach(tiny_llama(), adapter("prolora", target_modules=["q_porj", "k_proj"]))
    with pytest.raises(UserError, match="unterminated"):
        attach(tiny_llama(), adapter("mos", target_modules="(q_proj"))


def test_full_fine_tuning_of_quantised_weights_is_refused():
    model = tiny_llama()
    model.is_quantized = True
    with pytest.raises(UserError, match="quantization=none"):
        attach(model, {"method": "full"})


@pytest.mark.parametrize(
    ("options", "label"),
    [
        ({}, "MoS"),
        ({"private_rank": 0}, "MoS -sp"),
        ({"shards_per_vector": 1}, "MoS -vs"),
        ({"pair_dissociation": False}, "MoS -pd"),
        ({"private_rank": 0, "shards_per_vector": 1}, "MoS -sp -vs"),
    ],
)
def test_labels_of_ablations(options, label):
    assert row_label(adapter("mos", **options)) == label


def test_labels_of_the_other_methods():
    off = {"private_rank": 0, "shards_per_vector": 1, "pair_dissociation": False}
    scaling = {"random_scaling": {"mean": 0.0, "std": 1.0}}
    assert row_label(adapter("mos", **off, r="all")) == "Pure Sharing"
    assert row_label(adapter("mos", **off, r="all", **scaling)) == "+ Random Scaling"
    assert row_label(adapter("mos", **off, r=3)) == "+ Subset Selection"
    assert row_label({"method": "none"}) == "Vanilla (chat)"
    assert row_label({"method": "none"}, chat=False) == "Vanilla (no-chat)"
    assert row_label({"method": "full"}) == "Full fine-tuning"
    assert row_label(adapter("lora")) == "LoRA"
    assert row_label(adapter("lora", use_rslora=True)) == "rsLoRA"
    assert row_label(adapter("lora", use_dora=True)) == "DoRA"
    assert row_label(adapter("miss")) == "MiSS"
    assert row_label(adapter("miss", init_weights="bat")) == "MiSS (bat)"


def test_rank():
    off = {"private_rank": 0, "shards_per_vector": 1, "pair_dissociation": False}
    assert rank(adapter("lora")) == 4
    assert rank({"method": "none"}) is None
    assert rank(adapter("mos", **off, r="all", equivalent_rank=2)) is None
    assert rank(adapter("mos", **off, r="all", equivalent_rank=2), n_blocks=32) == 64
