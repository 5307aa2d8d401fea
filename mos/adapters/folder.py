"""Adapters in folders, which may come from anywhere: one message for whatever is wrong, and shapes
compared before memory is taken.

Adapters of our methods say in their own file which layers they are for, and how wide these are; for
PEFT's methods that takes the `config.json` of the base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mos.adapters import saved
from mos.adapters.config import FactoredConfig
from mos.adapters.targets import check_patterns
from mos.adapters.tuner import FactoredTuner
from mos.errors import UserError
from mos.methods import WEIGHTS, check_adapter_folder


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
        check_patterns(config, [path for path, _ in base.named_modules() if path])
        config.inference_mode = True
        # without memory first: its size is what the config says, not what the file holds
        model = PeftModel(base, config, low_cpu_mem_usage=True)
        _check_tensors(model, adapter_dir, config)
        model.load_adapter(str(adapter_dir), "default", torch_device="cpu", low_cpu_mem_usage=True)
    except Exception as error:  # PEFT and safetensors pass on whatever a file causes
        raise UserError(
            f"the adapter in {adapter_dir} does not fit the base model, or is damaged: "
            f"{_reason(error)}"
        ) from error
    return model.eval()


def _check_tensors(model: Any, adapter_dir: Path, config: Any) -> None:
    tuner_cls = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    renamed = tuner_cls.renamed if issubclass(tuner_cls, FactoredTuner) else ()
    expected = get_peft_model_state_dict(model, save_embedding_layers=False)
    with safe_open(adapter_dir / WEIGHTS, framework="pt") as file:
        keys = {saved.rename(renamed, key): key for key in file.keys()}  # noqa: SIM118
        for key, tensor in expected.items():
            if key not in keys:
                raise UserError(f"missing: {key}")
            shape = tuple(file.get_slice(keys[key]).get_shape())
            if shape != tuple(tensor.shape):
                raise UserError(f"shape {shape}, expected {tuple(tensor.shape)}: {key}")
        in_base = model.state_dict()  # PEFT stores embeddings with some adapters
        for key in sorted(keys.keys() - expected.keys()):
            shape = tuple(file.get_slice(keys[key]).get_shape())
            if key not in in_base or shape != tuple(in_base[key].shape):
                raise UserError(f"not part of this adapter, or resized: {key} {shape}")
        for key in keys.values():
            if not saved.all_finite(file.get_tensor(key)):
                raise UserError(f"not finite: {key}")


def skeleton(adapter_dir: Path, config: Any) -> nn.Module:
    """A stand-in for the base model: the linear layers that an adapter is for, without weights.

    Raises:
        UserError: the file does not tell the shapes, and there is no `config.json` of the base
            model at the path in its config.
    """
    shapes = None
    tuner_cls = PEFT_TYPE_TO_TUNER_MAPPING[config.peft_type]
    if issubclass(tuner_cls, FactoredTuner):
        try:
            with safe_open(adapter_dir / WEIGHTS, framework="pt") as file:
                shapes = tuner_cls.saved_shapes(file)
        except SafetensorError as error:
            raise UserError(f"{adapter_dir}: the tensors are damaged ({error})") from error
    if shapes is None:
        return _from_base_config(config)
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
