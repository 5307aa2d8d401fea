"""TRL continues an adapter of ours as it continues a LoRA: measured against the adapter as loaded.

A trainer without a reference model adds an adapter "ref" and copies the trained one into it. If the
copy is right, the first step of DPO and KTO finds no difference (a loss of log 2 and 1/2), and the
first one of GRPO a KL of 0.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from tests.adapters.tiny import CASES, MAIN_CASES, adapted

pytestmark = pytest.mark.slow

METHODS = {
    **{name: CASES[name] for name in MAIN_CASES},
    "lora": lambda **kw: LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **kw),
}
PROMPTS = ["Name a colour.", "Count to three.", "Say a word.", "Greet me."]
GOOD, BAD = [" Blue.", " 1 2 3.", " Tree.", " Hello!"], [" Seven.", " Red.", " 99.", " No."]
COMMON = {
    "per_device_train_batch_size": 2,
    "max_steps": 2,
    "logging_steps": 1,
    "learning_rate": 1e-2,
    "report_to": "none",
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_dropout": True,
}


@pytest.fixture(params=METHODS)
def continued(request, tiny_model_dir, tmp_path):
    """A trained adapter, loaded to be trained on."""
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    adapted(METHODS[request.param](task_type="CAUSAL_LM"), base).save_pretrained(tmp_path / "a")
    if request.param == "mos":  # the routing is the file's, whatever its seed says
        path = tmp_path / "a" / "adapter_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "routing_seed": 77}))
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    return PeftModel.from_pretrained(base, tmp_path / "a", is_trainable=True)


@pytest.fixture(scope="module")
def tokenizer(tiny_model_dir):
    return AutoTokenizer.from_pretrained(tiny_model_dir)


def log_of(trainer, key):
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    changed = {
        name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
    }
    assert changed
    assert all(".default." in name for name in changed)
    return [entry[key] for entry in trainer.state.log_history if key in entry]


def options(cls, tmp_path, **more):
    known = cls.__dataclass_fields__
    return cls(
        output_dir=str(tmp_path / "out"),
        **{key: value for key, value in {**COMMON, **more}.items() if key in known},
    )


@pytest.mark.parametrize(
    "more",
    [
        {"gradient_checkpointing": False},
        {"packing": True, "max_length": 64},
        {"gradient_checkpointing_kwargs": {"use_reentrant": True}},
    ],
    ids=["plain", "packed", "reentrant"],
)
def test_sft(more, continued, tokenizer, tmp_path):
    rows = Dataset.from_dict({"prompt": PROMPTS, "completion": GOOD})
    losses = log_of(
        trl.SFTTrainer(
            continued, options(trl.SFTConfig, tmp_path, per_device_train_batch_size=4, **more),
            train_dataset=rows, processing_class=tokenizer,
        ),
        "loss",
    )  # fmt: skip
    assert losses[-1] < losses[0]  # the same four rows each time


@pytest.mark.parametrize("method", METHODS)
def test_reward(method, tiny_model_dir, tokenizer, tmp_path):
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_model_dir, num_labels=1, dtype=torch.float32
    )
    rows = Dataset.from_dict({"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD})
    losses = log_of(
        trl.RewardTrainer(
            adapted(METHODS[method](task_type="SEQ_CLS"), base),
            options(trl.RewardConfig, tmp_path, per_device_train_batch_size=4),
            train_dataset=rows, processing_class=tokenizer,
        ),
        "loss",
    )  # fmt: skip
    assert losses[-1] < losses[0]


def test_dpo(continued, tokenizer, tmp_path):
    rows = Dataset.from_dict({"prompt": PROMPTS, "chosen": GOOD, "rejected": BAD})
    losses = log_of(
        trl.DPOTrainer(
            continued, args=options(trl.DPOConfig, tmp_path), train_dataset=rows,
            processing_class=tokenizer,
        ),
        "loss",
    )  # fmt: skip
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(losses[1] - math.log(2)) > 1e-4


def test_kto(continued, tokenizer, tmp_path):
    rows = Dataset.from_dict(
        {"prompt": PROMPTS, "completion": GOOD[:2] + BAD[2:], "label": [True, True, False, False]}
    )
    losses = log_of(
        trl.KTOTrainer(
            continued, args=options(trl.KTOConfig, tmp_path), train_dataset=rows,
            processing_class=tokenizer,
        ),
        "loss",
    )  # fmt: skip
    assert losses[0] == pytest.approx(0.5, abs=1e-4)


def test_grpo(continued, tokenizer, tmp_path):
    rows = Dataset.from_dict({"prompt": PROMPTS})
    settings = options(
        trl.GRPOConfig, tmp_path, beta=0.1, num_generations=2, max_completion_length=8
    )
    kl = log_of(
        trl.GRPOTrainer(
            continued, lambda completions, **_: [float(sum(map(ord, c)) % 97) for c in completions],
            args=settings, train_dataset=rows, processing_class=tokenizer,
        ),
        "kl",
    )  # fmt: skip
    assert kl[0] == pytest.approx(0, abs=1e-6)
    assert kl[1] > 1e-6
