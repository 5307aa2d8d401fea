"""Every shipped config composes, validates, documents its keys, and matches what it feeds."""

from __future__ import annotations

import re
from dataclasses import fields
from itertools import product

import pytest
from transformers import LlamaConfig

from mos.config import CONFIG_DIR, TrainConfig, compose_config, training_argument_names, validate
from mos.errors import UserError
from mos.preflight import check_adapter_fits


def options(group: str) -> list[str]:
    return sorted(p.stem for p in (CONFIG_DIR / group).glob("*.yaml"))


@pytest.mark.parametrize(("experiment", "scale"), product(options("experiment"), options("scale")))
def test_every_experiment_validates_at_every_scale(experiment, scale):
    config = validate(
        compose_config(
            [f"+experiment={experiment}", f"scale={scale}", "eval.allow_code_execution=true"]
        )
    )
    assert config["experiment"] == experiment
    assert config["scale"]["name"] == scale
    assert config["eval"]["benchmarks"]


@pytest.mark.parametrize("adapter", options("adapter"))
def test_every_adapter_validates(adapter):
    validate(compose_config([f"adapter={adapter}"]))


@pytest.mark.parametrize("group", ["model", "quantization", "data", "trainer", "logging"])
def test_every_option_of_a_group_validates(group):
    missing = {"custom": ["model.path=somewhere"], "messages": ["data.source=own.jsonl"]}
    for option in options(group):
        validate(compose_config([f"{group}={option}", *missing.get(option, [])]))


def test_paper_scale_has_the_values_of_appendix_a():
    config = validate(compose_config(["scale=paper"]))
    trainer = config["trainer"]
    assert config["model"]["path"] == "meta-llama/Llama-2-7b-hf"
    assert config["quantization"] == {
        "bits": 4, "quant_type": "nf4", "double_quant": True, "compute_dtype": "bfloat16",
    }  # fmt: skip
    assert trainer["optim"] == "paged_adamw_32bit"
    assert trainer["per_device_train_batch_size"] * trainer["gradient_accumulation_steps"] == 16
    assert config["data"]["max_seq_length"] == 512
    assert trainer["max_grad_norm"] == 0.3
    assert trainer["max_steps"] == 10_000
    assert trainer["lr_scheduler_type"] == "linear"
    assert trainer["warmup_steps"] == 0.03
    assert trainer["learning_rate"] == 2e-4
    assert trainer["weight_decay"] == 0.0
    assert config["data"]["eval_size"] == 1024
    assert trainer["eval_steps"] == trainer["save_steps"] == 1000
    assert config["adapter"]["mos_alpha"] == 16
    assert config["adapter"]["mos_dropout"] == 0.1
    assert len(config["adapter"]["target_modules"]) == 7
    assert trainer["train_sampling_strategy"] == "group_by_length"
    assert trainer["bf16"]
    assert trainer["tf32"]
    assert trainer["gradient_checkpointing"]


def test_the_command_line_wins_over_the_scale():
    config = compose_config(["scale=paper", "model=llama2_13b", "trainer.max_steps=7"])
    assert (config.model.name, config.trainer.max_steps) == ("LLaMA2-13B", 7)


def test_every_key_is_documented():
    """Each key of a composed config has a comment right above it in some file of configs/."""
    commented = re.compile(r"^ *#.*\n *([a-z0-9_]+):", flags=re.M)
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
def test_architectures_are_llama_shapes(model):
    architecture = compose_config([f"model={model}"]).model.architecture
    assert set(architecture) <= {f.name for f in fields(LlamaConfig)}


def test_trainer_keys_are_training_arguments():
    for option in options("trainer"):
        assert set(compose_config([f"trainer={option}"]).trainer) <= training_argument_names()


def test_schema_and_config_have_the_same_keys():
    assert set(compose_config()) == {f.name for f in fields(TrainConfig)}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["+data.max_length=3"], "max_length"),
        (["data.max_seq_length=many"], "max_seq_length"),
        (["data.max_seq_length=0"], "positive"),
        (["data.on_bad_row=skp"], "Did you mean 'skip'"),
        (["quantization.bits=3"], "4, 8, null"),
        (["adapter.private_rank=9"], "private_rank"),
        (["+adapter.shard_per_vector=2"], "shards_per_vector"),
        (["+trainer.max_step=3"], "Did you mean 'max_steps'"),
        (["+trainer.output_dir=x"], "set by the program"),
        (["trainer.save_steps=15", "trainer.logging_steps=2"], "multiple"),
        (["eval=[base,humaneval]"], "allow_code_execution"),
        (["+eval.benchmarks.mmlu.shot=1"], "Did you mean 'shots'"),
        (["logging.report_to=[wandbb]"], "Did you mean 'wandb'"),
        (["device=gpu"], "cuda"),
    ],
)
def test_wrong_values_are_named(overrides, expected):
    with pytest.raises(UserError, match=re.escape(expected)):
        validate(compose_config(overrides))


def test_an_adapter_that_does_not_fit_the_model_is_refused_before_weights_are_loaded():
    config = validate(compose_config(["model=tiny_random", "adapter.r=64"]))
    with pytest.raises(UserError, match="r=64"):
        check_adapter_fits(config)
