"""Adapters in folders, which may come from anywhere: one message for whatever is wrong, and shapes
compared before memory is taken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from torch import nn

from mos.adapters import WEIGHTS, check_adapter_folder, saved
from mos.adapters.config import FactoredConfig
from mos.adapters.targets import check_patterns
from mos.adapters.tuner import FactoredTuner
from mos.errors import UserError


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


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"unknown method or key {error}"
    if isinstance(error, SafetensorError):
        return f"{WEIGHTS} is damaged ({error})"
    return str(error) or type(error).__name__
