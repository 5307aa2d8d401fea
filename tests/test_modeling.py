"""Base models as they are loaded; what is not a whole one is refused by name before that."""

from __future__ import annotations

import json
import pickle
import re
import shutil
from pathlib import Path

import bitsandbytes
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GPT2Config

from eval.engines import products_in
from mos import MosConfig
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.export import merge
from mos.models import loading, sources
from mos.models.loading import (
    dequantize_weight,
    dequantized_base,
    load_base,
    load_tokenizer,
    with_adapter,
)
from mos.models.sources import check_model_folder, resolve_model
from tests.adapters.tiny import adapted

NF4 = {"bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16"}


def test_random_weights_take_the_shapes_of_any_model_config(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    shapes = "{hidden_size: 64, intermediate_size: 64, num_hidden_layers: 1, vocab_size: 512}"
    (tmp_path / "model" / "small.yaml").write_text(f"architecture: {shapes}")
    monkeypatch.setattr(sources, "CONFIG_DIR", tmp_path)
    folder = resolve_model("random:small", tmp_path)
    assert load_base(folder, {**NF4, "bits": None}).model.embed_tokens.weight.shape == (512, 64)
    assert load_tokenizer(folder, "<pad>").pad_token == "<pad>"
    with pytest.raises(UserError, match="random:nothing: expected"):
        resolve_model("random:nothing", tmp_path)


@pytest.mark.parametrize("bits", [4, None])
def test_without_bfloat16_the_same_weights_are_multiplied_in_float32(
    bits, tiny_model_dir, monkeypatch
):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert products_in("bfloat16", "cpu") == "float32"
    assert products_in("bfloat16", "cuda") == "bfloat16"
    assert products_in("float16", "cpu") == "float16"
    quantization = {**NF4, "bits": bits}
    ids = torch.arange(3, 23)[None]
    model = load_base(tiny_model_dir, quantization)
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.bfloat16).float()
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, bitsandbytes.nn.Linear4bit):
                module.weight.quant_state.dtype = torch.float32
                plain.get_parameter(f"{name}.weight").copy_(dequantize_weight(module))
    torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)


def test_on_a_gpu_a_base_is_dequantised_in_a_process_that_ends(
    tiny_model_dir, tmp_path, monkeypatch
):
    """Here it fails for want of CUDA, and the error comes back."""
    stopped = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(loading, "load_base", lambda *_: pytest.fail("not in this process"))
    with pytest.raises((RuntimeError, ValueError, AssertionError), match=r"CUDA|GPU"):
        dequantized_base(tiny_model_dir, NF4, tmp_path, lambda: stopped.append("the engine"))
    assert stopped == ["the engine"]
    assert not [*(tmp_path / "models").glob("*[0-9a-f]")]


@pytest.mark.parametrize("norms", ["float32", "bfloat16"])
def test_norms_say_the_type_of_the_sums_between_the_blocks(norms, tiny_model_dir):
    overrides = ["model=tiny_random", "adapter.r=8", f"quantization.norms={norms}"]
    config = validate(compose_config(overrides))
    quantization = config.quantization.dump()
    base = load_base(tiny_model_dir, quantization, torch.device("cpu"))
    model = with_adapter(base, quantization, config.adapter.dump())
    sums = []
    block = model.get_submodule("base_model.model.model.layers.0")
    block.register_forward_pre_hook(lambda _, args: sums.append(args[0].dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        model(input_ids=torch.arange(3, 23)[None]).logits.float().sum().backward()
    in_bfloat16 = products_in("bfloat16", "cpu") == norms == "bfloat16"
    assert sums == [torch.bfloat16 if in_bfloat16 else torch.float32]
    assert all(p.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.fixture
def gpt2_dir(tiny_model_dir, tmp_path):
    """Of a family of Conv1D layers, with a generation config that cannot be saved."""
    config = GPT2Config(
        vocab_size=260, n_embd=64, n_layer=2, n_head=2, n_positions=128, initializer_range=0.1,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "gpt2"
    AutoModelForCausalLM.from_config(config).bfloat16().save_pretrained(folder)
    load_tokenizer(tiny_model_dir).save_pretrained(folder)
    settings = {"temperature": 0.9, "top_p": 0.6, "eos_token_id": [2, 35]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return folder


def test_conv1d_and_odd_generation_configs_survive_the_copies_of_a_base(gpt2_dir, tmp_path):
    ids = torch.arange(3, 23)[None]
    live = load_base(gpt2_dir, NF4)
    live.save_pretrained(tmp_path / "checkpoint")
    copy = dequantized_base(gpt2_dir, NF4, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(copy, dtype=torch.float32)
    original = AutoModelForCausalLM.from_pretrained(gpt2_dir, dtype=torch.float32)
    assert plain.generation_config.eos_token_id == [2, 35]
    expected, found, far = (m(input_ids=ids).logits.float() for m in (live, plain, original))
    assert (found - expected).norm() < 0.3 * (far - expected).norm()
    adapter = adapted(MosConfig(r=4, equivalent_rank=2, shards_per_vector=2), original)
    adapter.save_pretrained(tmp_path / "adapter")
    merged = merge(copy, tmp_path / "adapter", tmp_path / "merged", torch.float32)
    trained = PeftModel.from_pretrained(plain, tmp_path / "adapter")
    torch.testing.assert_close(
        AutoModelForCausalLM.from_pretrained(merged)(input_ids=ids).logits,
        trained(input_ids=ids).logits,
    )


EVERYWHERE = {"type": "Replace", "pattern": {"String": ""}, "content": "a"}
ODD = {"type": "Precompiled", "precompiled_charsmap": "gICAgA=="}
FAR = {
    **{"strategy": {"Fixed": 10**13}, "direction": "Right", "pad_to_multiple_of": None},
    **{"pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"},
}


@pytest.mark.parametrize(
    ("file", "key", "value", "reason"),
    [
        ("tokenizer_config.json", "model_max_length", "512", "model_max_length is '512'"),
        # what the library makes of these: a panic, an abort, as much memory as there is
        ("tokenizer.json", "normalizer", EVERYWHERE, "PanicException"),
        ("tokenizer.json", "normalizer", ODD, "ends its process by SIGABRT"),
        ("tokenizer.json", "padding", FAR, "ends its process by SIGABRT"),
    ],
)
def test_a_tokenizer_made_to_break_the_library_is_one_error(
    file, key, value, reason, tiny_model_dir, tmp_path
):
    folder = shutil.copytree(tiny_model_dir, tmp_path / "model")
    changed = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**changed, key: value}))
    with pytest.raises(UserError, match=reason) as caught:
        load_tokenizer(folder)
    assert "\n" not in str(caught.value)


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
