"""Every adapter file composes, and the presets of the paper's rows have the paper's budgets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mos.adapters import METHODS, attach, peft_config, rank, row_label
from mos.config import compose_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LLAMA2_7B = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
LLAMA2_13B = {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40}

# preset: (parameters, row of the table, rank column)
PRESETS = {
    "table1_lora_r2": (4_997_120, "LoRA", 2),
    "table1_pure_sharing": (4_997_120, "Pure Sharing", 64),
    "table1_random_scaling": (4_997_120, "+ Random Scaling", 64),
    "table1_subset_selection": (4_997_120, "+ Subset Selection", 32),
    "table2_lora_r2": (4_997_120, "LoRA", 2),
    "table2_lora_r8": (19_988_480, "LoRA", 8),
    "table2_lora_r16": (39_976_960, "LoRA", 16),
    "table2_lora_r64": (159_907_840, "LoRA", 64),
    "table2_vera_r256": (1_417_216, "VeRA", 256),
    "table2_tied_lora_r280": (4_989_696, "Tied LoRA", 280),
    "table2_prolora_r4": (pytest.approx(4_997_120, rel=1e-3), "PRoLoRA", 4),
    "table2_prolora_r8": (pytest.approx(4_997_120, rel=1e-3), "PRoLoRA", 8),
    "prolora_r4_all_shared": (4_997_120, "PRoLoRA", 4),
    "prolora_r8_all_shared": (4_997_120, "PRoLoRA", 8),
    "table2_mos_r4": (4_997_120, "MoS", 4),
    "table2_mos_r8": (4_997_120, "MoS", 8),
    **{
        f"table2_mos_r{r}{suffix}": (19_988_480, label, r)
        for r in (16, 32)
        for suffix, label in (
            ("", "MoS"),
            ("_sp", "MoS -sp"),
            ("_vs", "MoS -vs"),
            ("_pd", "MoS -pd"),
        )
    },
    "table2_vanilla_chat": (0, "Vanilla (chat)", None),
    "table2_vanilla_no_chat": (0, "Vanilla (no-chat)", None),
}
# Table 3 is the 5.00M rows of Table 2 on LLaMA2-13B.
ON_13B = {
    name: (pytest.approx(7_823_360, rel=1e-3), *PRESETS[f"table2_{name}"][1:])
    for name in ("lora_r2", "prolora_r4", "prolora_r8", "mos_r4", "mos_r8")
}
PLAIN = {*METHODS, "rslora", "dora"}


def composed(config: str, *overrides: str):
    return compose_config(overrides, config)


def meta_llama(shape: dict) -> LlamaForCausalLM:
    heads = shape["hidden_size"] // 128
    config = LlamaConfig(vocab_size=32000, num_attention_heads=heads, **shape)
    with torch.device("meta"):
        return LlamaForCausalLM(config)


def test_every_file_is_tested():
    assert {path.stem for path in CONFIGS.rglob("adapter/*.yaml")} == PLAIN | set(PRESETS)


@pytest.mark.parametrize("name", sorted(PLAIN))
def test_plain_files_name_their_method_and_are_valid(name):
    adapter = composed(f"adapter/{name}").adapter
    assert adapter.method == ("lora" if name in ("rslora", "dora") else name)
    peft_config(adapter)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        *((name, LLAMA2_7B, expected) for name, expected in PRESETS.items()),
        *((f"table2_{name}", LLAMA2_13B, expected) for name, expected in ON_13B.items()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_budget_label_and_rank_are_the_papers(name, shape, expected):
    parameters, label, rank_column = expected
    cfg = composed(f"adapter/{name}")
    model, config = meta_llama(shape), peft_config(cfg.adapter)
    if config is None:
        model = attach(model, cfg.adapter)
    else:
        model = get_peft_model(model, config, low_cpu_mem_usage=True)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == parameters
    assert row_label(cfg.adapter, chat=cfg.get("eval", {}).get("chat", True)) == label
    assert rank(cfg.adapter, n_blocks=shape["num_hidden_layers"]) == rank_column


def test_the_default_is_mos_with_the_budget_of_lora_rank_8():
    adapter = composed("train").adapter
    assert (adapter.method, adapter.r, adapter.equivalent_rank) == ("mos", 32, 8)
    assert (adapter.shards_per_vector, adapter.private_rank) == (4, 1)


def test_ablations_differ_from_their_row_in_one_value():
    full = composed("adapter/table2_mos_r32").adapter
    for suffix, key in (
        ("sp", "private_rank"),
        ("vs", "shards_per_vector"),
        ("pd", "pair_dissociation"),
    ):
        ablated = composed(f"adapter/table2_mos_r32_{suffix}").adapter
        assert {k for k in full if full[k] != ablated[k]} == {key}


@pytest.mark.parametrize(("name", "chat"), [("chat", True), ("no_chat", False)])
def test_vanilla_rows_choose_the_prompts_of_a_job(name, chat):
    cfg = composed("train", f"adapter=table2_vanilla_{name}")
    assert dict(cfg.adapter) == {"method": "none"}
    assert cfg.eval.chat is chat
