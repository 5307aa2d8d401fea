"""What the tuners of linear methods have in common: layers replaced, files checked, batches mixed.

A method with tensors that many layers read has its tuner keep them in `shared.SharedParameters`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _filter_state_dict_by_key_prefixes,
    _find_minimal_target_modules,
    _get_tuner_state_dict_key_prefixes,
    _maybe_include_all_linear_layers,
)
from peft.utils import (
    AuxiliaryTrainingWrapper,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from peft.utils.constants import DUMMY_TARGET_MODULES
from safetensors import safe_open
from torch import nn
from transformers.pytorch_utils import Conv1D

from mos.adapters.linear import BASE_ROWS, FactoredLinear
from mos.adapters.quantized import keep_4bit_weights_unpacked
from mos.errors import UserError, did_you_mean

SAVED_PREFIX = "base_model.model."  # of the base model's modules in an adapter file
Shapes = dict[str, tuple[int, int]]  # path of a linear layer -> (in_features, out_features)


@dataclass
class FactoredConfig(PeftConfig):
    """What every linear method is told: which layers, which of them, what else to train.

    Args:
        target_modules: names or regex of the linear layers. Default: "all-linear", every linear
            layer but the output head.
        exclude_modules: names or regex of layers to leave alone.
        layers_to_transform: indices of the blocks to adapt. Default: all.
        layers_pattern: name of the module list that `layers_to_transform` counts in.
        modules_to_save: further modules that are trained and saved in full.
        trainable_token_indices: rows of embeddings that are trained and saved, by layer name.
        init_weights: start from a zero update. False starts from a random one, for tests.
    """

    target_modules: list[str] | str | None = field(default=None)
    exclude_modules: list[str] | str | None = field(default=None)
    layers_to_transform: list[int] | int | None = field(default=None)
    layers_pattern: list[str] | str | None = field(default=None)
    modules_to_save: list[str] | None = field(default=None)
    trainable_token_indices: dict[str, list[int]] | None = field(default=None)
    init_weights: bool = field(default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("target_modules", "exclude_modules"):
            if isinstance(getattr(self, name), list):
                setattr(self, name, set(getattr(self, name)))
        if isinstance(self.target_modules, str) and self.layers_to_transform is not None:
            raise ValueError("`layers_to_transform` needs `target_modules` to be a list of names.")
        if self.layers_pattern and self.layers_to_transform is None:
            raise ValueError("`layers_pattern` needs `layers_to_transform`.")

    @classmethod
    def check_kwargs(cls, **kwargs: Any) -> dict[str, Any]:
        # PEFT drops keys that it does not know, with a warning.
        if newer := sorted(set(kwargs) - {field.name for field in fields(cls)}):
            raise UserError(
                f"The adapter's config has keys that this version of {cls.__name__} does not know:"
                f" {', '.join(newer)}. They may change what the adapter computes. It was saved by a"
                " newer version of mos or PEFT, or edited: upgrade, or remove the keys."
            )
        return super().check_kwargs(**kwargs)


class FactoredTuner(BaseTuner):
    """Replaces linear layers by a `FactoredLinear` subclass and loads adapters strictly.

    Subclasses set `prefix` and `tuner_layer_cls`, whose constructor takes the base layer and the
    quantisation arguments, and whose `update_layer(adapter_name, config)` adds an adapter.
    """

    tuner_layer_cls: type[FactoredLinear]
    default_targets: ClassVar[str | tuple[str, ...]] = "all-linear"

    @classmethod
    def saved_shapes(cls, file: safe_open) -> Shapes | None:
        """Path -> (in_features, out_features) of each layer that an adapter file is for, so that it
        can be exported without its base model; None where the file does not tell.

        Args:
            file: an open `adapter_model.safetensors`.
        """
        return None

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> PeftConfig:
        if peft_config.target_modules is None:
            targets = self.default_targets
            peft_config.target_modules = targets if isinstance(targets, str) else set(targets)
        return peft_config

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        self.targeted_linears(self.peft_config[adapter_name])  # raises before a layer is replaced
        keep_4bit_weights_unpacked(model)
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def targeted_linears(self, config: Any) -> dict[str, nn.Module]:
        """Path -> base linear layer of each module that `config` targets, in the model's order.

        Raises:
            ValueError: a name in `target_modules` that no module has.
            TypeError: a target that is not a linear layer.
        """
        self._prepare_adapter_config(config, self.get_model_config(self.model))
        if config.target_modules == DUMMY_TARGET_MODULES:
            return {}
        if isinstance(config.target_modules, str):
            _maybe_include_all_linear_layers(config, self.model)
            if isinstance(config.target_modules, set):
                # suffixes, so that the saved config fits, or is refused by, any number of blocks
                others = {p for p, _ in self.model.named_modules()} - config.target_modules
                config.target_modules = _find_minimal_target_modules(config.target_modules, others)
        inside_adapters = tuple(
            f"{path}." for path, m in self.model.named_modules() if isinstance(m, BaseTunerLayer)
        )
        modules = {
            path: m
            for path, m in self.model.named_modules()
            if path and not path.startswith(inside_adapters)
        }
        self._check_target_names(config, modules)
        return {
            path: self._base_linear(path, m)
            for path, m in modules.items()
            if self._check_target_module_exists(config, path)
        }

    @staticmethod
    def _check_target_names(config: FactoredConfig, modules: dict[str, nn.Module]) -> None:
        if isinstance(config.target_modules, str):
            return
        present = {path.rpartition(".")[2] for path in modules}
        for name in sorted(config.target_modules or ()):
            if not any(path == name or path.endswith(f".{name}") for path in modules):
                raise ValueError(
                    f"Target modules {{'{name}'}} not found in the base model: no module has this "
                    f"name.{did_you_mean(name, present)}"
                )

    def _base_linear(self, path: str, module: nn.Module) -> nn.Module:
        base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
        if isinstance(base, nn.Linear | Conv1D):
            return base
        backend = resolve_quantization_backend(base, **get_quantization_kwargs(self))
        if backend is not None and backend.layer_type == "linear":
            return base
        raise TypeError(
            f"Target module {path} is a {type(base).__name__}, which is not supported. Only linear "
            "layers (torch.nn.Linear, quantised ones, transformers' Conv1D) can be adapted."
        )

    def _create_and_replace(
        self,
        peft_config: Any,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, self.tuner_layer_cls):
            self._update_layer(target, adapter_name, peft_config, current_key)
            return
        layer = self.tuner_layer_cls(target, **get_quantization_kwargs(self))
        layer._active_adapter = adapter_name
        self._update_layer(layer, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)  # a further adapter does not train by itself
        self._replace_module(parent, target_name, layer, target)

    def _update_layer(self, layer: Any, adapter_name: str, config: Any, path: str) -> None:
        layer.update_layer(adapter_name, config)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(child, AuxiliaryTrainingWrapper):
            # Unloaded already; PEFT's own would assign its merged rows, a tensor, as a parameter.
            setattr(parent, child_name, new_module)
            return
        super()._replace_module(parent, child_name, new_module, child)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        remapped = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        check_adapter_state(model, adapter_name, remapped)
        return remapped

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT's way to pass `adapter_names` (one adapter a row) by all modules between
        names = kwargs.pop("adapter_names", None)
        if names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted(set(names) - {BASE_ROWS} - set(self.peft_config))
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        # generate repeats each row once a beam
        names = [name for name in names for _ in range(kwargs.get("num_beams") or 1)]
        hook = partial(_insert_adapter_names, adapter_names=names)
        handles = [
            module.register_forward_pre_hook(hook, with_kwargs=True)
            for module in self.modules()
            if isinstance(module, FactoredLinear | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def saved_paths(file: safe_open, suffix: str) -> list[str]:
    """Modules with a tensor of this name in an adapter file, blocks in the order of their
    numbers."""
    keys = (key.removeprefix(SAVED_PREFIX) for key in file.keys())  # noqa: SIM118
    paths = (key.removesuffix(suffix) for key in keys if key.endswith(suffix))
    return sorted(
        paths, key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p)]
    )


def _insert_adapter_names(module, args, kwargs, adapter_names):
    return args, {**kwargs, "adapter_names": adapter_names}


def check_adapter_state(
    model: nn.Module, adapter_name: str, state_dict: dict[str, torch.Tensor]
) -> None:
    """Check that an adapter file fits the model, before any of it is loaded.

    Args:
        state_dict: keyed as in the model, with the adapter's name.

    Raises:
        ValueError: a tensor is missing, is not one of this adapter's, or has another shape.
    """
    in_model = model.state_dict()
    prefixes = _get_tuner_state_dict_key_prefixes(model, adapter_name=adapter_name)
    expected = {
        key
        for key in _filter_state_dict_by_key_prefixes(in_model, prefixes)
        if key.endswith(f".{adapter_name}")
    }
    # an adapter injected without PeftModel has no such prefix
    given = {
        key if key in in_model else key.removeprefix("base_model.model."): tensor
        for key, tensor in state_dict.items()
    }
    problems = [
        *(f"missing: {key}" for key in sorted(expected - set(given))),
        *(f"not part of this adapter: {key}" for key in sorted(set(given) - set(in_model))),
        *(
            f"shape {tuple(given[key].shape)}, expected {tuple(in_model[key].shape)}: {key}"
            for key in sorted(expected & set(given))
            if given[key].shape != in_model[key].shape
        ),
    ]
    if problems:
        shown = "\n  ".join(problems[:5])
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"The adapter '{adapter_name}' does not fit this model and its config "
            f"({len(problems)} tensors); nothing was loaded:\n  {shown}{more}\n"
            "Load it onto the base model that it was trained on, with the config saved beside it."
        )
