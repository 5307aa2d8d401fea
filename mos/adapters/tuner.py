"""The tuner of every linear method: layers replaced or left as they were, files checked, batches
mixed; and that of methods with tensors that many layers read."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, _filter_state_dict_by_key_prefixes
from peft.utils import AuxiliaryTrainingWrapper, get_quantization_kwargs
from torch import nn

from mos.adapters import saved
from mos.adapters.config import FORMAT_VERSION, default_targets, is_target, targeted_linears
from mos.adapters.linear import BASE_ROWS, FactoredLinear, keep_4bit_weights_unpacked
from mos.adapters.shared import SharedTensors


class FactoredTuner(BaseTuner):
    """Replaces linear layers by a `FactoredLinear` subclass and loads adapters strictly.

    Subclasses set `prefix` and `tuner_layer_cls`, whose constructor takes the base layer and the
    quantisation arguments, and whose `update_layer(adapter_name, config)` adds an adapter.
    """

    tuner_layer_cls: type[FactoredLinear]
    default_targets: ClassVar[set[str] | None] = None  # instead of the model's own

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> PeftConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = self.default_targets or default_targets(model_config)
        return peft_config

    @staticmethod
    def _check_target_module_exists(peft_config: Any, key: str) -> Any:
        return is_target(peft_config, key)

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        config: Any = self.peft_config[adapter_name]
        self._prepare_adapter_config(config, self.get_model_config(model))
        named = None
        if state_dict is not None:
            named = {key.rsplit(f".{self.prefix}", 1)[0] for key in state_dict}
        targets = targeted_linears(model, config, named)
        keep_4bit_weights_unpacked(model)
        # Another tuner may have put one of this name there: as with LoRA, the new one replaces it.
        self._forget(adapter_name)
        self._replaced: list[tuple[nn.Module, str, nn.Module]] = []
        try:
            self._prepare(adapter_name, config, targets, low_cpu_mem_usage)
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict
            )
        except BaseException:
            self._roll_back(adapter_name)
            raise
        config.format_version = FORMAT_VERSION

    def _prepare(
        self,
        adapter_name: str,
        config: Any,
        targets: dict[str, nn.Module],
        low_cpu_mem_usage: bool,
    ) -> None:
        """Check what can be checked before a module is replaced."""

    def _roll_back(self, adapter_name: str) -> None:
        for parent, name, original in self._replaced:
            setattr(parent, name, original)
        self._forget(adapter_name)

    def _forget(self, adapter_name: str) -> None:
        for layer in self.model.modules():
            if isinstance(layer, FactoredLinear) and adapter_name in layer.r:
                layer.delete_adapter(adapter_name)

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
        layer.train(target.training)
        layer._active_adapter = adapter_name
        self._update_layer(layer, adapter_name, peft_config, current_key)
        if adapter_name not in self.active_adapters:
            layer.set_requires_grad(adapter_name, False)  # it does not train by itself
        self._replaced.append((parent, target_name, target))
        self._replace_module(parent, target_name, layer, target)

    def _update_layer(self, layer: Any, adapter_name: str, config: Any, path: str) -> None:
        layer.update_layer(adapter_name, config)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        if isinstance(new_module, FactoredLinear) or isinstance(child, AuxiliaryTrainingWrapper):
            # PEFT's own would move an adapter to the meta device if its layer is offloaded, and
            # assign the merged rows of a wrapper that is unloaded, a tensor, as a parameter.
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
        keys = saved.adapter_keys(model, adapter_name)
        in_file = {cls._remove_adapter_name_from_key(key, adapter_name): key for key in keys}
        remapped = {}
        for key, tensor in state_dict.items():
            # an adapter injected without PeftModel has no such prefix
            bare = key.removeprefix(saved.PREFIX)
            remapped[in_file.get(key) or in_file.get(bare) or key] = tensor
        saved.check(model, adapter_name, keys, remapped)
        return cls.check_loaded(remapped, model, config, adapter_name)

    @staticmethod
    def check_loaded(
        entries: dict[str, torch.Tensor], model: nn.Module, config: Any, adapter_name: str
    ) -> dict[str, torch.Tensor]:
        """An adapter's entries as they are loaded; none is missing or foreign, every shape fits.

        Raises:
            ValueError: they do not fit otherwise.
        """
        return entries

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


class SharedTuner(FactoredTuner):
    """A `FactoredTuner` whose layers share tensors.

    Subclasses implement `share`; `update_layer` of their layers is given what it says of the layer.
    """

    tensors_cls: type[SharedTensors] = SharedTensors

    @property
    def tensors(self) -> Any:
        """The model's own module of shared tensors: `mos` for the prefix `mos_`."""
        return self.model.get_submodule(self.prefix.rstrip("_"))

    def share(
        self, adapter_name: str, config: Any, targets: dict[str, nn.Module], device: torch.device
    ) -> dict[str, tuple]:
        """Create an adapter's shared tensors, and say what each layer gets of them.

        Args:
            targets: path -> base linear layer.
            device: where to create them; moved to the layers' when these join.

        Returns:
            Path -> further arguments of the layer's `update_layer`.

        Raises:
            ValueError: the config does not fit the layers.
        """
        raise NotImplementedError

    def _prepare(
        self,
        adapter_name: str,
        config: Any,
        targets: dict[str, nn.Module],
        low_cpu_mem_usage: bool,
    ) -> None:
        name = self.prefix.rstrip("_")
        if not hasattr(self.model, name):
            tensors = self.tensors_cls()
            self.model.add_module(name, tensors)
            tensors.train(self.model.training)
        weights = (getattr(base, "weight", None) for base in targets.values())
        no_memory = all(w is not None and w.is_meta for w in weights) and not _offloaded(self.model)
        device = torch.device("meta" if low_cpu_mem_usage or no_memory else "cpu")
        self._places = self.share(adapter_name, config, targets, device)

    def _update_layer(self, layer: Any, adapter_name: str, config: Any, path: str) -> None:
        layer.update_layer(adapter_name, config, *self._places[path])
        layer.to_train |= not config.inference_mode

    def _forget(self, adapter_name: str) -> None:
        super()._forget(adapter_name)
        for module in self.model.modules():
            if isinstance(module, SharedTensors):
                module.forget(adapter_name)

    def _roll_back(self, adapter_name: str) -> None:
        super()._roll_back(adapter_name)
        if not len(list(self.tensors)):
            self._remove_tensors()

    def _remove_tensors(self) -> None:
        tensors = self.tensors
        for hooks in (self.model._forward_pre_hooks, self.model._forward_hooks):
            for handle_id, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is tensors:
                    del hooks[handle_id]
        delattr(self.model, self.prefix.rstrip("_"))

    def _mark_only_adapters_as_trainable(self, model: nn.Module) -> None:
        trained = [p for p in self.tensors.parameters() if p.requires_grad]
        super()._mark_only_adapters_as_trainable(model)
        for parameter in trained:  # no tuner layer's, so frozen as if they were the base model's
            parameter.requires_grad_(True)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for group in self.tensors:
            group.cast(adapter_name, autocast_adapter_dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self.tensors.forget(adapter_name)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        self._remove_tensors()
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        own = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        prefixes = saved.shared_prefixes(model)
        return {**own, **_filter_state_dict_by_key_prefixes(state_dict, prefixes)}


def _offloaded(model: nn.Module) -> bool:
    """Whether accelerate brings weights in when a layer runs."""
    return any(hasattr(module, "_hf_hook") for module in model.modules())


def _insert_adapter_names(module, args, kwargs, adapter_names):
    return args, {**kwargs, "adapter_names": adapter_names}
