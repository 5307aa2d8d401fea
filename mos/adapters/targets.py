"""Which modules of a model an adapter is put on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

from peft import TaskType
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _ExcludedModule,
    _find_minimal_target_modules,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import (
    TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.constants import DUMMY_TARGET_MODULES, INCLUDE_LINEAR_LAYERS_SHORTHAND
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from mos.adapters.config import FactoredConfig
from mos.errors import did_you_mean

# Heads that PEFT trains in full, but names in `modules_to_save` only after layers were replaced.
HEADS = {TaskType.TOKEN_CLS: {"classifier", "score"}, TaskType.QUESTION_ANS: {"qa_outputs"}}


def default_targets(model_config: dict) -> str | set[str]:
    """The targets of a config that names none.

    Raises:
        ValueError: the model is not one of transformers.
    """
    kind = model_config.get("model_type")
    if kind is None or kind == "custom":
        raise ValueError("Please specify `target_modules` in `peft_config`")
    encodes = model_config.get("is_encoder_decoder") or kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if encodes and kind in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING:
        return set(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING[kind])
    return INCLUDE_LINEAR_LAYERS_SHORTHAND


def is_target(config: Any, path: str) -> Any:
    """PEFT's answer to whether a module is targeted, heads never being so."""
    if HEADS.get(config.task_type, set()) & set(path.split(".")):
        return _ExcludedModule()
    return check_target_module_exists(config, path)


def targeted_linears(
    model: nn.Module, config: FactoredConfig, named: Iterable[str] | None = None
) -> dict[str, nn.Module]:
    """Path -> base linear layer of each module that `config` targets, in the model's order.

    Args:
        config: with its default targets filled in; "all-linear" is resolved to names, so that the
            saved config fits, or is refused by, any number of blocks.
        named: paths of the targets, if these are known, whatever the config says.

    Raises:
        ValueError: a name in `target_modules` that no module has.
        TypeError: a target that is not a linear layer.
    """
    if config.target_modules == DUMMY_TARGET_MODULES:
        return {}
    _resolve_all_linear(model, config)
    inside_adapters = tuple(
        f"{path}." for path, m in model.named_modules() if isinstance(m, BaseTunerLayer)
    )
    modules = {
        path: m
        for path, m in model.named_modules()
        if path and not path.startswith(inside_adapters)
    }
    if named is None:
        _check_names(config, modules)
        named = {path for path in modules if is_target(config, path)}
    _warn_of_fused_experts(model)
    return {path: _base_linear(model, path, m) for path, m in modules.items() if path in named}


def _resolve_all_linear(model: nn.Module, config: FactoredConfig) -> None:
    if not isinstance(config.target_modules, str):
        return
    _maybe_include_all_linear_layers(config, model)
    if not isinstance(config.target_modules, set):
        return
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)
    if isinstance(model, PreTrainedModel) and base is not None:
        # What lies outside of the base model is its head.
        prefix = f"{model.base_model_prefix}."
        config.target_modules = {p for p in config.target_modules if p.startswith(prefix)}
    config.target_modules = {p for p in config.target_modules if not _excluded(config, p)}
    others = {path for path, _ in model.named_modules()} - config.target_modules
    others = {path for path in others if not _excluded(config, path)}
    config.target_modules = _find_minimal_target_modules(config.target_modules, others)


def _excluded(config: FactoredConfig, path: str) -> bool:
    return isinstance(is_target(config, path), _ExcludedModule)


def _check_names(config: FactoredConfig, modules: dict[str, nn.Module]) -> None:
    if isinstance(config.target_modules, str):
        return
    present = {path.rpartition(".")[2] for path in modules}
    for name in sorted(config.target_modules or ()):
        if not any(path == name or path.endswith(f".{name}") for path in modules):
            raise ValueError(
                f"Target modules {{'{name}'}} not found in the base model: no module has this "
                f"name.{did_you_mean(name, present)}"
            )


def _base_linear(model: nn.Module, path: str, module: nn.Module) -> nn.Module:
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    if isinstance(base, nn.Linear | Conv1D):
        return base
    backend = resolve_quantization_backend(base, **get_quantization_kwargs(model))
    if backend is not None and backend.layer_type == "linear":
        return base
    raise TypeError(
        f"Target module {path} is a {type(base).__name__}, which is not supported. Only linear "
        "layers (torch.nn.Linear, quantised ones, transformers' Conv1D) can be adapted."
    )


def _warn_of_fused_experts(model: nn.Module) -> None:
    """Experts that are stacked in one parameter (experts, out, in) are no linear layers."""
    fused = sorted(
        {
            f"{path.rpartition('.')[2]}.{name}"
            for path, module in model.named_modules()
            if not type(module).__module__.startswith("torch.")
            for name, parameter in module.named_parameters(recurse=False)
            if parameter.dim() == 3 and "expert" in path
        }
    )
    if fused:
        warnings.warn(
            f"{', '.join(fused)}: the experts of this model are fused into single parameters, "
            "which are no linear layers and are not adapted.",
            stacklevel=2,
        )
