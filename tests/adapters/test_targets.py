"""Default targets on models that are not LLaMA-like: they work, or the message says what to set."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForImageTextToText,
    AutoModelForQuestionAnswering,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForSpeechSeq2Seq,
    AutoModelForTokenClassification,
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
from mos.adapters.mos import MosLinear

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


def test_a_group_takes_the_rank_and_the_shards_that_it_can_hold():
    config = MosConfig(r=32, equivalent_rank=22, shards_per_vector=6, private_rank=1)
    with pytest.warns(UserWarning, match=r"project_out_64x32 r=22, shards_per_vector=2"):
        model = get_peft_model(opt_350m(), config)
    layer = model.base_model.model.model.decoder.project_out
    assert layer.r == {"default": 22}
    assert layer.scaling == {"default": 16 / 22}
    pools = [layer.mos_pool_A["default"].weight, layer.mos_pool_B["default"].weight]
    assert [tuple(pool.shape) for pool in pools] == [(22 * 2, 32), (22 * 2, 16)]


# By the class that loads them; their configs are the defaults, with two layers.
ARCHITECTURES = {
    AutoModelForCausalLM: "cohere deepseek_v3 falcon_h1 gemma3_text gemma3n_text glm4 gpt2 gpt_oss "
    "granite llama llama4_text mamba2 mixtral olmo2 opt phi phi3 qwen3 qwen3_moe qwen3_next "
    "smollm3",
    AutoModelForSeq2SeqLM: "bart t5",
    AutoModelForSpeechSeq2Seq: "whisper",
    AutoModelForImageTextToText: "gemma3 llava qwen2_5_vl qwen3_vl",
    AutoModel: "clip dinov2",
    AutoModelForSequenceClassification: "bert llama modernbert",
    AutoModelForTokenClassification: "bert",
    AutoModelForQuestionAnswering: "bert",
    AutoModelForImageClassification: "vit",
}


def with_two_layers(config_cls):
    config = config_cls()
    names = ("num_hidden_layers", "num_layers", "encoder_layers", "decoder_layers", "depth")
    shape = {config.attribute_map.get(n, n): 2 for n in names if hasattr(config, n)}
    if config.model_type == "gemma3n_text":
        shape |= {"num_kv_shared_layers": 0, "layer_types": ["full_attention"] * 2}
    for name in config_cls.sub_configs:
        if (part := getattr(config, name, None)) is not None:
            shape[name] = with_two_layers(type(part)).to_dict()
    return config_cls(**shape)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("auto", "kind"), [(auto, kind) for auto, ks in ARCHITECTURES.items() for kind in ks.split()]
)
def test_the_setting_of_the_readme_attaches_wherever_all_linear_does(auto, kind):
    with torch.device("meta"):
        base = auto.from_config(with_two_layers(CONFIG_MAPPING[kind]))
    config = MosConfig(r=16, equivalent_rank=8, target_modules="all-linear")
    model = get_peft_model(base, config)
    layers = [m for m in model.modules() if isinstance(m, MosLinear)]
    assert layers
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    heads = sum(p.numel() for n, p in model.named_parameters() if "modules_to_save.default" in n)
    assert trained - heads == 8 * sum(m.in_features + m.out_features for m in layers)


def test_experts_that_are_not_adapted_are_named():
    with pytest.warns(UserWarning, match=r"experts\.gate_up_proj: .* are not adapted"):
        get_peft_model(qwen_moe(), ProloraConfig(target_modules=["q_proj"]))
