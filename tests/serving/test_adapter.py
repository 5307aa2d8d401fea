"""Adapters as they are served, without an engine."""

from __future__ import annotations

import gc
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from mos.errors import UserError
from mos.export import to_lora
from mos.serving import adapter as adapters
from mos.serving.adapter import read_adapter
from tests.adapters.tiny import CASES, adapted


def save(folder, case="mos", seed=0, **options):
    adapted(CASES[case](**options), seed=seed).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("case", ["mos", "mos-sp", "mos-random-scaling"])
def test_factors_are_those_of_the_export(case, tmp_path):
    to_lora(save(tmp_path / "mos", case), tmp_path / "lora")
    exported = load_file(tmp_path / "lora/adapter_model.safetensors")
    config = json.loads((tmp_path / "lora/adapter_config.json").read_text())
    served = read_adapter(tmp_path / "mos", torch.float32)
    assert len(served.plan.shapes) == len(exported) / 2
    for path, (in_features, out_features) in served.plan.shapes.items():
        A, B = served.factors(path)
        assert (A.shape, B.shape) == ((config["r"], in_features), (out_features, config["r"]))
        assert torch.equal(A, exported[f"base_model.model.{path}.lora_A.weight"])
        scaled = exported[f"base_model.model.{path}.lora_B.weight"] * config["lora_alpha"]
        torch.testing.assert_close(B, scaled / config["r"])


def test_adapters_that_read_the_same_shards_share_a_plan(tmp_path):
    one, two = (read_adapter(save(tmp_path / str(s), seed=s), torch.bfloat16) for s in (0, 1))
    other = read_adapter(save(tmp_path / "other", routing_seed=1), torch.bfloat16)
    assert one.plan is two.plan
    assert other.plan is not one.plan
    assert not torch.equal(*(a.factors("model.layers.0.self_attn.q_proj")[0] for a in (one, two)))
    plans = len(adapters._PLANS)
    del other
    gc.collect()
    assert len(adapters._PLANS) == plans - 1


def change(name, edit):
    def damage(folder):
        file = folder / "adapter_model.safetensors"
        tensors = load_file(file)
        key = next(key for key in tensors if name in key)
        tensors[key] = edit(tensors[key])
        save_file({k: t for k, t in tensors.items() if t is not None}, file)

    return damage


def configure(**values):
    def edit(folder):
        file = folder / "adapter_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **values}))

    return edit


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (change("pool_A", lambda t: t[:-12]), "expected"),
        (change("pool_B", lambda t: t * torch.inf), "not finite"),
        (change("pool_B", lambda t: None), "has no mos."),
        (change("index_A", lambda t: t * 0 + 200), "outside of the pool"),
        (change("index_B", torch.Tensor.float), "float32"),
        (configure(r=8), "adapter_config.json"),
        (configure(peft_type="NEW"), "NEW"),
        (configure(modules_to_save=["lm_head"]), "modules_to_save"),
        (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\0" * 99), "damaged|cannot"),
        (lambda f: (f / "adapter_model.safetensors").unlink(), "no adapter_model.safetensors"),
        (lambda f: (f / "adapter_config.json").write_text("[]"), "adapter_config.json cannot"),
    ],
)
def test_what_is_damaged_is_refused_with_the_reason(damage, reason, tmp_path):
    damage(save(tmp_path))
    with pytest.raises(UserError, match=reason):
        read_adapter(tmp_path, torch.float32)
