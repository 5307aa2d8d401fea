"""Bases that accelerate keeps on the CPU or a disk, and weights that FSDP1 has flattened."""

from __future__ import annotations

import accelerate
import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from tests.adapters.tiny import adapted, gradients, logits, tiny_llama

DEVICE_MAP = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
}


def offloaded(base_dir, how, folder):
    if how == "cpu":
        base = AutoModelForCausalLM.from_pretrained(base_dir)
        return accelerate.cpu_offload(base, execution_device=torch.device("cpu"))
    return AutoModelForCausalLM.from_pretrained(
        base_dir, device_map=DEVICE_MAP, offload_folder=folder
    )


@pytest.mark.parametrize("how", ["cpu", "disk"])
def test_offloaded_bases_train_and_load(make_main_config, base_dir, how, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # PEFT writes an offloaded base anew below the working folder
    expected = adapted(make_main_config()).train()
    model = get_peft_model(offloaded(base_dir, how, tmp_path / "a"), make_main_config())
    values = dict(expected.named_parameters())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(values[name])
    found, wanted = gradients(model), gradients(expected)
    assert found.keys() == wanted.keys()
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name])

    expected.eval().save_pretrained(tmp_path / "adapter")
    options = {}
    if how == "disk":  # PEFT distributes the model anew: by a map that names its parts
        parts = {**DEVICE_MAP, "mos": "cpu", "tied_lora": "cpu"}
        options = {
            "device_map": {f"base_model.model.{part}": device for part, device in parts.items()},
            "offload_folder": tmp_path / "b",
        }
    base = offloaded(base_dir, how, tmp_path / "a")
    loaded = PeftModel.from_pretrained(base, tmp_path / "adapter", **options)
    torch.testing.assert_close(logits(loaded), logits(expected))


def test_flat_parameters_of_fsdp_are_refused(make_main_config):
    """FSDP1 without use_orig_params takes a module's parameter away and leaves a view."""
    model = adapted(make_main_config(), tiny_llama())
    for module in model.modules():
        if type(module).__name__ == "Weight":
            view = module._parameters.pop("weight").data
            object.__setattr__(module, "weight", view)
    with pytest.raises(RuntimeError, match="use_orig_params=True"):
        logits(model)
