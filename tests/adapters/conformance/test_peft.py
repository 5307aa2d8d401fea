"""Whatever takes a LoRA takes our methods: transformers' own adapters, direct injection, LoRA+,
conversion, hot swapping, and files of former formats."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import (
    PeftModel,
    convert_to_lora,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from peft.optimizers import create_loraplus_optimizer
from peft.utils.hotswap import hotswap_adapter
from peft.utils.save_and_load import get_base_model_state_dict
from transformers import AutoModelForCausalLM

from tests.adapters.tiny import adapted, logits, tiny_llama


@pytest.fixture
def saved(make_config, base_dir, tmp_path):
    model = adapted(make_config(), AutoModelForCausalLM.from_pretrained(base_dir))
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


def test_transformers_loads_it_by_itself(saved, base_dir):
    model, folder = saved
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if ".default." in n)
    loaded.load_adapter(str(folder), "second")
    loaded.set_adapter("second")
    loaded.delete_adapter("default")
    assert torch.equal(logits(loaded), logits(model))
    assert not any("default" in key for key in loaded.state_dict())


def test_injected_in_place_and_added_by_transformers(make_config, base_dir):
    model = inject_adapter_in_model(make_config(), tiny_llama())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert all(name.endswith(".default.weight") for name in trainable)
    state = model.state_dict(keep_vars=True)
    assert len({id(tensor) for tensor in state.values()}) == len(state)
    other = AutoModelForCausalLM.from_pretrained(base_dir)
    other.add_adapter(make_config(), "new")
    other.add_adapter(make_config(), "further")
    assert torch.equal(logits(other), logits(tiny_llama()))
    entries = get_peft_model_state_dict(model)
    expected = set(get_peft_model_state_dict(adapted(make_config())))
    assert {f"base_model.model.{key}" for key in entries} == expected


def test_nothing_of_it_is_the_base_models(make_config):
    model, plain = adapted(make_config()), tiny_llama()
    assert set(get_base_model_state_dict(model)) == set(plain.state_dict())
    unloaded = model.unload()
    assert dict(unloaded.named_modules()).keys() == dict(plain.named_modules()).keys()
    assert not unloaded._forward_pre_hooks
    assert not unloaded._forward_hooks
    get_peft_model(unloaded, make_config())


def test_parameters_are_named_as_loras(make_main_config):
    """TRL's reference adapter copies `.default.`; LoRA+ looks for `lora_B`."""
    model = adapted(make_main_config())
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(name.endswith(".default.weight") for name in names)
    optimizer = create_loraplus_optimizer(model, torch.optim.SGD, lr=1.0, loraplus_lr_ratio=16.0)
    fast = {id(p) for g in optimizer.param_groups if g["lr"] == 16 for p in g["params"]}
    found = {name for name, p in model.named_parameters() if id(p) in fast}
    vector = "tied_lora_u"  # which LoRA+ takes as it does B
    assert found == {n for n in names if "_B" in n or vector in n}


def test_new_adapter_of_a_model_in_evaluation_is_in_evaluation(make_main_config):
    model = adapted(make_main_config())
    name = f"{make_main_config().peft_type.value.lower()}_dropout"
    model.add_adapter("other", make_main_config(**{name: 0.5}))
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize(("rank", "bound"), [(64, 1e-5), (0.9999999, 1e-3)])
def test_conversion_to_lora_is_exact(make_config, rank, bound):
    model = adapted(make_config())
    config, tensors = convert_to_lora(model, rank=rank)
    lora = get_peft_model(tiny_llama(), config).eval()
    set_peft_model_state_dict(lora, tensors)
    torch.testing.assert_close(logits(lora), logits(model), atol=bound, rtol=bound)


def test_conversion_to_a_lower_rank_is_the_best_one(make_main_config):
    model = adapted(make_main_config())
    _, tensors = convert_to_lora(model, rank=2)
    path = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = model.get_submodule(path).get_delta_weight("default")
    U, S, V = torch.linalg.svd(delta)
    A, B = (tensors[f"{path}.lora_{side}.weight"] for side in "AB")
    torch.testing.assert_close(B @ A, U[:, :2] * S[:2] @ V[:2])


def test_hot_swapping_recompiles_nothing(make_main_config, tmp_path):
    model = adapted(make_main_config())
    mos = model.peft_config["default"].peft_type == "MOS"
    other = adapted(make_main_config(**({"routing_seed": 5} if mos else {})), seed=9)
    other.save_pretrained(tmp_path)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    logits(compiled)
    parameters = {name: id(p) for name, p in model.named_parameters()}
    with torch.compiler.set_stance("fail_on_recompile"):
        hotswap_adapter(compiled, tmp_path, "default", torch_device="cpu")
        assert torch.equal(logits(compiled), logits(other))
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert torch.equal(logits(copy.deepcopy(model)), logits(other))
    adapted(make_main_config(r=3)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="Configs are incompatible: for r"):
        hotswap_adapter(model, tmp_path, "default", torch_device="cpu")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["again", "wrapped", "other targets"])
def test_a_second_adapter_of_one_name_takes_the_place_of_the_first(how, make_main_config, tmp_path):
    """As with LoRA, in a notebook's cell that is run twice."""
    base = tiny_llama()
    first = adapted(make_main_config(), base)
    options = {"target_modules": ["q_proj"]} if how == "other targets" else {}
    second = adapted(make_main_config(**options), first if how == "wrapped" else base, seed=2)
    assert torch.equal(logits(first), logits(second))
    assert second.get_model_status().requires_grad == {"default": True}
    second.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), logits(second))


def test_loading_two_folders_onto_one_base(make_config, tmp_path):
    models = [adapted(make_config(), seed=seed) for seed in (1, 2)]
    base = tiny_llama()
    for i, model in enumerate(models):
        model.save_pretrained(tmp_path / str(i))
        loaded = PeftModel.from_pretrained(base, tmp_path / str(i))
        assert torch.equal(logits(loaded), logits(model))


def test_freezing_a_layer_of_a_shared_pool_is_said(make_main_config):
    model = adapted(make_main_config())
    layer = model.get_submodule("base_model.model.model.layers.1.self_attn.q_proj")
    if model.base_model.prefix == "prolora_":
        layer.requires_grad_(False)  # its own: nothing to say
        return
    with pytest.warns(UserWarning, match="freezes all layers that share"):
        layer.requires_grad_(False)
