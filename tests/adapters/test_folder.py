"""Folders of others: one message each, whatever is in them, and no memory or time for nonsense."""

from __future__ import annotations

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from mos.errors import UserError
from mos.export import merge, to_lora
from tests.adapters.tiny import CASES, adapted, tiny_llama

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LORA = {"lora": lambda **kw: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **kw)}
METHODS = {"mos": CASES["mos"], **LORA}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(path)
    return path


def edit_config(folder, **changes):
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))


def edit_tensors(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})


def first_float(tensors):
    return next(key for key, tensor in tensors.items() if tensor.is_floating_point())


DAMAGES = {
    "no json": lambda f: (f / CONFIG).write_text("{"),
    "a list": lambda f: (f / CONFIG).write_text("[]"),
    "not utf-8": lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{"),
    "unknown method": lambda f: edit_config(f, peft_type="NOSUCH"),
    "no method": lambda f: edit_config(f, peft_type=None),
    "rank of words": lambda f: edit_config(f, r="many"),
    "huge rank": lambda f: edit_config(f, r=100_000),
    "targets that are numbers": lambda f: edit_config(f, target_modules=7),
    "broken regex": lambda f: edit_config(f, target_modules="(q_proj"),
    "no target": lambda f: edit_config(f, target_modules=["nothing"]),
    "cut": lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:-50]),
    "empty": lambda f: (f / WEIGHTS).write_bytes(b""),
    "a missing tensor": lambda f: edit_tensors(f, lambda t: t.pop(first_float(t))),
    "a foreign tensor": lambda f: edit_tensors(f, lambda t: t.update(x=torch.zeros(3))),
    "another shape": lambda f: edit_tensors(
        f, lambda t: t.update({first_float(t): torch.zeros(1, 1)})
    ),
    "not finite": lambda f: edit_tensors(f, lambda t: t[first_float(t)].fill_(float("nan"))),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_used_is_one_message(method, damage, base_dir, tmp_path):
    adapted(METHODS[method](base_model_name_or_path=str(base_dir))).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", base_model_name_or_path=str(base_dir))
    DAMAGES[damage](tmp_path / "a")
    with pytest.raises(UserError):
        merge(base_dir, tmp_path / "a", tmp_path / "merged")
    with pytest.raises(UserError):
        to_lora(tmp_path / "a", tmp_path / "lora")
    assert not (tmp_path / "merged").exists()
    assert not (tmp_path / "lora").exists()


def test_sizes_of_the_file_are_compared_before_memory_is_taken(base_dir, tmp_path):
    adapted(CASES["mos"]()).save_pretrained(tmp_path / "a")
    edit_config(tmp_path / "a", r=100_000, equivalent_rank=100_000)
    with pytest.raises(UserError, match="not the one that was saved beside this file"):
        merge(base_dir, tmp_path / "a", tmp_path / "merged")


def test_resized_embeddings_are_never_dropped(base_dir, tmp_path):
    base = type(tiny_llama()).from_pretrained(base_dir)
    base.resize_token_embeddings(101)
    model = adapted(CASES["mos"](), base)
    with pytest.raises(UserError, match="resized from 97 to 101"):
        to_lora(model, tmp_path / "lora")
    model.save_pretrained(tmp_path / "a")
    with pytest.raises(UserError, match=r"resized: .*lm_head"):
        merge(base_dir, tmp_path / "a", tmp_path / "merged")


def test_numbers_that_are_not_finite_are_not_exported(tmp_path):
    model = get_peft_model(tiny_llama(), LORA["lora"](init_lora_weights=False))
    next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("inf")
    with pytest.raises(UserError, match="not finite"):
        to_lora(model, tmp_path / "lora")
