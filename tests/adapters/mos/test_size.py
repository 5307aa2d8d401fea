"""Parameters and bytes, to the unit, on models of the real shapes without their weights."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model, get_peft_model_state_dict
from transformers import LlamaConfig, LlamaForCausalLM

from mos import MosConfig
from tests.adapters.mos.models import PURE_SHARING, TYPES

SHAPES = {  # hidden, intermediate, layers, heads, key-value heads
    "LLaMA2-7B": (4096, 11008, 32, 32, 32),
    "LLaMA2-13B": (5120, 13824, 40, 40, 40),
    "LLaMA3-8B": (4096, 14336, 32, 32, 8),
    "LLaMA3.2-3B": (3072, 8192, 28, 24, 8),
    "SmolLM2-135M": (576, 1536, 30, 9, 3),
}


def meta_model(name: str, **config):
    hidden, intermediate, layers, heads, kv_heads = SHAPES[name]
    with torch.device("meta"):
        base = LlamaForCausalLM(
            LlamaConfig(
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                vocab_size=8,
            )
        )
    return get_peft_model(base, MosConfig(target_modules=TYPES, **config))


@pytest.mark.parametrize(
    ("name", "e", "parameters"),
    [
        ("LLaMA2-7B", 2, 4_997_120),
        ("LLaMA2-7B", 8, 19_988_480),
        ("LLaMA2-13B", 2, 7_823_360),
        ("LLaMA3-8B", 2, 5_242_880),
        ("LLaMA3.2-3B", 2, 3_039_232),
        ("SmolLM2-135M", 2, 610_560),
    ],
)
def test_trainable_parameters_are_those_of_lora_of_the_equivalent_rank(name, e, parameters):
    model = meta_model(name, r=4 * e, equivalent_rank=e, shards_per_vector=4, private_rank=1)
    assert model.get_nb_trainable_parameters()[0] == parameters


@pytest.mark.parametrize(
    "switches",
    [
        {"r": 16, "equivalent_rank": 2, "shards_per_vector": 1, "private_rank": 1},
        {"r": 64, "equivalent_rank": 2, "shards_per_vector": 8, "private_rank": 0},
        {"r": 2, "equivalent_rank": 2, "shards_per_vector": 2, "private_rank": 2},
        PURE_SHARING,
    ],
)
def test_no_switch_changes_the_number_of_parameters(switches):
    assert meta_model("LLaMA2-7B", **switches).get_nb_trainable_parameters()[0] == 4_997_120


@pytest.mark.parametrize(("save_dtype", "width"), [(None, 4), ("bfloat16", 2)])
def test_saved_bytes_at_7b(save_dtype, width):
    """LLaMA2-7B, e=8, r=32, l=4: 80 MB of pools in float32, and 114,688 bytes of indices."""
    model = meta_model(
        "LLaMA2-7B",
        r=32,
        equivalent_rank=8,
        shards_per_vector=4,
        private_rank=1,
        save_dtype=save_dtype,
    )
    entries = get_peft_model_state_dict(model)
    nbytes = {key: tensor.numel() * tensor.element_size() for key, tensor in entries.items()}
    pools = sum(size for key, size in nbytes.items() if "pool_" in key)
    indices = sum(size for key, size in nbytes.items() if "mos_index_" in key)
    assert pools == 19_988_480 * width
    assert indices == 2 * 2 * 7 * 32 * 32 * 4  # two bytes, A and B, types, blocks, r, l
    assert sum(nbytes.values()) == pools + indices
    assert len(entries) == 2 * 7 + 2 * 7 * 32
