"""Several adapters on one model, and copies of it, behave as PEFT's users expect."""

from __future__ import annotations

import copy

import torch
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import LlamaForSequenceClassification

from mos import MosConfig
from mos.adapters.mos.layer import MosLinear
from tests.adapters.mos.models import (
    MOS,
    llama,
    logits,
    mos_llama,
    pool_gradients,
    pools,
    tokens,
)


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


def test_modules_to_save_are_trained_and_stored(tmp_path):
    torch.manual_seed(0)
    base = LlamaForSequenceClassification(llama(pad_token_id=0).config)
    model = mos_llama(base=copy.deepcopy(base), task_type="SEQ_CLS")
    assert model.base_model.model.score.modules_to_save["default"].weight.requires_grad
    torch.nn.init.ones_(model.base_model.model.score.modules_to_save["default"].weight)
    model.eval().save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(logits(loaded), logits(model))


def test_trainable_parameters_are_counted_once(capsys):
    model = mos_llama()
    model.print_trainable_parameters()
    expected = 3 * 3 * sum(layer.in_features + layer.out_features for layer in first_block(model))
    assert f"trainable params: {expected:,}" in capsys.readouterr().out


def first_block(model):
    return [m for n, m in model.named_modules() if isinstance(m, MosLinear) and "layers.0." in n]


def test_kbit_preparation_works_on_plain_models():
    model = mos_llama(
        base=prepare_model_for_kbit_training(llama(), use_gradient_checkpointing=True)
    )
    assert all(g.abs().sum() > 0 for g in pool_gradients(model.train(), tokens()).values())


def test_pools_are_float32_unless_told_otherwise():
    model = mos_llama(base=llama().bfloat16())
    assert {p.dtype for p in pools(model).values()} == {torch.float32}
    assert logits(model).dtype == torch.bfloat16
    config = MosConfig(**MOS)
    model = PeftModel(llama().bfloat16(), config, autocast_adapter_dtype=False)
    assert {p.dtype for p in pools(model).values()} == {torch.bfloat16}
    assert all(g.dtype == torch.bfloat16 for g in pool_gradients(model, tokens()).values())
    assert {p.dtype for p in pools(mos_llama(base=llama().double())).values()} == {torch.float64}
