"""Adapters in the slots of vLLM's layers, with stand-ins for the classes that are extended."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from mos.errors import UserError
from tests.adapters.tiny import CASES, HIDDEN, INTERMEDIATE, KV, adapted, tiny_llama

WIDTHS = {
    "self_attn.qkv_proj": (HIDDEN, {"q_proj": HIDDEN, "k_proj": KV, "v_proj": KV}),
    "self_attn.o_proj": (HIDDEN, {"o_proj": HIDDEN}),
    "mlp.gate_up_proj": (HIDDEN, {"gate_proj": INTERMEDIATE, "up_proj": INTERMEDIATE}),
    "mlp.down_proj": (INTERMEDIATE, {"down_proj": HIDDEN}),
}


class Model:
    def __init__(self, number, rank, loras):
        self.id, self.rank, self.loras = number, rank, loras


class Layer:
    def __init__(self, width, parts, dtype, rank, slots=2):
        self.tp_size = 1
        self.lora_a_stacked = tuple(
            torch.full((slots, 1, rank, width), 9.0, dtype=dtype) for _ in parts
        )
        self.lora_b_stacked = tuple(
            torch.full((slots, 1, out, rank), 9.0, dtype=dtype) for out in parts.values()
        )


@pytest.fixture
def native(monkeypatch):
    contents = {
        "vllm.lora.lora_model": {"LoRAModel": Model},
        "vllm.lora.lora_weights": {
            "LoRALayerWeights": lambda *a, **k: a,
            "PackedLoRALayerWeights": lambda *a, **k: a,
        },
        "vllm.lora.utils": {
            "parse_fine_tuned_lora_name": lambda name, _: (
                name.removeprefix("base_model.model.").removesuffix(".lora_A.weight"),
            )
        },
    }
    for name, content in contents.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    for name in ("vllm", "vllm.lora"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules.pop("mos.serving.native", None)
    yield importlib.import_module("mos.serving.native")
    del sys.modules["mos.serving.native"]


def served(dtype=torch.float32, rank=8, blocks=2):
    """What the loader looks at of vLLM's worker, for the tiny model."""
    modules, packed = {}, {}
    for block in range(blocks):
        for name, (width, parts) in WIDTHS.items():
            path = f"model.layers.{block}.{name}"
            modules[path] = Layer(width, parts, dtype, rank)
            if len(parts) > 1:
                packed[path] = [f"{path.rpartition('.')[0]}.{part}" for part in parts]
    manager = SimpleNamespace(
        modules=modules, packed_modules=packed, model=object(), lora_index_to_id=[None, 5]
    )
    config = SimpleNamespace(lora_dtype=dtype, max_lora_rank=rank)
    return SimpleNamespace(_adapter_manager=manager, lora_config=config)


@pytest.mark.parametrize("targets", ["all-linear", ["k_proj", "down_proj"]])
def test_vllm_gets_the_factors_of_each_part(native, targets, tmp_path):
    adapted(CASES["mos"](target_modules=targets)).save_pretrained(tmp_path)
    worker = served()
    adapter = native.load(worker, tmp_path, "MOS", 5)
    for name in worker._adapter_manager.modules:
        found = adapter.get_lora(name)
        if name not in adapter.layers:
            assert found is None
            continue
        _, rank, _, As, Bs = found
        parts = adapter.layers[name]
        if len(parts) == 1:
            As, Bs = [As], [Bs]
        for path, A, B in zip(parts, As, Bs, strict=True):
            if path is None:
                assert A is None
                assert B is None
            else:
                expected = adapter.adapter.factors(path)
                assert torch.equal(A, expected[0])
                assert torch.equal(B, expected[1])
                assert A.shape[0] == rank


@pytest.mark.parametrize(
    ("blocks", "options", "reason"),
    [
        (1, {}, "takes an adapter .* another base model"),
        (3, {}, r"layers\.2\.self_attn\.q_proj.* of fewer blocks"),
        (3, {"layers_to_transform": [0, 1]}, None),
        (3, {"exclude_modules": r".*layers\.2\..*"}, None),
    ],
)
def test_a_base_of_other_blocks_is_refused(native, blocks, options, reason, tmp_path):
    adapted(CASES["mos"](**options), tiny_llama()).save_pretrained(tmp_path)
    worker = served(blocks=blocks)
    if reason is None:
        assert len(native.load(worker, tmp_path, "MOS", 5).layers) == 8
        return
    with pytest.raises(UserError, match=reason):
        native.load(worker, tmp_path, "MOS", 5)
