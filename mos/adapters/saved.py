"""Adapter files: the keys of an adapter's tensors, and what is checked before any is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from peft.tuners.tuners_utils import (
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from safetensors import safe_open
from torch import nn

from mos.adapters.weights import SharedTensors

PREFIX = "base_model.model."  # of the base model's modules in a file
Shapes = dict[str, tuple[int, int]]  # path of a linear layer -> (in_features, out_features)
# (pattern with one group, replacement) of the keys of former formats
Renamed = tuple[tuple[str, str], ...]


def rename(renamed: Renamed, key: str) -> str:
    """The key of a file of a former format in today's."""
    for pattern, replacement in renamed:
        key = re.sub(pattern, replacement, key)
    return key


def keys_of(file: safe_open | Mapping[str, torch.Tensor], renamed: Renamed) -> dict[str, str]:
    """Today's keys of a file's tensors, without the base model's prefix -> the keys in the file."""
    return {rename(renamed, key).removeprefix(PREFIX): key for key in file.keys()}  # noqa: SIM118


def paths_with(keys: Iterable[str], suffix: str) -> list[str]:
    """Modules with a tensor of this name, blocks in the order of their numbers."""
    paths = (key.removesuffix(suffix) for key in keys if key.endswith(suffix))
    return sorted(
        paths, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p)]
    )


def shared_prefixes(model: nn.Module) -> set[str]:
    """Paths of the modules that hold what layers share."""
    return {unwrapped(name) for name, m in model.named_modules() if isinstance(m, SharedTensors)}


def adapter_keys(model: nn.Module, adapter_name: str) -> list[str]:
    """Keys of an adapter's tensors in the state dict of the model, without `modules_to_save`."""
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name) | shared_prefixes(model)
    ends = (f".{adapter_name}", f".{adapter_name}.weight")
    in_model = _filter_state_dict_by_key_prefixes(model.state_dict(), prefixes)
    return [key for key in in_model if key.endswith(ends)]


def check(
    model: nn.Module, adapter_name: str, keys: Iterable[str], given: dict[str, torch.Tensor]
) -> None:
    """Check that an adapter file fits the model, before any of it is loaded.

    Args:
        keys: from `adapter_keys`.
        given: the file's tensors, keyed as in the model.

    Raises:
        ValueError: a tensor is missing, is not one of this adapter's, has another shape, or holds
            numbers that are not finite.
    """
    in_model = model.state_dict()
    bare = {key if key in in_model else key.removeprefix(PREFIX): t for key, t in given.items()}
    problems = [
        *(f"missing: {key}" for key in keys if key not in bare),
        *(f"not part of this adapter: {key}" for key in bare if key not in in_model),
        *(
            f"shape {tuple(t.shape)}, expected {tuple(in_model[key].shape)}: {key}"
            for key, t in bare.items()
            if key in in_model and t.shape != in_model[key].shape
        ),
        *(f"not finite: {key}" for key, t in bare.items() if not all_finite(t)),
    ]
    if problems:
        shown = "\n  ".join(problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"The adapter '{adapter_name}' does not fit this model and its config "
            f"({len(problems)} tensors); nothing was loaded:\n  {shown}{more}\n"
            "Load it onto the base model that it was trained on, with the config saved beside it."
        )


def all_finite(tensor: torch.Tensor) -> bool:
    """Whether no element is NaN or infinite."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.itemsize == 1:
        tensor = tensor.float()
    return bool(torch.stack(tensor.aminmax()).isfinite().all())  # of NaN, both are


def unwrapped(name: str) -> str:
    # FSDP wraps modules without showing it in the keys of a state dict.
    return name.replace("_fsdp_wrapped_module.", "")
