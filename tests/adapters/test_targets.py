"""Default targets on models that are not LLaMA-like: they work, or the message says what to set."""

from __future__ import annotations

import pytest
from peft import get_peft_model
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForTokenClassification,
    OPTConfig,
    OPTForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from mos import MosConfig, ProloraConfig

SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def bert(cls):
    return cls(BertConfig(intermediate_size=128, vocab_size=100, **SMALL))


def opt_350m():
    """Its embeddings are narrower than its blocks: two layers are alone in their groups."""
    shape = {"ffn_dim": 128, "vocab_size": 100, "word_embed_proj_dim": 32}
    return OPTForCausalLM(OPTConfig(max_position_embeddings=64, **shape, **SMALL))


def qwen_moe():
    experts = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64}
    return Qwen2MoeForCausalLM(
        Qwen2MoeConfig(vocab_size=100, num_key_value_heads=2, **experts, **SMALL)
    )


def vit():
    return ViTForImageClassification(
        ViTConfig(intermediate_size=128, image_size=16, patch_size=8, **SMALL)
    )


def t5():
    return T5ForConditionalGeneration(
        T5Config(d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4, vocab_size=100)
    )


def targets(model, **options):
    return get_peft_model(model, MosConfig(**options)).peft_config["default"].target_modules


def test_encoders_and_encoder_decoders_have_pefts_targets():
    assert targets(bert(BertForQuestionAnswering), task_type="QUESTION_ANS") == {"query", "value"}
    assert targets(t5()) == {"q", "v"}


@pytest.mark.parametrize(
    ("cls", "task", "head"),
    [
        (BertForTokenClassification, "TOKEN_CLS", "classifier"),
        (BertForQuestionAnswering, "QUESTION_ANS", "qa_outputs"),
    ],
)
def test_heads_are_never_targets(cls, task, head):
    config = MosConfig(task_type=task, target_modules="all-linear", shards_per_vector=1)
    model = get_peft_model(bert(cls), config)
    assert not any(head in name for name in model.targeted_module_names)
    assert hasattr(model.base_model.model.get_submodule(head), "modules_to_save")


def test_other_models_are_adapted_but_for_their_head():
    assert targets(opt_350m()) == {
        "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2", "project_in", "project_out"
    }  # fmt: skip
    assert "classifier" not in targets(vit())


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (
            opt_350m,
            {"r": 32},
            r"project_out .* r up to 8 fits; .*exclude_modules=\['project_out'\]",
        ),
        (opt_350m, {"shards_per_vector": 3}, "Those that divide .* targets: 1, 2, 4, 8, 16, 32"),
        (qwen_moe, {}, r"shared_expert_gate .*exclude_modules=\['shared_expert_gate'\]"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(make, options, message):
    with pytest.raises(ValueError, match=message):
        get_peft_model(make(), MosConfig(**options))


def test_experts_that_are_not_adapted_are_named():
    with pytest.warns(UserWarning, match=r"experts\.gate_up_proj: .* are not adapted"):
        get_peft_model(qwen_moe(), ProloraConfig(target_modules=["q_proj"]))
