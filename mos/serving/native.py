"""A MoS adapter as vLLM's adapter manager wants it; imported in vLLM's processes only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import check_target_module_exists
from vllm.lora.lora_model import LoRAModel
from vllm.lora.lora_weights import LoRALayerWeights, PackedLoRALayerWeights
from vllm.lora.utils import parse_fine_tuned_lora_name

from mos.adapters.saved import PREFIX
from mos.errors import UserError
from mos.serving.adapter import Adapter, read_adapter


class NativeAdapter(LoRAModel):
    """Kept by the manager like a LoRA adapter, but A and B live only while they are activated."""

    def __init__(self, lora_model_id: int, adapter: Adapter, layers: dict[str, list[str | None]]):
        # The manager looks at the first entry's device; no layer has this name.
        nothing = torch.empty(0)
        placeholder = LoRALayerWeights("", 1, 1, nothing, nothing, scaling=1.0)
        super().__init__(lora_model_id, adapter.plan.rank, {"": placeholder})
        self.adapter = adapter
        self.layers = layers
        """A layer of vLLM's -> the paths of those in the file that it is packed of."""

    def check_lora_name(self, lora_name: str) -> bool:
        return lora_name in self.layers

    def get_lora(self, module_name: str) -> LoRALayerWeights | None:
        paths = self.layers.get(module_name)
        if paths is None:
            return None
        factors: list[Any] = [(None, None) if p is None else self.adapter.factors(p) for p in paths]
        As, Bs = [A for A, _ in factors], [B for _, B in factors]
        if len(paths) == 1:
            return LoRALayerWeights(module_name, self.rank, self.rank, As[0], Bs[0], scaling=1.0)
        ones: Any = [1] * len(paths)
        return PackedLoRALayerWeights(module_name, self.rank, ones, As, Bs, scaling=ones)


def load(worker: Any, folder: Path, method: str, lora_model_id: int) -> NativeAdapter:
    """Read the adapter in `folder` for the model of a `WorkerLoRAManager`.

    Raises:
        UserError: of another method, damaged, or for another base model.
    """
    if method != "MOS":
        raise UserError(
            f"vLLM serves LoRA and MoS adapters, this one is {method}: write it as LoRA with"
            f" python -m mos.export adapter={folder} out=..."
        )
    manager, config = worker._adapter_manager, worker.lora_config
    adapter = read_adapter(folder, config.lora_dtype)
    if adapter.plan.rank > config.max_lora_rank:
        raise UserError(
            f"its rank is {adapter.plan.rank}: start vLLM with --max-lora-rank of at least that,"
            f" not {config.max_lora_rank}"
        )
    return NativeAdapter(lora_model_id, adapter, _layers(manager, adapter))


def _layers(manager: Any, adapter: Adapter) -> dict[str, list[str | None]]:
    """Where each layer of the file is in the served model, whose names and shapes it must fit."""
    mapper = getattr(manager.model, "hf_to_vllm_mapper", None)
    if mapper is not None:
        mapper = mapper.get_rename_mapper()
    remaining = {
        parse_fine_tuned_lora_name(f"{PREFIX}{path}.lora_A.weight", mapper)[0]: path
        for path in adapter.plan.shapes
    }
    places = {_in_any_block(name) for name in remaining}
    layers = {}
    for name, module in manager.modules.items():
        packed = manager.packed_modules.get(name, [name])
        for part in packed:
            known = part in remaining or _in_any_block(part) not in places
            if not known and check_target_module_exists(adapter.plan.config, part):
                raise UserError(
                    f"the served model has a layer {part}, which the adapter's config targets and"
                    " its file does not hold: it was trained on another base model, of fewer blocks"
                )
        paths = [remaining.pop(part, None) for part in packed]
        if any(paths):
            _check_shapes(adapter, paths, module)
            layers[name] = paths
    if remaining:
        raise UserError(
            f"the served model has no layer {min(remaining.values())} that takes an adapter"
            f" ({len(remaining)} are missing): it was trained on another base model"
        )
    return layers


def _in_any_block(name: str) -> str:
    return re.sub(r"\.\d+\.", ".*.", name)


def _check_shapes(adapter: Adapter, paths: list[str | None], module: Any) -> None:
    for path, A, B in zip(paths, module.lora_a_stacked, module.lora_b_stacked, strict=True):
        if path is None:
            continue
        expected = adapter.plan.shapes[path]
        # A (slots, 1, r, in_features), B (slots, 1, out_features, r); of this rank's part alone
        served = A.shape[-1], B.shape[-2]
        if module.tp_size == 1 and served != expected:
            raise UserError(
                f"{path} is {expected[0]} x {expected[1]} in the adapter and {served[0]} x"
                f" {served[1]} in the served model: it was trained on another base model"
            )
