"""Adapter files: the keys of an adapter's tensors, and what is checked before any is loaded.

Adapter folders may come from anywhere: whatever is wrong is one message, and shapes are compared
before memory is taken. Without a base model, shapes are a MoS adapter's own; for other methods that
takes the `config.json` of the base model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import (
    _filter_state_dict_by_key_prefixes,
    _get_tuner_state_dict_key_prefixes,
)
from peft.utils import PeftType
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mos.adapters import WEIGHTS, check_adapter_folder
from mos.adapters.config import FactoredConfig
from mos.adapters.shared import SharedTensors
from mos.errors import UserError

PREFIX = "base_model.model."  # of the base model's modules in a file
Shapes = dict[str, tuple[int, int]]  # path of a linear layer -> (in_features, out_features)


def keys_of(file: safe_open | Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Keys of a file's tensors, without the base model's prefix -> the keys in the file."""
    return {key.removeprefix(PREFIX): key for key in file.keys()}  # noqa: SIM118


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


def adapter_config(adapter_dir: Path) -> PeftConfig:
    """The config of an adapter folder.

    Raises:
        MissingFileError: it is not an adapter folder.
        UserError: the config cannot be used.
    """
    check_adapter_folder(adapter_dir)
    try:
        config = PeftConfig.from_pretrained(str(adapter_dir))
        if isinstance(config, FactoredConfig):  # PEFT makes it without its `from_pretrained`
            config.check_folder(adapter_dir)
        return config
    except Exception as error:  # PEFT passes on whatever a value causes
        raise UserError(
            f"{adapter_dir}/adapter_config.json cannot be used: {_reason(error)}"
        ) from error


def load(base: nn.Module, adapter_dir: Path, config: PeftConfig) -> PeftModel:
    """The base model with the adapter of a folder on it, for inference.

    Args:
        config: from `adapter_config`.

    Raises:
        UserError: the adapter does not fit the base model, or is damaged.
    """
    try:
        config.inference_mode = True
        # without memory first: its size is what the config says, not what the file holds
        model = PeftModel(base, config, low_cpu_mem_usage=True)
        _check_tensors(model, adapter_dir)
        model.load_adapter(str(adapter_dir), "default", torch_device="cpu", low_cpu_mem_usage=True)
    except Exception as error:  # PEFT and safetensors pass on whatever a file causes
        raise UserError(
            f"the adapter in {adapter_dir} does not fit the base model, or is damaged: "
            f"{_reason(error)}"
        ) from error
    return model.eval()


def _check_tensors(model: Any, adapter_dir: Path) -> None:
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(adapter_dir / WEIGHTS, framework="pt") as file:
        keys = set(file.keys())
        for key, tensor in expected.items():
            if key not in keys:
                raise UserError(f"missing: {key}")
            shape = tuple(file.get_slice(key).get_shape())
            if shape != tuple(tensor.shape):
                raise UserError(f"shape {shape}, expected {tuple(tensor.shape)}: {key}")
        in_base = model.state_dict()  # PEFT stores embeddings with some adapters
        for key in sorted(keys - expected.keys()):
            shape = tuple(file.get_slice(key).get_shape())
            if key not in in_base or shape != tuple(in_base[key].shape):
                raise UserError(f"not part of this adapter, or resized: {key} {shape}")
        for key in keys:
            if not all_finite(file.get_tensor(key)):
                raise UserError(f"not finite: {key}")


def skeleton(adapter_dir: Path, config: PeftConfig) -> nn.Module:
    """A stand-in for the base model: its layers, or those that an adapter is for, without weights.

    Raises:
        UserError: the file does not tell the shapes, and there is no `config.json` of the base
            model at the path in its config.
    """
    tuner_cls: Any = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]  # type: ignore[index]
    if not hasattr(tuner_cls, "saved_shapes"):
        return _from_base_config(config)
    try:
        with safe_open(adapter_dir / WEIGHTS, framework="pt") as file:
            shapes: Shapes = tuner_cls.saved_shapes(file)
    except SafetensorError as error:
        raise UserError(f"{adapter_dir}: the tensors are damaged ({error})") from error
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


def _from_base_config(config: PeftConfig) -> nn.Module:
    base = config.base_model_name_or_path
    if not base or not (Path(base) / "config.json").is_file():
        raise UserError(
            f"The shapes of a {PeftType(config.peft_type).value} adapter need its base model's "
            f"config.json, which is not at base_model_name_or_path={base!r}. Export from the "
            "loaded model, or mend the path in adapter_config.json."
        )
    try:
        base_config = AutoConfig.from_pretrained(base, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(base_config, trust_remote_code=False)
    except (ValueError, OSError) as error:  # a damaged config, or one that names code to run
        raise UserError(f"{base}/config.json cannot be used: {error}") from error
    return _without_memory(model)


def _without_memory(model: nn.Module) -> nn.Module:
    # On the CPU, so that adapters are put there; every element is the same zero.
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            zeros = torch.zeros(()).expand(parameter.shape)
            setattr(module, name, nn.Parameter(zeros, requires_grad=False))
    return model


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"unknown method or key {error}"
    if isinstance(error, SafetensorError):
        return f"{WEIGHTS} is damaged ({error})"
    return str(error) or type(error).__name__
