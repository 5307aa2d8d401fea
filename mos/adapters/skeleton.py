"""A stand-in for the base model of an adapter directory: the adapted layers' shapes, no weights.

Adapters of our methods say in their own file which layers they are for, and how wide these are; for
PEFT's methods that takes the `config.json` of the base model.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mos.errors import UserError

PREFIX = "base_model.model."
Shapes = dict[str, tuple[int, int]]  # path of a linear layer -> (in_features, out_features)


def skeleton(adapter_dir: Path, config: Any) -> nn.Module:
    """A module with the linear layers that the adapter in `adapter_dir` is for.

    Raises:
        UserError: PEFT's method, and no `config.json` of the base model at the path in its config.
    """
    read = {"MOS": _mos_shapes, "PROLORA": _prolora_shapes, "TIED_LORA": _tied_lora_shapes}
    if config.peft_type not in read:
        return _from_base_config(config)
    with safe_open(adapter_dir / "adapter_model.safetensors", framework="pt") as file:
        shapes = read[config.peft_type](file, list(file.keys()))
    root = nn.Module()
    for path, (in_features, out_features) in shapes.items():
        parent: nn.Module = root
        *parents, name = path.split(".")
        for part in parents:
            if part not in parent._modules:
                parent.add_module(part, nn.Module())
            parent = parent.get_submodule(part)
        parent.add_module(name, nn.Linear(in_features, out_features, bias=False, device="meta"))
    return _without_memory(root)


def _from_base_config(config: Any) -> nn.Module:
    base = config.base_model_name_or_path
    if not base or not (Path(base) / "config.json").is_file():
        raise UserError(
            f"The shapes of a {config.peft_type.value} adapter need its base model's config.json, "
            f"which is not at base_model_name_or_path={base!r}. Export from the loaded model, or "
            "mend the path in adapter_config.json."
        )
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))
    return _without_memory(model)


def _without_memory(model: nn.Module) -> nn.Module:
    # On the CPU, so that adapters are put there; every element is the same zero.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros(()).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
    return model


def _paths(keys: list[str], suffix: str) -> list[str]:
    """Modules that have a tensor of this name, blocks in the order of their numbers."""
    found = (key.removeprefix(PREFIX).removesuffix(suffix) for key in keys if key.endswith(suffix))
    return sorted(
        found, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p)]
    )


def _prolora_shapes(file: safe_open, keys: list[str]) -> Shapes:
    suffix = ".prolora_features"
    return {p: tuple(file.get_tensor(PREFIX + p + suffix).tolist()) for p in _paths(keys, suffix)}


def _mos_shapes(file: safe_open, keys: list[str]) -> Shapes:
    groups: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for key in keys:
        if match := re.fullmatch(r"base_model\.mos_groups\.(.+)_(\d+)x(\d+)\.pool_A", key):
            groups[match[1]].append((int(match[2]), int(match[3])))
    shapes = {}
    for path in _paths(keys, ".mos_index_A"):
        kind = path.rpartition(".")[2]
        if len(groups[kind]) != 1:
            raise UserError(
                f"{path}: layers named '{kind}' differ in shape ({groups[kind]}), and the file "
                "does not say which this is. Export from the loaded model."
            )
        shapes[path] = groups[kind][0]
    return shapes


def _tied_lora_shapes(file: safe_open, keys: list[str]) -> Shapes:
    blocks: dict[str, list[str]] = defaultdict(list)  # path of a block -> paths of its targets
    for path in _paths(keys, ".tied_lora_u"):
        blocks[path.rpartition(".")[0]].append(path)
    groups = [
        key.removeprefix("base_model.tied_lora_A.")
        for key in keys
        if key.startswith("base_model.tied_lora_A.")
    ]
    shapes: Shapes = {}
    for block, paths in blocks.items():
        for group in groups:
            # named by TiedLoraModel: q_proj+k_proj+v_proj:64+32+32x64
            names, _, sizes = group.rpartition(":")
            outs, _, in_features = sizes.rpartition("x")
            for name, out_features in zip(names.split("+"), outs.split("+"), strict=True):
                path = f"{block}.{name}" if block else name
                u = f"{PREFIX}{path}.tied_lora_u"
                if path in paths and file.get_slice(u).get_shape() == [int(out_features)]:
                    shapes.setdefault(path, (int(in_features), int(out_features)))
    return shapes
