"""docs/add_a_method.md, followed to the letter, is a package whose method does what each does."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mos.adapters import METHODS, rank, row_label
from mos.config import compose_config, validate
from mos.errors import UserError
from mos.export import merge, to_lora
from mos.plan import plan
from mos.runs import find_runs
from mos.train import train
from tests.adapters.tiny import BLOCKS, adapted, gradients, logits, tiny_llama
from tests.tiny_job import TINY

PAGE = Path(__file__).resolve().parents[2] / "docs" / "add_a_method.md"
JOB = [*TINY, "adapter=rasa", "adapter.r=2"]


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    """The folder that the page's package is installed in."""
    text = PAGE.read_text("utf-8")
    files = dict(re.findall(r"^`(\S+)`:\n\n```\w+\n(.*?)```", text, re.DOTALL | re.MULTILINE))
    assert len(files) == text.count("```") // 2  # every block says its file
    root = tmp_path_factory.mktemp("site-packages")
    project = tomllib.loads(files.pop("pyproject.toml"))["project"]
    (scripts,) = project["entry-points"].items()
    info = f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    files[f"{info}/METADATA"] = f"Name: {project['name']}\nVersion: {project['version']}\n"
    lines = [f"{name} = {where}" for name, where in scripts[1].items()]
    files[f"{info}/entry_points.txt"] = "\n".join([f"[{scripts[0]}]", *lines])
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content, "utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(root))
        for entry in entry_points(group="mos.methods"):
            patch.setitem(METHODS, entry.name, entry.load())
        yield root
    for name in [name for name in sys.modules if name.startswith("mos_rasa")]:
        del sys.modules[name]


@pytest.fixture
def rasa():
    return importlib.import_module("mos_rasa.rasa")


@pytest.mark.parametrize("first", ["mos", "peft", "mos_rasa.rasa"])
def test_peft_and_the_tables_know_it_by_being_installed(first, package):
    code = (
        f"import {first}, mos, peft\n"
        "assert peft.PeftType.RASA in peft.mapping.PEFT_TYPE_TO_CONFIG_MAPPING\n"
        "from mos.adapters import METHODS, row_label\n"
        "print(row_label({'method': 'rasa', 'r': 2}), METHODS['rasa'].colour_of('RaSA'))"
    )
    path = os.pathsep.join([str(package), str(PAGE.parents[1])])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "RaSA #882255", done.stderr


def test_a_job_validates_plans_trains_and_is_named(tmp_path):
    paths = [f"paths.output_dir={tmp_path}/outputs", f"paths.cache_dir={tmp_path}/cache"]
    cfg = compose_config([*JOB, *paths, "eval.defer=true"])
    assert validate(cfg).adapter.dump()["rasa_alpha"] == 16
    with pytest.raises(UserError, match="Did you mean 'rasa_alpha'"):
        validate(compose_config([*JOB, "+adapter.rasa_alhpa=1"]))
    with pytest.raises(UserError, match="shared_rank=9 must be"):
        validate(compose_config([*JOB, "adapter.shared_rank=9"]))
    train(cfg)
    (run,) = find_runs(f"{tmp_path}/outputs")
    assert run.status == "trained"
    assert run.path.parent.name.startswith("rasa-r2-")
    tensors = load_file(run.adapter_dir / "adapter_model.safetensors")
    assert sum(t.numel() for t in tensors.values()) == plan(cfg)["trainable_parameters"]
    assert any(t.any() for name, t in tensors.items() if "pool_lora_B" in name)  # two steps
    assert row_label(cfg.adapter) == "RaSA"
    assert rank(cfg.adapter) == 2


def test_its_update_is_what_the_page_says(rasa):
    model = adapted(rasa.RasaConfig(r=5, shared_rank=2, rasa_alpha=10)).double()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    x = torch.randn(4, layer.in_features, dtype=torch.float64)
    group = layer.groups["default"]
    own, pooled = (
        [weights.of("default") for weights in pair]
        for pair in (
            (layer.rasa_lora_A, layer.rasa_lora_B),
            (group.rasa_pool_lora_A, group.rasa_pool_lora_B),
        )
    )
    scale = layer.rasa_scale.of("default")
    assert scale.shape == (2 * BLOCKS,)
    delta = own[1] @ own[0] + pooled[1] @ torch.diag(scale) @ pooled[0]
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 2 * x @ delta.T)
    assert all(g.any() for g in gradients(model).values())


@pytest.mark.parametrize("shared_rank", [0, 1, 3])
def test_it_saves_loads_merges_and_exports(rasa, shared_rank, tmp_path):
    tiny_llama().save_pretrained(tmp_path / "base")
    model = adapted(rasa.RasaConfig(r=3, shared_rank=shared_rank))
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
