"""The chat markers as vocabulary: learned, saved with the adapter, used where it is evaluated."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from mos.config import compose_config, validate
from mos.errors import UserError
from mos.export import merge, to_lora
from mos.modeling import grow_vocabulary
from mos.runs import find_runs
from mos.train import train
from tests.tiny_job import TINY

JOB = [
    *TINY,
    "+experiment=superni_mmlu",
    "quantization=none",
    "quantization.compute_dtype=float32",
    "data.chat_tokens=true",
    "trainer.learning_rate=0.01",
    "eval=[base,mmlu]",
]


@pytest.fixture(scope="module", params=["mos_tied", pytest.param("lora", marks=pytest.mark.slow)])
def case(request, tiny_model_dir, tmp_path_factory):
    """A base model, and a run that trained and evaluated on it."""
    method, _, tied = request.param.partition("_")
    folder = tmp_path_factory.mktemp(request.param)
    base = folder / "base"
    shutil.copytree(tiny_model_dir, base)
    if tied:
        config = AutoConfig.from_pretrained(base, tie_word_embeddings=True)
        AutoModelForCausalLM.from_pretrained(base, config=config).save_pretrained(base)
    own = [
        f"adapter={method}",
        "adapter.r=8",
        f"model.path={base}",
        f"paths.output_dir={folder}/outputs",
        f"paths.cache_dir={folder}/cache",
    ]
    train(compose_config([*JOB, *own]))
    (run,) = find_runs(f"{folder}/outputs")
    return base, run


@pytest.fixture
def run(case):
    return case[1]


@pytest.fixture
def tokenizer(run):
    return AutoTokenizer.from_pretrained(run.adapter_dir)


@pytest.fixture
def grown_base(case, tokenizer):
    def load():
        model = AutoModelForCausalLM.from_pretrained(case[0], dtype=torch.float32)
        grow_vocabulary(model, len(tokenizer))
        return model

    return load


def test_only_the_markers_rows_are_saved_and_they_have_learned(run, grown_base, tokenizer):
    ids = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>"])
    config = json.loads((run.adapter_dir / "adapter_config.json").read_text())
    assert set(map(tuple, config["trainable_token_indices"].values())) == {tuple(ids)}
    untrained = grown_base()
    model = PeftModel.from_pretrained(grown_base(), run.adapter_dir).merge_and_unload()
    for end in ("get_input_embeddings", "get_output_embeddings"):
        before, after = (getattr(m, end)().weight for m in (untrained, model))
        torch.testing.assert_close(after[: ids[0]], before[: ids[0]], rtol=0, atol=0)
    learned = model.get_input_embeddings().weight[ids[1:]]
    assert (learned != untrained.get_input_embeddings().weight[ids[1:]]).any(1).all()
    saved = load_file(run.adapter_dir / "adapter_model.safetensors")
    assert {len(tensor) for key, tensor in saved.items() if "token" in key} == {3}


def test_the_merged_model_has_the_markers_and_equals_the_adapted_one(
    case, grown_base, tokenizer, tmp_path
):
    base, run = case
    merged = merge(base, run.adapter_dir, tmp_path / "merged", torch.float32)
    own = AutoTokenizer.from_pretrained(merged)
    text = "<|user|>\nHello\n<|assistant|>\n"
    batch = own(text, return_tensors="pt")
    assert batch["input_ids"].tolist() == tokenizer(text, return_tensors="pt")["input_ids"].tolist()
    assert len(batch["input_ids"][0]) < len(text)
    adapted = PeftModel.from_pretrained(grown_base(), run.adapter_dir)
    plain = AutoModelForCausalLM.from_pretrained(merged)
    with torch.no_grad():
        torch.testing.assert_close(
            plain(**batch).logits, adapted.eval()(**batch).logits, rtol=1e-4, atol=1e-5
        )


def test_it_is_no_plain_lora(run, tmp_path):
    with pytest.raises(UserError, match="trainable_token_indices"):
        to_lora(run.adapter_dir, tmp_path / "lora")


def test_a_method_that_cannot_learn_rows_is_refused_before_anything_is_loaded():
    with pytest.raises(UserError, match=r"chat_tokens.*vera"):
        validate(compose_config([*JOB, "adapter=vera"]))
