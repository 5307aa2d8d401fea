"""Counts against the paper and PEFT, memory against what autograd really saves."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from mos import plan as entry
from mos.activations import activations
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.estimate import count, weights_bytes
from mos.plan import plan, sweep_total
from mos.plan_tables import duration, plan_table, size

SEVEN_B = ["scale=paper", "+experiment=superni_mmlu"]


def plan_of(*overrides, **options):
    return plan(compose_config(overrides), **options)


@pytest.mark.parametrize(
    ("adapter", "parameters", "lora_rank"),
    [
        ("table2_lora_r8", 19_988_480, 8),
        ("table2_mos_r32", 19_988_480, 32),
        ("table1_pure_sharing", 4_997_120, 64),
        ("table2_vera_r256", 1_417_216, 256),
        ("table2_tied_lora_r280", 4_989_696, None),
    ],
)
def test_llama2_7b_rows(adapter, parameters, lora_rank):
    anatomy = count(validate(compose_config([*SEVEN_B, f"adapter={adapter}"])))
    assert anatomy.trainable == parameters
    assert anatomy.base == 6_738_415_616
    if lora_rank:
        assert anatomy.lora_parameters == lora_rank * 2_498_560


@pytest.mark.parametrize(
    ("model", "parameters"),
    [("llama2_13b", 7_823_360), ("llama3_2_3b", 3_039_232), ("smollm2_135m", 610_560)],
)
def test_other_models_at_the_budget_of_rank_2(model, parameters):
    overrides = [*SEVEN_B, f"model={model}", "adapter=table2_lora_r2"]
    assert count(validate(compose_config(overrides))).trainable == parameters


def test_the_papers_setting():
    found = plan_of(*SEVEN_B, "adapter=table2_mos_r32")
    assert found["trainable_parameters"] == 19_988_480
    # fp32 pools, and int16 indices of 4 shards x 32 ranks for A and B of 7 types in 32 blocks.
    assert found["adapter_bytes"] == 4 * 19_988_480 + 2 * 2 * 7 * 32 * 32 * 4
    assert found["lora_bytes"] == 4 * 32 * 2_498_560
    assert found["optimizer_bytes"] == 8 * 19_988_480
    assert found["peak_memory_bytes"] == sum(
        found[f"{part}_bytes"]
        for part in ("weights", "trainable", "gradient", "optimizer", "activation", "factor",
                     "dequantization")
    )  # fmt: skip
    # NF4, double quantisation: half a byte a weight, scales of 8 bits, head and embedding in bf16.
    linear = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    rest = 6_738_415_616 - linear
    assert found["weights_bytes"] == pytest.approx(linear * (0.5 + 1.016 / 64) + 2 * rest, rel=1e-4)
    assert 8e9 < found["peak_memory_bytes"] < 20e9
    assert found["fits"]
    assert found["device_assumed"] or torch.cuda.is_available()
    assert found["disk"]["dequantized_base_once_per_model"] == 2 * 6_738_415_616
    json.dumps(found)


def test_serving_ten_thousand_users():
    serving = plan_of(*SEVEN_B, "adapter=table2_mos_r32")["serving"]
    paper = serving["paper"]
    assert f"{paper['bytes'] / 1e12:.2f} TB" == "3.36 TB"
    assert paper["bytes"] == 10_000 * 16 * 80 * 4 * (8192 + 8192) * 4
    assert paper["formula"].replace("(in + out)", "in + out") == " * ".join(paper["factors"])
    per_user = serving["bytes_per_user"]
    # performance.md: 40.1 MB as pools against 159.9 MB as a LoRA.
    assert size(per_user["native"]) == "40.09 MB"
    assert size(per_user["as LoRA"]) == "159.9 MB"
    assert per_user["LoRA of equal budget, rank 8"] == 2 * 19_988_480
    assert serving["bytes"]["native"] == 10_000 * per_user["native"]


def test_plans_need_no_weights_and_no_license(monkeypatch):
    monkeypatch.setattr("torch.nn.init.kaiming_uniform_", lambda tensor, **_: tensor)
    assert plan_of(*SEVEN_B, "adapter=none")["trainable_parameters"] == 0


def test_no_adapter_and_full_fine_tuning():
    nothing = plan_of("model=tiny_random", "adapter=none")
    assert (nothing["adapter_bytes"], nothing["gradient_bytes"], nothing["seconds"]) == (0, 0, 0)
    assert nothing["lora_bytes"] is None
    full = plan_of("model=tiny_random", "adapter=full", "quantization=none")
    assert full["trainable_parameters"] == full["base_parameters"]
    assert full["gradient_bytes"] == 2 * full["base_parameters"]
    with pytest.raises(UserError, match="use quantization=none"):
        plan_of("model=tiny_random", "adapter=full")


def test_weights_of_each_quantisation():
    anatomy = count(validate(compose_config(["model=tiny_random", "adapter=lora"])))
    kinds = [
        weights_bytes(anatomy, compose_config([f"quantization={name}"])["quantization"])
        for name in ("none", "int8", "nf4")
    ]
    assert kinds[0] == 2 * anatomy.base
    assert kinds[0] > kinds[1] > kinds[2]


class Saved:
    """Bytes of distinct tensors, weights aside, that autograd keeps of a real forward pass."""

    def __init__(self, model):
        self.weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
        self.kept = {}

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.kept[storage.data_ptr()] = tensor
        return tensor

    @property
    def bytes(self):
        return sum(tensor.untyped_storage().nbytes() for tensor in self.kept.values())


def test_activations_are_those_of_a_real_forward_pass():
    """Meta device against the CPU, where the fused attention kernel keeps its inputs and output."""
    overrides = [
        "model=tiny_random", "adapter=lora", "data.max_seq_length=64", "adapter.lora_dropout=0.1",
        "trainer.per_device_train_batch_size=3",
    ]  # fmt: skip
    config = validate(compose_config(overrides))
    anatomy = count(config)
    estimate = activations(config, anatomy)
    architecture = config["model"]["architecture"]
    model = LlamaForCausalLM(LlamaConfig(**architecture)).to(torch.bfloat16)
    adapter = config["adapter"]
    lora = LoraConfig(
        r=adapter["r"], lora_dropout=0.1, target_modules=list(adapter["target_modules"])
    )
    network = get_peft_model(model, lora).to(torch.bfloat16).train()
    ids = torch.zeros(3, 64, dtype=torch.long)
    saved = Saved(network)
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        network(input_ids=ids, labels=ids, use_cache=False)
    logits_gradient = 3 * 64 * architecture["vocab_size"] * 6
    assert estimate.peak(False) - logits_gradient == pytest.approx(saved.bytes, rel=0.02)
    assert estimate.peak(True) < estimate.peak(False)


def test_checkpointing_and_batch_size_change_the_memory():
    overrides = [*SEVEN_B, "trainer.gradient_checkpointing=false"]
    large = plan_of(*overrides)
    assert large["activation_bytes"] > 60e9
    assert not large["fits"] or not large["device_assumed"]
    config = validate(compose_config([*SEVEN_B, "adapter=table2_lora_r8"]))
    anatomy = count(config)
    sixteen = activations(config, anatomy)
    config["trainer"]["per_device_train_batch_size"] = 1
    assert sixteen.peak(True) == pytest.approx(
        16 * activations(config, anatomy).peak(True), rel=0.01
    )
    assert sixteen.peak(True) < 0.2 * sixteen.peak(False)


@pytest.fixture
def command(monkeypatch):
    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["mos.plan", *arguments])
        GlobalHydra.instance().clear()
        entry.main()

    return run


def test_one_job_is_one_json_object(command, capsys):
    command("model=tiny_random", "adapter=lora", "format=json", "users=5")
    found = json.loads(capsys.readouterr().out)
    assert {"trainable_parameters", "adapter_bytes", "peak_memory_bytes"} < set(found)
    assert found["serving"]["users"] == 5


def test_a_sweep_is_a_row_a_plan_and_what_all_take(command, capsys):
    """Lists and globs are members, as with mos.train -m."""
    small = ["model=tiny_random", "seed=0,1"]
    command("-m", *small, "adapter=lora,none", "slots=2")
    printed = capsys.readouterr().out
    assert "LoRA" in printed
    assert "Vanilla (chat)" in printed
    assert "3.36 TB = 10,000 * 16 * 80 * 4 * 16,384 * 4" in printed
    assert "4 members: training" in printed
    command(*small, "adapter=glob(table3_mos_*)", "format=json")
    found = json.loads(capsys.readouterr().out)
    assert [plan["rank"] for plan in found["plans"]] == [4, 8, 4, 8]
    assert found["total"]["members"] == 4
    assert found["total"]["fits"] == {"24 GB": 4, "40 GB": 4, "80 GB": 4}


def test_the_total_of_a_sweep():
    one = {"seconds": 7200, "model": "m", "peak_memory_bytes": 30e9}
    one["disk"] = {"adapter": 1, "checkpoints": 2, "dequantized_base_once_per_model": 10}
    assert sweep_total([one] * 4, slots=2) == {
        "members": 4, "hours": 8, "slots": 2, "hours_per_slot": 4, "disk_bytes": 22,
        "fits": {"24 GB": 0, "40 GB": 4, "80 GB": 4},
    }  # fmt: skip
    assert sweep_total([one, {**one, "seconds": None}], slots=2)["hours"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["format=xml"], "expected 'table' or 'json'"),
        (["users=many"], "users="),
        (["adapter=lroa"], "Did you mean 'lora'"),
        (["model=custom", "model.path=org/model"], "model.architecture is null"),
        (["adapter.private_rank=99"], "private_rank"),
    ],
)
def test_mistakes_are_one_message(command, arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        command(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_a_plan_is_a_table(capsys):
    from rich.console import Console

    Console(width=100).print(plan_table(plan_of("model=tiny_random", "adapter=lora")))
    printed = capsys.readouterr().out
    assert "trainable parameters" in printed
    assert "10,000 users, as LoRA" in printed


def test_units():
    assert [size(n) for n in (999, 3.3554432e12, 4.009e7, None)] == [
        "999 B", "3.36 TB", "40.09 MB", "–",
    ]  # fmt: skip
    assert [duration(s) for s in (5, 600, 36000, None)] == ["5 s", "10 min", "10.0 h", "unknown"]
