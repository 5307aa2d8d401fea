"""What the configs of all linear methods have in common, and which layers of a model they mean."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from peft import PeftConfig, TaskType
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
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from mos.adapters import WEIGHTS
from mos.errors import did_you_mean

FORMAT_VERSION = 2
# Heads that PEFT trains in full, but names in `modules_to_save` only after layers were replaced.
HEADS = {TaskType.TOKEN_CLS: {"classifier", "score"}, TaskType.QUESTION_ANS: {"qa_outputs"}}


@dataclass
class FactoredConfig(PeftConfig):
    """What every linear method is told: which layers, which of them, what else to train.

    Args:
        target_modules: names or regex of the linear layers. Default: all of a decoder's but its
            head, those that PEFT takes for an encoder or encoder-decoder.
        exclude_modules: names or regex of layers to leave alone.
        layers_to_transform: indices of the blocks to adapt. Default: all.
        layers_pattern: name of the module list that `layers_to_transform` counts in.
        modules_to_save: further modules that are trained and saved in full.
        trainable_token_indices: rows of embeddings that are trained and saved, by layer name.
        init_weights: start from a zero update. False starts from a random one, for tests.
        format_version: version of the adapter file's layout.

    Raises:
        ValueError: values that do not go together, or a file of a newer version.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    trainable_token_indices: dict[str, list[int]] | None = field(default=None)
    init_weights: bool = field(default=True)
    format_version: int = field(default=FORMAT_VERSION)

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        own = [field.name for field in fields(cls)]
        for name in sorted(kwargs.keys() - set(own)):
            kind = name.removeprefix("lora")
            close = [n for n in own if kind != name and n.endswith(kind)]
            hint = f" Here it is {close[0]}." if close else did_you_mean(name, own)
            if name == "bias":
                hint = " Biases of the base model are not trained."
            raise TypeError(f"{cls.__name__}() got an unexpected keyword argument '{name}'.{hint}")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format_version != FORMAT_VERSION:
            raise ValueError(
                f"The adapter has format_version={self.format_version!r}, but this version of mos "
                f"reads version {FORMAT_VERSION}. Upgrade mos, or save the adapter with this one."
            )
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` needs `target_modules` to be a list of names.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`.")
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))

    def check_whole(self, name: str, least: int, most: int | None = None) -> None:
        """Refuse a value that is not a whole number between `least` and `most`.

        Raises:
            ValueError: naming it.
        """
        value = getattr(self, name)
        whole = isinstance(value, int) and not isinstance(value, bool)
        if not whole or value < least or (most is not None and value > most):
            upper = "" if most is None else f" and at most {most}"
            raise ValueError(f"{name}={value!r} must be an integer of at least {least}{upper}.")

    def check_dropout(self, name: str) -> None:
        """Refuse a probability of dropout outside of [0, 1).

        Raises:
            ValueError: naming it.
        """
        if not 0 <= getattr(self, name) < 1:
            raise ValueError(f"{name}={getattr(self, name)} must be in [0, 1).")

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str, subfolder: str | None = None, **kwargs: Any
    ) -> Any:
        """As PEFT's. The tensors beside the config must be of the sizes that it says, so that a
        config that was edited is refused before memory is taken for it.

        Raises:
            ValueError: they are not.
        """
        config = super().from_pretrained(pretrained_model_name_or_path, subfolder, **kwargs)
        if isinstance(config, FactoredConfig):
            config.check_folder(Path(pretrained_model_name_or_path, subfolder or ""))
        return config

    def check_folder(self, folder: Path) -> None:
        """`check_file` with the adapter's file in a folder, if it is there.

        Raises:
            ValueError: naming the tensor.
        """
        if (file := folder / WEIGHTS).is_file():
            with safe_open(file, framework="pt") as tensors:
                keys = list(tensors.keys())
                self.check_file({k: tuple(tensors.get_slice(k).get_shape()) for k in keys})

    def check_file(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        """Check the shapes of a file's tensors against this config, as far as it tells them.

        Raises:
            ValueError: naming the tensor.
        """


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
