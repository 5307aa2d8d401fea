"""What is written, what is read back, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.adapters.tiny import adapted, logits, tiny_llama

WEIGHTS = "adapter_model.safetensors"


@pytest.fixture
def saved(make_config, tmp_path):
    model = adapted(make_config())
    model.save_pretrained(tmp_path / "adapter")
    return model, tmp_path / "adapter"


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_reload_gives_the_same_logits(saved, low_cpu_mem_usage):
    model, path = saved
    loaded = PeftModel.from_pretrained(tiny_llama(), path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    assert not any(p.requires_grad for p in loaded.parameters())
    trainable = PeftModel.from_pretrained(tiny_llama(), path, is_trainable=True)
    assert trainable.get_nb_trainable_parameters() == model.get_nb_trainable_parameters()


def test_reload_does_not_depend_on_random_state(saved):
    model, path = saved
    torch.manual_seed(123)
    torch.rand(7)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), path)), logits(model))


def test_file_holds_each_parameter_once_and_nothing_expanded(saved):
    model, path = saved
    tensors = load_file(path / WEIGHTS)
    buffers = {name.removesuffix(".default") for name, _ in model.named_buffers()}
    parameters = sum(t.numel() for name, t in tensors.items() if name not in buffers)
    assert parameters == model.get_nb_trainable_parameters()[0]
    widest = max(layer.r["default"] for layer in model.modules() if hasattr(layer, "lora_factors"))
    assert all(t.numel() <= 4 * widest for name, t in tensors.items() if name in buffers)


def test_auto_model_loads_base_and_adapter(make_main_config, base_dir, tmp_path):
    model = adapted(make_main_config(), LlamaForCausalLM.from_pretrained(base_dir))
    model.save_pretrained(tmp_path)
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_config_round_trip(saved):
    model, path = saved
    loaded = PeftConfig.from_pretrained(path)
    assert type(loaded) is type(model.peft_config["default"])
    expected = {**model.peft_config["default"].to_dict(), "inference_mode": True}
    assert {**loaded.to_dict(), "auto_mapping": None} == expected


def test_deepcopy_and_pickle_are_independent_copies(saved):
    model, _ = saved
    before = logits(model)
    for duplicate in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(logits(duplicate), before)
        for parameter in duplicate.parameters():
            parameter.data.zero_()
    assert torch.equal(logits(model), before)


def test_modules_to_save_are_saved(make_main_config, tmp_path):
    model = adapted(make_main_config(modules_to_save=["lm_head"]))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(PeftModel.from_pretrained(tiny_llama(), tmp_path)), logits(model))


def test_file_with_a_missing_tensor_is_refused(saved):
    _, path = saved
    tensors = load_file(path / WEIGHTS)
    shared_and_own = sorted(tensors)[0], sorted(tensors)[-1]
    for name in shared_and_own:
        save_file({k: v for k, v in tensors.items() if k != name}, path / WEIGHTS)
        with pytest.raises(ValueError, match="missing"):
            PeftModel.from_pretrained(tiny_llama(), path)


def test_file_with_a_foreign_tensor_is_refused(saved):
    _, path = saved
    tensors = load_file(path / WEIGHTS)
    foreign = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    save_file({**tensors, foreign: torch.zeros(2, 2)}, path / WEIGHTS)
    with pytest.raises(ValueError, match="lora_A"):
        PeftModel.from_pretrained(tiny_llama(), path)


def test_file_with_a_tensor_of_another_shape_is_refused(saved):
    _, path = saved
    tensors = load_file(path / WEIGHTS)
    name = next(k for k, v in tensors.items() if v.is_floating_point())
    save_file({**tensors, name: tensors[name][1:].contiguous()}, path / WEIGHTS)
    with pytest.raises(ValueError, match="shape"):
        PeftModel.from_pretrained(tiny_llama(), path)


def test_truncated_file_is_refused(saved):
    _, path = saved
    data = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(data[: len(data) // 2])
    with pytest.raises(Exception, match=r"(?i)header|incomplete|invalid"):
        PeftModel.from_pretrained(tiny_llama(), path)


def test_model_with_more_blocks_is_refused(saved):
    _, path = saved
    with pytest.raises(ValueError, match=r"missing|shape"):
        PeftModel.from_pretrained(tiny_llama(blocks=3), path)


def test_refused_file_leaves_the_model_as_it_was(saved):
    model, path = saved
    before = logits(model)
    tensors = load_file(path / WEIGHTS)
    save_file(dict(list(tensors.items())[1:]), path / WEIGHTS)
    with pytest.raises(ValueError, match="missing"):
        model.load_adapter(path, adapter_name="broken")
    assert torch.equal(logits(model), before)


def test_config_of_a_newer_version(saved):
    """As with PEFT's own, unknown keys are named and left out; a newer layout is refused."""
    model, path = saved
    config = json.loads((path / "adapter_config.json").read_text())
    assert config["format_version"] == 2
    (path / "adapter_config.json").write_text(json.dumps({**config, "option_of_tomorrow": 1}))
    with pytest.warns(UserWarning, match="option_of_tomorrow"):
        loaded = PeftModel.from_pretrained(tiny_llama(), path)
    assert torch.equal(logits(loaded), logits(model))
    (path / "adapter_config.json").write_text(json.dumps({**config, "format_version": 3}))
    with pytest.raises(ValueError, match=r"format_version=3.*Upgrade mos"):
        PeftModel.from_pretrained(tiny_llama(), path)
