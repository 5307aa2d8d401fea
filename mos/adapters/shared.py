"""The tuner of methods with tensors that many layers read, which the base model's root owns."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes
from torch import nn

from mos.adapters import saved
from mos.adapters.tuner import FactoredTuner
from mos.adapters.weights import SharedTensors


class SharedTuner(FactoredTuner):
    """A `FactoredTuner` whose layers share tensors.

    Subclasses implement `plan`; `update_layer` of their layers is given what it says of the layer.
    """

    tensors_cls: type[SharedTensors] = SharedTensors

    @property
    def tensors(self) -> Any:
        """The model's own module of shared tensors: `mos` for the prefix `mos_`."""
        return self.model.get_submodule(self.prefix.rstrip("_"))

    def plan(
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

    def _plan(
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
        self._places = self.plan(adapter_name, config, targets, device)

    def _update_layer(self, layer: Any, adapter_name: str, config: Any, path: str) -> None:
        layer.update_layer(adapter_name, config, *self._places[path])

    def _roll_back(self, adapter_name: str) -> None:
        super()._roll_back(adapter_name)
        self.tensors.forget(adapter_name)
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
