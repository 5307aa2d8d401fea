"""What is saved is loaded, and nothing else is: edited and foreign files are refused whole."""

from __future__ import annotations

import json

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from mos import MosConfig
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


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("switches", SWITCHES.values(), ids=SWITCHES)
def test_round_trip(switches, low_cpu_mem_usage, tmp_path):
    model = mos_llama(switches, llama(layers=2)).eval()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(
        llama(layers=2), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage
    )
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


def test_auto_model(tmp_path):
    base = llama()
    base.save_pretrained(tmp_path / "base")
    model = mos_llama(base=type(base).from_pretrained(tmp_path / "base"), task_type="CAUSAL_LM")
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", dtype=torch.float32)
    assert torch.equal(loaded(tokens()).logits, model.eval()(tokens()).logits)


def test_pickle_serialization(tmp_path):
    model = mos_llama().eval()
    model.save_pretrained(tmp_path, safe_serialization=False)
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    assert torch.equal(loaded(tokens()).logits, model(tokens()).logits)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda e: e.pop(POOL), "missing: .*q_proj_64x64.lora_A.mos_pool_A"),
        (lambda e: e.pop(INDEX), "missing: .*mos_index_A"),
        (
            lambda e: e.update({f"{Q0}.lora_A.weight": torch.zeros(1)}),
            "not part of this adapter: .*lora_A",
        ),
        (
            lambda e: e.update({POOL: e[POOL][:-1]}),
            r"shape \(35, 16\), .*q_proj_64x64.lora_A.mos_pool_A",
        ),
        (lambda e: e.update({INDEX: e[INDEX][:-1]}), r"shape \(19,\), expected \(20,\)"),
        (
            lambda e: e.update({INDEX: e[INDEX].float()}),
            "stored as torch.float32, expected an integer",
        ),
        (lambda e: e.update({POOL: e[POOL].int()}), "expected a floating point type"),
        (set_entry(INDEX, 0, PRIVATE), "shard 36 is outside of the pool of 36 shards"),
        (lambda e: e.update({INDEX: e[INDEX].short() - 30}), "shard -.* is outside of the pool"),
        (set_entry(INDEX, 0, PUBLIC), "shards from 24 on are private. A private shard must not be"),
        (set_entry(INDEX, -1, PUBLIC + 4), "private shards must be .24, 25, 26, 27.*must not be"),
        (lambda e: e[INDEX].__setitem__(0, e[INDEX][1].clone()), "read more than once by the same"),
    ],
)
def test_edited_files_are_refused_before_any_weight_changes(change, message, saved):
    model, folder = saved
    edit(folder, change)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        model.load_adapter(folder, "default")
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(llama(), folder)


def test_unpaired_indices_are_refused_without_pair_dissociation(tmp_path):
    model = mos_llama({**MOS, "pair_dissociation": False})
    model.save_pretrained(tmp_path)
    edit(tmp_path, lambda e: e.update({INDEX: torch.cat([e[INDEX][:16].flip(0), e[INDEX][16:]])}))
    with pytest.raises(ValueError, match="although pair_dissociation is off"):
        PeftModel.from_pretrained(llama(), tmp_path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"layers": 2}, "not part of this adapter: .*layers.2"),
        ({"layers": 4}, "missing: .*layers.3"),
        ({"hidden": 128}, "missing: .*128"),
        ({"kv_heads": 4}, "k_proj"),
    ],
)
def test_another_model_is_refused(config, message, saved):
    with pytest.raises(ValueError, match=message):
        PeftModel.from_pretrained(llama(**config), saved[1])


def test_truncated_file_is_refused(saved):
    path = saved[1] / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(Exception, match=r"incomplete|not fully covered"):
        PeftModel.from_pretrained(llama(), saved[1])


def test_file_of_another_method_is_refused(saved, tmp_path):
    lora = get_peft_model(llama(), LoraConfig(target_modules=["q_proj"]))
    lora.save_pretrained(tmp_path / "lora")
    (tmp_path / "lora" / "adapter_model.safetensors").replace(
        saved[1] / "adapter_model.safetensors"
    )
    with pytest.raises(ValueError, match="was trained on, with the config"):
        PeftModel.from_pretrained(llama(), saved[1])


def test_config_of_a_newer_version_is_refused(saved):
    path = saved[1] / "adapter_config.json"
    config = {**json.loads(path.read_text()), "format_version": 3, "something_new": True}
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"format_version=3.*Upgrade mos"):
        PeftModel.from_pretrained(llama(), saved[1])


@pytest.mark.parametrize("change", [{"r": 4}, {"equivalent_rank": 100_000}])
def test_edited_config_is_refused_before_memory_is_taken(change, saved, monkeypatch):
    path = saved[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    monkeypatch.setattr("mos.adapters.mos.model._new_pools", None)
    with pytest.raises(ValueError, match="not the one that was saved beside this file"):
        PeftModel.from_pretrained(llama(), saved[1])
