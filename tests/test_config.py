"""Every shipped config composes, validates, documents its keys, and matches what it feeds."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import fields
from itertools import product

import pytest
from transformers import LlamaConfig, TrainingArguments

from mos.config import CONFIG_DIR, OVERRULED, compose_config, trainer_model, validate
from mos.errors import UserError
from mos.preflight import check_consent, check_shapes


def options(group: str) -> list[str]:
    places = CONFIG_DIR, CONFIG_DIR / "paper"
    return sorted(p.stem for place in places for p in (place / group).glob("*.yaml"))


@pytest.mark.parametrize(("experiment", "scale"), product(options("experiment"), options("scale")))
def test_every_experiment_validates_at_every_scale(experiment, scale):
    config = validate(compose_config([f"+experiment={experiment}", f"scale={scale}"]))
    assert config.experiment == experiment
    assert config.scale.name == scale
    assert bool(config.eval.benchmarks) != experiment.startswith("study_")


@pytest.mark.parametrize("adapter", options("adapter"))
def test_every_adapter_validates(adapter):
    validate(compose_config([f"adapter={adapter}", "quantization=none", "eval=base"]))


@pytest.mark.parametrize("group", ["model", "quantization", "data", "trainer", "logging"])
def test_every_option_of_a_group_validates(group):
    missing = {"custom": ["model.path=somewhere"], "messages": ["data.source=own.jsonl"]}
    for option in options(group):
        validate(compose_config([f"{group}={option}", *missing.get(option, [])]))


def test_paper_scale_has_the_values_of_appendix_a():
    config = validate(compose_config(["scale=paper"]))
    trainer = config.trainer
    assert config.model.path == "meta-llama/Llama-2-7b-hf"
    assert config.quantization.dump() == {
        "bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16",
        "norms": "float32",
    }  # fmt: skip
    assert trainer.optim == "paged_adamw_32bit"
    assert trainer.per_device_train_batch_size * trainer.gradient_accumulation_steps == 16
    assert config.data.max_seq_length == 512
    assert trainer.max_grad_norm == 0.3
    assert trainer.max_steps == 10_000
    assert trainer.lr_scheduler_type == "linear"
    assert trainer.warmup_steps == 0.03
    assert trainer.learning_rate == 2e-4
    assert trainer.weight_decay == 0.0
    assert config.data.eval_size == 1024
    assert trainer.eval_steps == trainer.save_steps == 1000
    assert config.adapter.mos_alpha == 16
    assert config.adapter.mos_dropout == 0.1
    assert len(config.adapter.target_modules) == 7
    assert trainer.train_sampling_strategy == "group_by_length"
    assert trainer.bf16
    assert trainer.tf32
    assert trainer.gradient_checkpointing


def test_the_command_line_wins_over_the_scale():
    config = compose_config(["scale=paper", "model=llama2_13b", "trainer.max_steps=7"])
    assert (config.model.name, config.trainer.max_steps) == ("LLaMA2-13B", 7)


def test_every_key_is_documented():
    """Each key of a composed config has a comment right above it in some file of configs/."""
    commented = re.compile(r"^ *#.*\n *([a-zA-Z0-9_]+):", flags=re.M)
    documented = {
        key for path in CONFIG_DIR.rglob("*.yaml") for key in commented.findall(path.read_text())
    }
    overrides = [f"+experiment={options('experiment')[0]}", "eval=[base,mmlu,bbh,gsm8k,tydiqa]"]
    for adapter in options("adapter"):
        config = compose_config([*overrides, f"adapter={adapter}"])
        assert _leaves(config) - {"method"} <= documented, f"adapter={adapter}"


def _leaves(config) -> set[str]:
    found = set()
    for key, value in config.items_ex(resolve=False):
        nested = hasattr(value, "items_ex") and key != "architecture"
        found |= _leaves(value) if nested else {key}
    return found


@pytest.mark.parametrize("model", [m for m in options("model") if m != "custom"])
def test_models_are_pinned_and_of_llama_s_shape(model):
    config = compose_config([f"model={model}"]).model
    assert set(config.architecture) <= {f.name for f in fields(LlamaConfig)}
    in_a_package = ":" in config.path
    assert in_a_package or re.fullmatch(r"[0-9a-f]{40}", config.revision)  # what the hub serves


def test_the_trainer_s_keys_are_those_of_transformers():
    names = {f.name for f in fields(TrainingArguments) if f.init}
    assert set(trainer_model().model_fields) - {"early_stopping_patience"} == names
    assert set(OVERRULED) < names


def test_evaluate_knows_the_keys_of_eval():
    assert set(compose_config(name="evaluate").eval) == set(compose_config().eval)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+data.max_length=3", "+sed=1"], "'data.max_length'. Did you mean 'max_seq_length'"),
        (["+data.max_length=3", "+sed=1"], "'sed'. Did you mean 'seed'"),
        (["data.max_seq_length=many"], 'data.max_seq_length="many": expected a valid integer'),
        (["data.max_seq_length=0"], "data.max_seq_length=0: expected greater than 0"),
        (["data.max_seq_length=1.0"], "data.max_seq_length"),
        (["data.on_bad_row=skp"], "Did you mean 'skip'"),
        (["data.corpus=cto"], "Did you mean 'cot'"),
        (["quantization.bits=3"], "quantization.bits=3: expected 4, 8 or null"),
        (["seed=-1"], "seed=-1"),
        (["device=gpu"], "cuda"),
        (["model=custom"], "model.path"),
        (["+adapter.shard_per_vector=2"], "shards_per_vector"),
        (["adapter.r=0"], "adapter.r: it must be at least 1"),
        (["adapter=vblora", "adapter.num_vectors=-1"], "adapter.num_vectors: it must be at least"),
        (["adapter=lora", "adapter.lora_dropout=-0.5"], "adapter.lora_dropout: it must be in"),
        (["adapter.private_rank=9"], "private_rank=9 must not exceed equivalent_rank=8"),
        (["adapter=prolora", "adapter.unshared_rank=99"], "unshared_rank=99 must be"),
        (["adapter=tied_lora", "adapter.tied_lora_dropout=1.0"], "tied_lora_dropout: it must be"),
        (["adapter.r=four"], "adapter.r=\"four\": expected a valid integer or 'all'"),
        (["+trainer.max_step=3"], "Did you mean 'max_steps'"),
        (["+trainer.output_dir=x"], "set by the program: set paths.output_dir"),
        (["+trainer.save_strategy=no"], "set trainer.save_steps"),
        (["+trainer.resume_from_checkpoint=x"], "the same command continues"),
        (["trainer.optim=adamw_trch"], "Did you mean 'adamw_torch'"),
        (["trainer.lr_scheduler_type=linea"], "Did you mean 'linear'"),
        (["trainer.learning_rate=-1"], "trainer.learning_rate=-1: expected greater than"),
        (["trainer.learning_rate=abc"], "expected a valid number"),
        (["trainer.max_grad_norm=-1"], "trainer.max_grad_norm=-1"),
        (["trainer.weight_decay=-1"], "trainer.weight_decay=-1"),
        (["trainer.eval_steps=-1"], "trainer.eval_steps=-1"),
        (["trainer.gradient_accumulation_steps=0"], "trainer.gradient_accumulation_steps=0"),
        (["trainer.max_steps=0"], "trainer.max_steps=0: expected a positive"),
        (["trainer.num_train_epochs=3"], "add trainer.max_steps=-1"),
        (["trainer.save_steps=15", "trainer.logging_steps=2"], "multiple"),
        (["eval.engine=vlllm"], "Did you mean 'vllm'"),
        (["eval.gpu_memory_utilization=2"], "less than or equal to 1"),
        (["+eval.benchmarks.mmlu.shot=1"], "Did you mean 'shots'"),
        (["+eval.benchmarks.mmlu.limit=0"], "eval.benchmarks.mmlu.limit=0"),
        (["logging.report_to=[wandbb]"], "Did you mean 'wandb'"),
        (["logging.wandb_project=a/b"], "takes no /"),
    ],
)
def test_wrong_values_are_named(overrides, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        validate(compose_config(overrides))


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("train eval.engine=vlllm", "Did you mean 'vllm'"),
        ("export adapter={0} out={0}", "which mos did not write"),
        ("chat {0}", "names no base model"),
        ("summarize runs=/nowhere", "runs=/nowhere: no such folder"),
    ],
)
def test_a_wrong_value_of_ours_waits_for_neither_torch_nor_peft(command, expected, tmp_path):
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "adapter_model.safetensors").touch()
    name, *arguments = command.format(tmp_path).split()
    python = [sys.executable, "-X", "importtime", "-m", "mos", name]
    done = subprocess.run([*python, *arguments], capture_output=True, text=True)
    assert done.returncode == 2
    assert expected in done.stderr
    imported = set(re.findall(r"\| +(\w+)$", done.stderr, re.MULTILINE))
    assert "pydantic" in imported
    assert not imported & {"torch", "transformers", "peft", "pandas", "numpy"}


def test_the_identity_of_a_run_does_not_know_epochs_that_are_not_asked_for():
    assert "num_train_epochs" not in validate(compose_config()).trainer.dump()
    epochs = ["trainer.num_train_epochs=3", "trainer.max_steps=-1"]
    assert validate(compose_config(epochs)).trainer.num_train_epochs == 3


def test_programs_of_a_model_need_consent():
    cfg = compose_config(["eval=[base,humaneval]"])
    with pytest.raises(UserError, match=r"eval\.allow_code_execution=true"):
        check_consent(validate(cfg).eval)
    cfg.eval.allow_code_execution = True
    check_consent(validate(cfg).eval)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["adapter.target_modules=[q_porj]"], "q_porj"),
        (["data.max_seq_length=9000"], "context of 8192"),
    ],
)
def test_what_does_not_fit_the_model_is_refused_before_weights_are_loaded(overrides, expected):
    config = validate(compose_config(["model=tiny_random", *overrides]))
    with pytest.raises(UserError, match=expected):
        check_shapes(config)
