"""Exports are the same function, in formats that know nothing of this project."""

from __future__ import annotations

import json
import shutil
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from peft import LoraConfig, MissConfig, PeftModel, VeraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from mos import MosConfig, ProloraConfig, TiedLoraConfig
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.evaluation.subjects import write_origin
from mos.export import export, main, merge, to_lora
from mos.files import fingerprint
from tests.adapters.tiny import CASES, adapted, logits, randomise, tiny_llama

TARGETS = ["q_proj", "k_proj", "v_proj", "down_proj"]
PEFTS_OWN = {
    "lora": lambda: LoraConfig(r=3, lora_alpha=5, target_modules=TARGETS),
    "rslora": lambda: LoraConfig(r=3, use_rslora=True, target_modules=TARGETS),
    "vera": lambda: VeraConfig(r=6, target_modules=TARGETS),
    "miss": lambda: MissConfig(r=10, target_modules=TARGETS),
    "miss-mini": lambda: MissConfig(r=4, init_weights="mini", mini_r=8, target_modules=TARGETS),
}
ALL = {**CASES, **PEFTS_OWN}


@pytest.fixture(scope="module")
def base_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("base") / "tiny"
    tiny_llama().save_pretrained(path)
    return path


def base(base_dir):
    return AutoModelForCausalLM.from_pretrained(base_dir)


@pytest.fixture(params=list(ALL))
def model(request, base_dir):
    return adapted(ALL[request.param](), base(base_dir))


def stock(path, dtype=torch.float32):
    """The exported adapter on the base, loaded by a PEFT that has its own LoRA only."""
    loaded = PeftModel.from_pretrained(tiny_llama(dtype), path)
    assert loaded.peft_config["default"].peft_type == "LORA"
    return loaded


def test_exports_have_the_logits_of_the_adapter(model, base_dir, tmp_path):
    folder = tmp_path / "adapter"
    model.save_pretrained(folder)
    paths = to_lora(model, tmp_path / "a"), to_lora(folder, tmp_path / "b")
    first, second = (load_file(path / "adapter_model.safetensors") for path in paths)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    first, second = (json.loads((path / "adapter_config.json").read_text()) for path in paths)
    assert set(first.pop("target_modules")) == set(second.pop("target_modules"))
    assert first == second
    merged = merge(base_dir, folder, tmp_path / "merged")
    assert not list(merged.glob("adapter*"))
    plain = AutoModelForCausalLM.from_pretrained(merged)
    assert type(plain) is type(tiny_llama())
    for exported in (stock(paths[0]), stock(paths[0]).merge_and_unload(), plain):
        torch.testing.assert_close(logits(exported), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("mos")])
def test_directories_of_mos_need_no_base_at_all(name, tmp_path):
    model = adapted(CASES[name]())  # a base without a path
    model.save_pretrained(tmp_path / "adapter")
    path = to_lora(tmp_path / "adapter", tmp_path / "lora")
    torch.testing.assert_close(logits(stock(path)), logits(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("r", [1, 9, 33])
def test_rank_and_scaling_are_kept(r, tmp_path):
    model = adapted(TiedLoraConfig(r=r, tied_lora_alpha=16))
    path = to_lora(model, tmp_path / "lora")
    config = json.loads((path / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (r, 16)
    torch.testing.assert_close(logits(stock(path)), logits(model), atol=1e-5, rtol=1e-5)


def test_what_others_wrote_is_never_replaced(tmp_path):
    model = adapted(CASES["prolora"]())
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="did not write"):
        to_lora(tmp_path / "adapter", tmp_path / "adapter")
    lora = to_lora(model, tmp_path / "lora")
    with pytest.raises(UserError, match="is the adapter itself"):
        to_lora(lora, lora)
    assert to_lora(model, lora) == lora
    (lora / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match=r"adapter_config\.json, which was edited"):
        to_lora(model, lora)
    assert (lora / "adapter_config.json").read_text() == "{}"


def test_dtype_of_an_export(tmp_path):
    model = adapted(CASES["mos"](), tiny_llama(torch.bfloat16))
    model.save_pretrained(tmp_path / "adapter")
    given = [f"adapter={tmp_path}/adapter", f"out={tmp_path}/lora", "dtype=bfloat16"]
    path = export(compose_config(given, "export"))
    tensors = load_file(path / "adapter_model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    difference = (logits(stock(path, torch.bfloat16)) - logits(model)).float()
    assert difference.norm() < 0.03 * logits(model).float().norm()


def test_blocks_left_out_stay_out(tmp_path):
    model = adapted(ProloraConfig(r=4, layers_to_transform=[1]))
    path = to_lora(model, tmp_path / "lora")
    loaded = stock(path)
    assert all(".layers.1." in name for name in loaded.base_model.targeted_module_names)
    torch.testing.assert_close(logits(loaded), logits(model), atol=1e-5, rtol=1e-5)


def test_active_adapter_is_exported(tmp_path):
    model = adapted(CASES["prolora"]())
    model.add_adapter("other", CASES["prolora"](r=2))
    model.set_adapter("other")
    randomise(model, seed=3)
    path = to_lora(model, tmp_path / "lora")
    torch.testing.assert_close(logits(stock(path)), logits(model), atol=1e-5, rtol=1e-5)
    model.base_model.set_adapter(["default", "other"])
    with pytest.raises(UserError, match="one adapter"):
        to_lora(model, tmp_path / "both")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (MosConfig(r=4, equivalent_rank=3, modules_to_save=["lm_head"]), "modules_to_save"),
        (LoraConfig(r=4, target_modules=TARGETS, use_dora=True), "use_dora"),
        (LoraConfig(r=4, target_modules=TARGETS, bias="all"), "bias"),
        (MissConfig(r=16, target_modules=TARGETS, init_weights="bat"), "bat"),
    ],
)
def test_what_plain_lora_cannot_hold_is_refused(config, named, tmp_path):
    model = get_peft_model(tiny_llama(), config)
    with pytest.raises(UserError, match=named):
        to_lora(model, tmp_path / "lora")
    assert not (tmp_path / "lora").exists()


def test_merged_model_keeps_dtype_tokenizer_and_saved_modules(tiny_model_dir, tmp_path):
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model = adapted(ProloraConfig(r=4, modules_to_save=["lm_head"]), plain)
    model.save_pretrained(tmp_path / "adapter")
    path = merge(tiny_model_dir, tmp_path / "adapter", tmp_path / "merged")
    loaded = AutoModelForCausalLM.from_pretrained(path)
    assert loaded.dtype == plain.dtype
    assert torch.equal(
        loaded.lm_head.weight, model.base_model.model.lm_head.modules_to_save.default.weight
    )
    text = "Merged models bring their tokenizer."
    ours, theirs = (AutoTokenizer.from_pretrained(p) for p in (path, tiny_model_dir))
    assert ours(text).input_ids == theirs(text).input_ids
    difference = (logits(loaded) - logits(model)).float()
    assert difference.norm() < 0.03 * logits(model).float().norm()


def test_merging_onto_another_model_is_refused(base_dir, tmp_path):
    adapted(CASES["mos"](), tiny_llama(blocks=3)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="does not fit"):
        merge(base_dir, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


@pytest.fixture
def trained_on_nf4(tiny_model_dir, tmp_path):
    """An adapter folder as a run leaves it, with scores on its card; and the options of exports."""
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    folder = tmp_path / "adapter"
    adapted(CASES["tied_lora"](), plain).save_pretrained(folder)
    config = validate(compose_config(["quantization=nf4", f"model.path={tiny_model_dir}"]))
    write_origin(folder, config, fingerprint(tiny_model_dir, tmp_path / "cache"))
    card = "---\nlibrary_name: peft\n---\n\n## Scores\n\n| mmlu | 25.00 |\n\n## How it was made\n"
    (folder / "README.md").write_text(card)

    def exported(**options):
        given = {
            "adapter": folder, "out": tmp_path / "merged", "as": "merged", "dtype": "float32",
            "cache_dir": tmp_path / "cache", **options,
        }  # fmt: skip
        path = export(compose_config([f"{k}={v}" for k, v in given.items()], "export"))
        return AutoModelForCausalLM.from_pretrained(path), (path / "README.md").read_text()

    return folder, exported


def test_an_adapter_is_merged_into_what_it_was_trained_on(trained_on_nf4, tmp_path):
    folder, exported = trained_on_nf4
    merged, card = exported()
    assert "25.00" in card
    [dequantised] = (tmp_path / "cache" / "models").glob("*dequantized*[0-9a-f]")
    on_nf4 = AutoModelForCausalLM.from_pretrained(dequantised, dtype=torch.float32)
    expected = PeftModel.from_pretrained(on_nf4, folder)
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-5, rtol=1e-5)
    files = [file for file in tmp_path.rglob("*.safetensors") if file.parent != folder]
    assert {oct(file.stat().st_mode & 0o777) for file in files} == {
        oct((tmp_path / "merged" / "config.json").stat().st_mode & 0o777)
    }


def test_other_weights_have_none_of_its_scores(trained_on_nf4, tiny_model_dir):
    folder, exported = trained_on_nf4
    merged, card = exported(quantization="none")
    assert "Scores" not in card
    assert "How it was made" in card
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    expected = PeftModel.from_pretrained(plain, folder)
    torch.testing.assert_close(logits(merged), logits(expected), atol=1e-5, rtol=1e-5)


def test_a_base_of_the_same_shapes_and_other_content_is_refused(
    trained_on_nf4, tiny_model_dir, tmp_path
):
    _, exported = trained_on_nf4
    other = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    shutil.copytree(tiny_model_dir, tmp_path / "other")
    randomise(other, seed=4)
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(UserError, match="was trained on another base model"):
        exported(base=tmp_path / "other")
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapter=a"], "out has no value"),
        (["adapter=a", "out=b", "quantisation=nf4"], "Did you mean 'quantization'"),
        (["adapter=a", "out=b", "as=gguf"], "expected 'lora' or 'merged'"),
        (["out=b"], "adapter has no value"),
        (["adapter=a", "out=b", "dtype=float3"], "Did you mean 'float32'"),
        (["adapter=a", "out=b", "as=merged", "base=c", "quantization=nf5"], "Did you mean 'nf4'"),
        (["adapter=a", "out=b", "quantization=nf4"], "quantization= is for as=merged"),
        (["adapter=/nowhere", "out=/nowhere/else"], "adapter_config.json"),
    ],
)
def test_command_line_names_mistakes(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["mos.export", *arguments])
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_base_that_needs_code_of_others_is_refused(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "theirs.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    auto_map = {"AutoConfig": "theirs.Config"}
    (base / "config.json").write_text(json.dumps({"model_type": "theirs", "auto_map": auto_map}))
    model = adapted(LoraConfig(r=2, target_modules=["q_proj"]))
    model.peft_config["default"].base_model_name_or_path = str(base)
    model.save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match="cannot be used"):
        to_lora(tmp_path / "adapter", tmp_path / "lora")
    assert not (tmp_path / "ran").exists()
