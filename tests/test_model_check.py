"""A folder that is not a whole model is refused by name, before anything is trained on it."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mos.errors import UserError
from mos.models.loading import load_base, load_tokenizer
from mos.models.sources import check_model_folder

NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}
WEIGHTS = "model.safetensors"
UP = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture
def folder(tiny_model_dir, tmp_path) -> Path:
    return shutil.copytree(tiny_model_dir, tmp_path / "model")


def edit_config(folder: Path, **values) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


def split(folder: Path) -> None:
    """Two shards in the index, one of them there."""
    tensors = load_file(folder / WEIGHTS)
    shards = {n: f"model-{1 + (n == UP)}.safetensors" for n in tensors}
    save_file({UP: tensors[UP]}, folder / "model-2.safetensors")
    index = {"weight_map": shards}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def two_sets(folder: Path) -> None:
    """transformers takes the one file, vLLM the shard of the index."""
    tensors = {name: tensor + 1 for name, tensor in load_file(folder / WEIGHTS).items()}
    save_file(tensors, folder / "model-1.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def other_code(folder: Path) -> None:
    edit_config(folder, model_type="theirs", auto_map={"AutoConfig": "theirs.Config"})
    (folder / "theirs.py").write_text(f"open({str(folder / 'ran')!r}, 'w')\nclass Config: pass\n")


def pickled_code(folder: Path) -> None:
    class Code:
        def __reduce__(self):
            return Path.touch, (folder / "ran",)

    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": Code()}))


def already_quantised(folder: Path) -> None:
    pytest.importorskip("bitsandbytes")
    load_base(folder, NF4, "cpu").save_pretrained(folder)


def half(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[: len(content) // 2])


def with_tensors(change):
    def edit(folder: Path) -> None:
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, {"format": "pt"})

    return edit


FAULTS = {
    "a tensor is missing": (
        with_tensors(lambda t: {n: v for n, v in t.items() if n != UP}),
        rf"1 tensors are missing in the files \({re.escape(UP)}\)",
    ),
    "a head is missing that is not tied": (
        with_tensors(lambda t: {n: v for n, v in t.items() if n != "lm_head.weight"}),
        r"missing in the files \(lm_head\.weight\)",
    ),
    "all names have a prefix": (
        with_tensors(lambda t: {f"base_model.model.{n}": v for n, v in t.items()}),
        r"missing in the files .*75 tensors are in the files and unknown to the model",
    ),
    "an unknown tensor": (
        with_tensors(lambda t: t | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(3)}),
        r"unknown to the model \(model\.layers\.0\.self_attn\.q_proj\.bias\)",
    ),
    "another shape": (
        with_tensors(lambda t: t | {UP: t[UP][1:].clone()}),
        rf"1 tensors are of another shape \({re.escape(UP)} \(",
    ),
    "fewer rows in the config": (lambda f: edit_config(f, vocab_size=200), "of another shape"),
    "a pad id beyond the embedding": (
        lambda f: edit_config(f, pad_token_id=9999),
        r"pad_token_id=9999 is beyond the \d+ rows",
    ),
    "a million layers": (lambda f: edit_config(f, num_hidden_layers=10**6), "1,000,000 layers"),
    "a pointer": (
        lambda f: (f / WEIGHTS).write_text("version https://git-lfs.github.com/spec/v1\noid"),
        "Git LFS pointer.*git lfs pull",
    ),
    "half a file": (half, f"{WEIGHTS} is damaged or cut"),
    "a missing shard": (split, r"lacks 1 of its 2 weight files: model-1\.safetensors"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), "no weights"),
    "an index that is none": (
        lambda f: (f / "model.safetensors.index.json").write_text("[]"),
        "not an index of weight files",
    ),
    "a config that is none": (lambda f: (f / "config.json").write_text("[]"), "cannot be used"),
    "quantised already": (already_quantised, r"quantised already \(bitsandbytes\)"),
    "code of its own": (other_code, "code of others is never run"),
    "code in its weights": (pickled_code, "cannot be loaded"),
    "two sets of weights": (two_sets, r"two sets of weights, model.safetensors and model-1\.saf"),
    "other weights beside": (
        lambda f: shutil.copy(f / WEIGHTS, f / "consolidated.safetensors"),
        r"two sets of weights, model.safetensors and consolidated\.safetensors",
    ),
    "somebody's adapter": (
        lambda f: (f / "adapter_config.json").write_text('{"peft_type": "LORA"}'),
        r"holds an adapter beside the model",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_not_a_whole_model_is_refused(folder, fault):
    damage, message = FAULTS[fault]
    damage(folder)
    with pytest.raises(UserError, match=message):
        check_model_folder(folder)
    assert not (folder / "ran").exists()


def test_whole_models_pass(folder):
    two_sets(folder)
    (folder / WEIGHTS).rename(folder / "consolidated.safetensors")  # as Mistral publishes them
    assert check_model_folder(folder) == folder
    (folder / "model.safetensors.index.json").unlink()
    (folder / "model-1.safetensors").unlink()
    (folder / "consolidated.safetensors").rename(folder / WEIGHTS)
    assert check_model_folder(folder) == folder
    torch.save(load_file(folder / WEIGHTS), folder / "pytorch_model.bin")
    (folder / WEIGHTS).unlink()
    assert check_model_folder(folder) == folder
    tied = {n: v for n, v in torch.load(folder / "pytorch_model.bin").items() if "lm_head" not in n}
    torch.save(tied, folder / "pytorch_model.bin")
    edit_config(folder, tie_word_embeddings=True)
    assert check_model_folder(folder) == folder


def test_tokens_beyond_the_embedding_are_named(folder):
    tokenizer = load_tokenizer(folder)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"beyond the \d+ rows.*'<new>' is id"):
        load_tokenizer(folder)
