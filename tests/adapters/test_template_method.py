"""The method of docs/add_a_method.md, run from the page itself, does what every method does."""

from __future__ import annotations

import re
import sys
import types
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel

from mos import adapters
from mos.errors import UserError
from mos.export import merge, to_lora
from tests.adapters.tiny import adapted, gradients, logits, tiny_llama

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"


@pytest.fixture(scope="module")
def page():
    """The code of the page as one module, and its config file."""
    text = PAGE.read_text("utf-8")
    module = types.ModuleType("mos_docs_dilora")
    sys.modules[module.__name__] = module  # dataclasses and pickles look their module up
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(compile(code, str(PAGE), "exec"), module.__dict__)
    [config] = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    adapters.METHODS["dilora"] = adapters.Method(
        f"{module.__name__}:DiloraConfig", "DiLoRA", "#000000"
    )
    yield module, yaml.safe_load(config)
    del adapters.METHODS["dilora"]


def test_registry_knows_it(page):
    _, config = page
    assert adapters.row_label(config) == "DiLoRA"
    assert adapters.rank(config) == 8
    model = adapters.attach(tiny_llama(), {**config, "r": 2}).eval()
    assert torch.equal(logits(model), logits(tiny_llama()))
    with pytest.raises(UserError, match="Did you mean 'dilora_alpha'"):
        adapters.peft_config({**config, "dilora_alhpa": 1})


def test_its_update_is_what_the_page_says(page):
    module, _ = page
    model = adapted(module.DiloraConfig(r=3, dilora_alpha=6)).double()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    A, d, B = (getattr(layer, f"dilora_{name}")["default"] for name in "AdB")
    expected = layer.base_layer(x) + 2 * x @ A.T @ torch.diag(d) @ B.T
    torch.testing.assert_close(layer(x), expected)
    assert all(g.any() for g in gradients(model).values())


def test_it_saves_loads_merges_and_exports(page, tmp_path):
    module, _ = page
    tiny_llama().save_pretrained(tmp_path / "base")
    model = adapted(module.DiloraConfig(r=3))
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
