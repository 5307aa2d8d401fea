"""What the plugin does to vLLM, on modules that look like its own: vLLM itself takes minutes."""

from __future__ import annotations

import logging
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mos.serving import cpu, plugin

KERNELS = ("bgmv_shrink", "bgmv_expand", "bgmv_expand_slice")


@pytest.fixture
def vllm(monkeypatch, caplog):
    """The modules that are looked at, by their last name."""
    caplog.set_level(logging.WARNING)
    monkeypatch.delenv("MOS_ADAPTERS", raising=False)
    monkeypatch.setattr(plugin.log, "parent", logging.root)
    plugin._warn.cache_clear()

    class WorkerLoRAManager:
        def _load_adapter(self, lora_request):
            return "vLLM's"

    class OpenAIServingModels:
        async def load_lora_adapter(self, request, base_model_name=None): ...

        async def resolve_lora(self, lora_name): ...

    contents = {
        "vllm": {"__version__": "0.32.0"},
        "vllm.lora.utils": {"get_adapter_absolute_path": str},
        "vllm.lora.worker_manager": {"WorkerLoRAManager": WorkerLoRAManager},
        "vllm.platforms": {"current_platform": SimpleNamespace(is_cpu=lambda: True)},
        "vllm.lora.ops.torch_ops": {},
        "vllm.lora.ops.torch_ops.lora_ops": {},
        "vllm.lora.punica_wrapper": {},
        "vllm.lora.punica_wrapper.punica_cpu": {},
        "vllm.entrypoints.openai.models.serving": {"OpenAIServingModels": OpenAIServingModels},
    }
    modules = {name: ModuleType(name) for name in contents}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
        vars(module).update(contents[name])
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, module)
    found = {name.rpartition(".")[2]: module for name, module in modules.items()}
    for name in KERNELS:
        for module in (found["lora_ops"], found["punica_cpu"]):
            setattr(module, name, like(getattr(cpu, name)))
    return SimpleNamespace(**found)


def like(function):
    def original(*args):
        raise AssertionError("vLLM's own")

    original.__signature__ = plugin.inspect.signature(function)
    return original


def replaced(vllm) -> list:
    manager, models = vllm.worker_manager.WorkerLoRAManager, vllm.serving.OpenAIServingModels
    kernels = [getattr(m, name) for m in (vllm.lora_ops, vllm.punica_cpu) for name in KERNELS]
    servers = [models.load_lora_adapter, models.resolve_lora]
    return [manager._load_adapter, *servers, *kernels]


def test_vllm_is_extended_once_however_often_it_asks(vllm, tmp_path, caplog):
    before = replaced(vllm)
    plugin.register()
    once = replaced(vllm)
    plugin.register()
    assert replaced(vllm) == once
    assert not set(once) & set(before)
    assert not caplog.records
    load = vllm.worker_manager.WorkerLoRAManager()._load_adapter
    config = tmp_path / "adapter_config.json"
    for text in ('{"peft_type": "LORA"}', "damaged"):
        config.write_text(text)
        assert load(SimpleNamespace(lora_path=str(tmp_path))) == "vLLM's"


def test_a_server_that_is_imported_later_is_extended_then(vllm, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.delitem(sys.modules, "vllm.entrypoints.openai.models.serving")
        plugin.register()
    models = vllm.serving.OpenAIServingModels
    assert not hasattr(models.resolve_lora, "of_mos")
    plugin.register()
    assert hasattr(models.resolve_lora, "of_mos")


def test_an_untested_vllm_is_named_once(vllm, caplog):
    vllm.vllm.__version__ = "0.33.1"
    plugin.register()
    plugin.register()
    (record,) = caplog.records
    assert "vLLM 0.33.1 was not tested" in record.getMessage()
    assert hasattr(vllm.worker_manager.WorkerLoRAManager._load_adapter, "of_mos")


def test_what_vllm_changed_is_left_alone_and_named(vllm, caplog):
    manager = vllm.worker_manager.WorkerLoRAManager
    manager._load_adapter = lambda self, path, device: None
    del vllm.lora_ops.bgmv_shrink
    changed = manager._load_adapter
    plugin.register()
    assert manager._load_adapter is changed
    loading, mixing = (record.getMessage() for record in caplog.records)
    assert "_load_adapter takes self, path, device" in loading
    assert "MoS adapters are not served" in loading
    assert "bgmv_shrink" in mixing
    assert "do not ask for the base model and adapters at once" in mixing
    assert hasattr(vllm.serving.OpenAIServingModels.resolve_lora, "of_mos")


def weights(slots: int, width: int, inner: int) -> torch.Tensor:
    return torch.randn(slots, 1, width, inner, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("add", [True, False])
def test_each_row_has_its_own_adapter_s_product_and_none_without(add):
    torch.manual_seed(0)
    indices = torch.tensor([2, -1, 0, 2, -1, 1])
    x, A, B = torch.randn(6, 5), weights(3, 4, 5), weights(3, 7, 4)
    shrunk = torch.full((6, 4), 9.0)
    cpu.bgmv_shrink(x, A, shrunk, indices, 0.5)
    out = torch.randn(6, 12)
    expected, sliced = out.clone(), out.clone()
    cpu.bgmv_expand(shrunk, B, out, indices, add)
    cpu.bgmv_expand_slice(shrunk, B, sliced, indices, 3, 7, add)
    for row, slot in enumerate(indices.tolist()):
        low = 0.5 * A[slot, 0] @ x[row] if slot >= 0 else torch.zeros(4)
        torch.testing.assert_close(shrunk[row], low)
        update = B[slot, 0] @ low if slot >= 0 else torch.zeros(7)
        for found, start in ((out, 0), (sliced, 3)):
            before = expected[row].clone()
            before[start : start + 7] = update + (before[start : start + 7] if add else 0)
            torch.testing.assert_close(found[row], before)


def test_an_output_that_is_narrower_than_the_weights_takes_what_fits():
    x, B, out = torch.randn(2, 4), weights(1, 7, 4), torch.zeros(2, 5)
    cpu.bgmv_expand(x, B, out, torch.tensor([0, 0]))
    torch.testing.assert_close(out, x @ B[0, 0, :5].T)
