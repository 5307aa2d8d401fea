"""Packed rows: nothing lost, no example sees another."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from mos.data.collator import Collator
from mos.data.packing import pack, packed_batches


def test_pack_keeps_every_example_within_capacity():
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 65, size=500)
    groups = pack(lengths, 64)
    assert sorted(i for group in groups for i in group) == list(range(500))
    filled = [sum(lengths[i] for i in group) for group in groups]
    assert max(filled) <= 64
    assert len(groups) <= np.ceil(lengths.sum() / 64) * 1.1
    assert pack(lengths, 64) == groups


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_logits_and_loss_equal_the_separate_ones(attention):
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            attn_implementation=attention,
        )
    ).eval()
    rng = np.random.default_rng(0)
    rows = [rng.integers(3, 50, size=n).tolist() for n in (5, 9, 1, 12, 7, 3, 20, 4)]
    labels = [[-100] * (len(r) // 2) + r[len(r) // 2 :] for r in rows]
    table = pa.table(
        {
            "input_ids": pa.array(rows, pa.list_(pa.int32())),
            "labels": pa.array(labels, pa.list_(pa.int32())),
        }
    )
    groups = pack([len(r) for r in rows], 24)
    assert any(len(group) > 1 for group in groups)
    packed = pa.Table.from_batches(packed_batches(table, groups, batch_size=2)).to_pylist()
    batch = Collator(pad_token_id=0)(packed)
    assert "attention_mask" not in batch
    with torch.no_grad():
        together = model(**batch).logits
        for logits, group in zip(together, groups, strict=True):
            start = 0
            for index in group:
                alone = model(input_ids=torch.tensor([rows[index]])).logits[0]
                torch.testing.assert_close(
                    logits[start : start + len(alone)], alone, atol=1e-5, rtol=1e-5
                )
                start += len(alone)

    # what every token is asked to predict is what it was asked alone
    separate = sum(sum(label != -100 for label in row[1:]) for row in labels)
    assert sum((batch["labels"][:, 1:] != -100).sum(dim=1)).item() == separate
    assert [sum(len(rows[i]) for i in group) for group in groups] == [r["length"] for r in packed]


def test_the_equality_above_is_of_the_masks_making():
    """With a key-value cache, transformers derives no mask from positions: examples leak."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    model = LlamaForCausalLM(config).eval()
    rows = [{"input_ids": [5, 6, 7, 8, 9, 10], "labels": [0] * 6, "position_ids": [0, 1, 2] * 2}]
    batch = Collator(pad_token_id=0)(rows)
    with torch.no_grad():
        alone = model(input_ids=batch["input_ids"][:, 3:]).logits
        sealed = model(**batch).logits[:, 3:]
        leaking = model(**(batch | {"use_cache": True})).logits[:, 3:]
    torch.testing.assert_close(sealed, alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(leaking, alone, atol=1e-3)
