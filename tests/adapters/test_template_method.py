"""docs/add_a_method.md, followed to the letter, adds a method that does what every method does."""

from __future__ import annotations

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

import mos.adapters
import mos.config
from mos.budget import sized
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.export import merge, to_lora
from mos.methods import METHODS, Method, rank, row_label
from mos.plan import plan
from mos.runs import find_runs
from mos.train import train
from tests.adapters.tiny import adapted, gradients, logits, tiny_llama
from tests.tiny_job import TINY

REPO = Path(__file__).resolve().parents[2]
JOB = [*TINY, "adapter=dilora", "adapter.r=2"]


@pytest.fixture(scope="module", autouse=True)
def method(tmp_path_factory):
    """The page's files in a copy of the two folders that it names, and its line in METHODS."""
    text = (REPO / "docs" / "add_a_method.md").read_text("utf-8")
    files = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE))
    assert len(files) == text.count("```") // 2  # every block says its file
    line = files.pop("mos/methods.py")
    root = tmp_path_factory.mktemp("checkout")
    shutil.copytree(REPO / "configs", root / "configs")
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mos.config, "CONFIG_DIR", root / "configs")
        path = [*mos.adapters.__path__, str(root / "mos" / "adapters")]
        patch.setattr(mos.adapters, "__path__", path)
        for name, added in eval(f"{{{line}}}", {"Method": Method}).items():
            patch.setitem(METHODS, name, added)
        yield importlib.import_module("mos.adapters.dilora")
    for name in [name for name in sys.modules if name.startswith("mos.adapters.dilora")]:
        del sys.modules[name]


def test_a_job_validates_plans_trains_and_is_named(tmp_path):
    paths = [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    cfg = compose_config([*JOB, *paths, "eval.defer=true"])
    assert validate(cfg)["adapter"]["dilora_alpha"] == 16
    with pytest.raises(UserError, match="Did you mean 'dilora_alpha'"):
        validate(compose_config([*JOB, "+adapter.dilora_alhpa=1"]))
    train(cfg)
    (run,) = find_runs(f"{tmp_path}/outputs")
    assert run.status == "trained"
    assert run.path.parent.name.startswith("dilora-r2-")
    tensors = load_file(run.adapter_dir / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == plan(cfg)["trainable_parameters"]
    assert any(t.any() for name, t in tensors.items() if "dilora_B" in name)  # two steps
    assert row_label(cfg.adapter) == "DiLoRA"
    assert rank(cfg.adapter) == 2
    assert METHODS["dilora"].colour == "#117733"


def test_its_rank_is_found_for_a_budget():
    (found,) = sized(validate(compose_config(JOB)), 20_000, ["dilora"])
    assert found["overrides"] == ["adapter=dilora", "adapter.r=2"]
    assert found["trainable_parameters"] == 2 * (8192 + 8 * 7)  # A and B, and d of each layer


def test_its_update_is_what_the_page_says(method):
    model = adapted(method.DiloraConfig(r=3, dilora_alpha=6)).double()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    A, d, B = (getattr(layer, f"dilora_{name}").of("default") for name in "AdB")
    expected = layer.base_layer(x) + 2 * x @ A.T @ torch.diag(d) @ B.T
    torch.testing.assert_close(layer(x), expected)
    assert all(g.any() for g in gradients(model).values())


def test_it_saves_loads_merges_and_exports(method, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = adapted(method.DiloraConfig(r=3))
    expected = logits(model)
    model.save_pretrained(tmp_path / "adapter")
    assert torch.equal(
        logits(PeftModel.from_pretrained(tiny_llama(), tmp_path / "adapter")), expected
    )
    lora = PeftModel.from_pretrained(tiny_llama(), to_lora(model, tmp_path / "lora"))
    torch.testing.assert_close(logits(lora), expected, atol=1e-5, rtol=1e-5)
    merge(tmp_path / "base", tmp_path / "adapter", tmp_path / "merged")
    merged = type(tiny_llama()).from_pretrained(tmp_path / "merged")
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-5)
