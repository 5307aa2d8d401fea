"""A stand-in for the base model of an adapter directory: the adapted layers' shapes, no weights.

Adapters of our methods say in their own file which layers they are for, and how wide these are; for
PEFT's methods that takes the `config.json` of the base model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from mos.adapters import WEIGHTS
from mos.adapters.tuner import FactoredTuner
from mos.errors import UserError


def skeleton(adapter_dir: Path, config: Any) -> nn.Module:
    """A module with the linear layers that the adapter in `adapter_dir` is for.

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
