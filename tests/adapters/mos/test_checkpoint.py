"""What is saved is loaded, and nothing else is: edited and foreign files are refused whole."""

from __future__ import annotations

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from mos import MosConfig
from mos.adapters.mos.model import saved_ranks
from mos.export import to_lora
from tests.adapters.mos.models import MOS, PURE_SHARING, SWITCHES, llama, mos_llama, pools, tokens

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def saved(tmp_path):
    model = mos_llama()
    model.save_pretrained(tmp_path / "adapter")
    return model.eval(), tmp_path / "adapter"


def edit(folder, change):
    path = folder / "adapter_model.safetensors"
    entries = load_file(path)
    change(entries)
    save_file(entries, path, metadata={"format": "pt"})


@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_round_trip(switches, tmp_path):
    model = mos_llama(switches, llama(layers=2)).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(layers=2), tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)
    assert not any(p.requires_grad for p in loaded.parameters())
    entries = load_file(tmp_path / "adapter_model.safetensors")
    assert sum("pool_" in key for key in entries) == 2 * 7
    assert {t.dtype for key, t in entries.items() if "index" in key} == {torch.uint8}


def test_loading_takes_the_routing_from_the_file(saved):
    """Not from the seed: another release may draw differently."""
    model, folder = saved
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "routing_seed": 77}))
    loaded = PeftModel.from_pretrained(llama(), folder)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


def test_training_goes_on_with_the_loaded_routing(saved):
    _, folder = saved
    edit(folder, lambda e: [e.update({key: e[key].flip(0)}) for key in e if "pool_" in key])
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "routing_seed": 77}))
    first, second = (
        PeftModel.from_pretrained(llama(), folder, is_trainable=True, low_cpu_mem_usage=low)
        for low in (False, True)
    )
    layer = first.get_submodule(Q0)
    A, _, _ = layer.lora_factors("default")
    shards = layer.mos_pool_A["default"].weight[layer.mos_index_A["default"].long()]
    assert torch.equal(A, shards.view_as(A))
    for loaded in (first, second):
        loaded(tokens(), labels=tokens()).loss.backward()
    for name, pool in pools(first).items():
        assert torch.equal(pool.grad, pools(second)[name].grad)


def test_full_state_dict_round_trip():
    """As a trainer that saves the whole model does."""
    model, other = mos_llama().eval(), mos_llama(routing_seed=5, base=llama(seed=3)).eval()
    assert not torch.equal(other(tokens()).logits, model(tokens()).logits)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(tokens()).logits, model(tokens()).logits)


def test_adapters_are_saved_apart(tmp_path):
    model = mos_llama().eval()
    model.add_adapter(
        "other", MosConfig(**{**PURE_SHARING, "init_weights": False}, target_modules=["q_proj"])
    )
    expected = {}
    for name in ("default", "other"):
        model.set_adapter(name)
        expected[name] = model(tokens()).logits
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    loaded.load_adapter(tmp_path / "other", "renamed")
    assert torch.equal(loaded(tokens()).logits, expected["default"])
    loaded.set_adapter("renamed")
    assert torch.equal(loaded(tokens()).logits, expected["other"])
    assert len(load_file(tmp_path / "other" / "adapter_model.safetensors")) == 2 + 2 * 3


def test_pools_in_bfloat16(tmp_path):
    model = mos_llama(save_dtype="bfloat16").eval()
    model.save_pretrained(tmp_path)
    entries = load_file(tmp_path / "adapter_model.safetensors")
    assert {t.dtype for key, t in entries.items() if "pool_" in key} == {torch.bfloat16}
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    assert {p.dtype for p in pools(loaded).values()} == {torch.float32}
    torch.testing.assert_close(
        loaded(tokens()).logits, model(tokens()).logits, rtol=0.02, atol=0.02
    )


def set_entry(key, index, value):
    return lambda entries: entries[key].__setitem__(index, value)


PUBLIC, PRIVATE = 24, 36  # e=3, L=3, l=4, p=1: the pool's parts end here
INDEX = f"{Q0}.mos_index_A"
POOL = "base_model.model.mos.q_proj_64x64.lora_A.mos_pool_A.weight"


def test_edited_config_is_refused_before_memory_is_taken(saved, monkeypatch):
    change = {"r": 100_000, "equivalent_rank": 100_000}
    path = saved[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    monkeypatch.setattr("mos.adapters.mos.model._new_pools", None)
    with pytest.raises(ValueError, match="not the one that was saved beside this file"):
        PeftModel.from_pretrained(llama(), saved[1])


def test_layers_of_several_ranks_are_exported_with_the_highest(tmp_path):
    """vLLM wants one rank: such an adapter is served as LoRA."""
    model = mos_llama({**MOS, "r": 7}, exclude_modules=r".*[01]\.self_attn\.q_proj")
    model.eval().save_pretrained(tmp_path / "a")
    assert saved_ranks(tmp_path / "a") == {3, 7}
    assert load_file(to_lora(model, tmp_path / "b") / "adapter_model.safetensors")
    loaded = PeftModel.from_pretrained(llama(), tmp_path / "b")
    torch.testing.assert_close(loaded(tokens()).logits, model(tokens()).logits)
