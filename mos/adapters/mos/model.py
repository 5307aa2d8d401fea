"""The tuner: plans the groups of layers, owns their pools, and prepares each forward pass."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils.constants import DUMMY_MODEL_CONFIG
from peft.utils.integrations import init_empty_weights
from safetensors import safe_open
from torch import nn

from mos.adapters.linear import features
from mos.adapters.mos import checkpoint
from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import GroupKey, Place, check_bounds, check_index, draw
from mos.adapters.tuner import FactoredTuner, Shapes, saved_paths
from mos.errors import UserError


class Groups(nn.Module):
    """Group name -> its pools. Not an `nn.ModuleDict`, whose keys PEFT takes for adapter names."""

    def get(self, key: GroupKey) -> SharedPools:
        if key.name not in self._modules:
            self.add_module(key.name, SharedPools(key))
        group = self._modules[key.name]
        assert isinstance(group, SharedPools)
        return group

    def __iter__(self) -> Iterator[SharedPools]:
        return iter(self._modules.values())  # type: ignore[arg-type]


@dataclass
class _Injection:
    """The adapter that is being added: what is planned, and what was replaced so far."""

    adapter_name: str
    places: dict[str, tuple[SharedPools, Place]] = field(default_factory=dict)
    replaced: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)


class MosModel(FactoredTuner):
    """Mixture of Shards: low-rank updates built from shards that all blocks share.

    Made by `get_peft_model(model, MosConfig(...))`; arguments and attributes are those of PEFT's
    tuners.
    """

    uses_shared_state = True
    prefix = "mos_"
    tuner_layer_cls = MosLinear

    mos_groups: Groups

    @classmethod
    def saved_shapes(cls, file: safe_open) -> Shapes:
        groups: dict[str, list[tuple[int, int]]] = defaultdict(list)  # type of layer -> shapes
        for key in file.keys():  # noqa: SIM118
            if match := re.fullmatch(r"base_model\.mos_groups\.(.+)_(\d+)x(\d+)\.pool_A", key):
                groups[match[1]].append((int(match[2]), int(match[3])))
        shapes = {}
        for path in saved_paths(file, ".mos_index_A"):
            kind = path.rpartition(".")[2]
            if len(groups[kind]) != 1:
                raise UserError(
                    f"{path}: layers named '{kind}' differ in shape ({groups[kind]}), and the file "
                    "does not say which this is. Export from the loaded model."
                )
            shapes[path] = groups[kind][0]
        return shapes

    def _pre_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        self.mos_groups = Groups()
        self._injection: _Injection | None = None
        self._mixed_adapter_names: list[str] | None = None

    def _post_injection_hook(self, model: nn.Module, config: Any, adapter_name: str) -> None:
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)
        self.register_load_state_dict_post_hook(_reroute)

    def _prepare_adapter_config(self, peft_config: Any, model_config: dict) -> Any:
        is_custom = model_config.get("model_type") == DUMMY_MODEL_CONFIG["model_type"]
        if peft_config.target_modules is None and is_custom:
            raise ValueError("Please specify `target_modules` in `peft_config`")
        return super()._prepare_adapter_config(peft_config, model_config)

    # ---- adding an adapter: everything is checked and planned before a module is replaced ----

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        trainable = [(pool, pool.requires_grad) for pool in self.mos_groups.parameters()]
        injection = self._injection = _Injection(adapter_name)
        try:
            self._plan(injection, kwargs.get("low_cpu_mem_usage", False))
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            self._roll_back(injection)
            raise
        finally:
            self._injection = None
        # PEFT restores these for what lies below the model, which the pools do not.
        for pool, requires_grad in trainable:
            pool.requires_grad_(requires_grad)

    def _plan(self, injection: _Injection, low_cpu_mem_usage: bool) -> None:
        config: Any = self.peft_config[injection.adapter_name]
        targets = self.targeted_linears(config)
        members: dict[GroupKey, list[str]] = {}
        for name, base in targets.items():
            key = GroupKey(name.rpartition(".")[2], *features(base))
            members.setdefault(key, []).append(name)
        for key, names in members.items():
            check_bounds(config, key, len(names))

        generator = torch.Generator("cpu").manual_seed(config.routing_seed)
        for key, names in members.items():
            group = self.mos_groups.get(key)
            with init_empty_weights() if low_cpu_mem_usage else nullcontext():
                _create_pools(group, injection.adapter_name, config, len(names), targets[names[0]])
            places = list(draw(config, len(names), generator))
            group.route(
                injection.adapter_name,
                [place.index_A for place in places],
                [place.index_B for place in places],
                config.shards_per_vector,
            )
            for name, place in zip(names, places, strict=True):
                injection.places[name] = (group, place)

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
        if self._injection is not None and not isinstance(target, MosLinear):
            self._injection.replaced.append((parent, target_name, target))
        super()._create_and_replace(
            peft_config, adapter_name, target, target_name, parent, current_key, parameter_name
        )

    def _update_layer(self, layer: Any, adapter_name: str, config: Any, path: str) -> None:
        assert self._injection is not None
        layer.update_layer(adapter_name, config, *self._injection.places[path])

    def _roll_back(self, injection: _Injection) -> None:
        for parent, name, original in injection.replaced:
            setattr(parent, name, original)
        for layer in _layers(self.model):
            if injection.adapter_name in layer.position:
                layer.delete_adapter(injection.adapter_name)
        for group in self.mos_groups:
            group.forget(injection.adapter_name)

    # ---- running ----

    def _before_forward(self, model: nn.Module, args: tuple) -> None:
        layer = next(_layers(model), None)
        if layer is None or layer.disable_adapters or layer.merged:
            return
        names = self._mixed_adapter_names or layer.active_adapters
        for group in self.mos_groups:
            group.prepare(names)

    def _after_forward(self, model: nn.Module, args: tuple, output: Any) -> None:
        if torch.compiler.is_compiling():
            # Nothing that was traced may be left behind. Otherwise the backward pass, or the next
            # forward pass in evaluation, still needs it.
            for group in self.mos_groups:
                group.release()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            self._mixed_adapter_names = sorted(set(names)) if names else None
            try:
                yield
            finally:
                self._mixed_adapter_names = None

    # ---- keeping ----

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """float32 pools, or pools in the dtype of the model (`autocast_adapter_dtype=False`)."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in _layers(self.model):
            if layer.position.get(adapter_name) == 0:
                dtype = layer._get_base_layer_device_and_dtype(layer.get_base_layer())[1]
                if dtype is None or not dtype.is_floating_point:
                    dtype = torch.float32
                if autocast_adapter_dtype:
                    dtype = torch.promote_types(dtype, torch.float32)
                layer.group.move(adapter_name, None, dtype)

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        for group in self.mos_groups:
            group.forget(adapter_name)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        model: Any = super()._unload_and_optionally_merge(*args, **kwargs)
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for handle_id, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is self:
                    del hooks[handle_id]
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        entries = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        return checkpoint.compact(entries, model, config, adapter_name)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls,
        model: nn.Module,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        entries = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        return checkpoint.check(entries, model, config, adapter_name)


def _layers(model: nn.Module) -> Iterator[MosLinear]:
    return (module for module in model.modules() if isinstance(module, MosLinear))


def _create_pools(
    group: SharedPools, adapter_name: str, config: MosConfig, n_layers: int, base: nn.Module
) -> None:
    """pool_A as LoRA's A: Kaiming-uniform with a = sqrt(5) and the fan-in of the whole vector.
    pool_B zero."""
    weight = getattr(base, "weight", None)
    device = torch.device("meta" if weight is not None and weight.is_meta else "cpu")
    n_shards, shards = config.n_shards(n_layers), config.shards_per_vector
    pool_A = torch.empty(n_shards, group.key.in_features // shards, device=device)
    pool_B = torch.zeros(n_shards, group.key.out_features // shards, device=device)
    bound = 1 / math.sqrt(group.key.in_features)
    nn.init.uniform_(pool_A, -bound, bound)
    if not config.init_weights:
        bound = 1 / math.sqrt(config.rank(n_layers))
        nn.init.uniform_(pool_B, -bound, bound)
    group.pool_A[adapter_name] = nn.Parameter(pool_A)
    group.pool_B[adapter_name] = nn.Parameter(pool_B)


def _reroute(tuner: MosModel, incompatible_keys: Any) -> None:
    """After `load_state_dict`: the pools are read by the indices that were loaded."""
    for adapter_name in tuner.peft_config:
        config: Any = tuner.peft_config[adapter_name]
        members: dict[SharedPools, list[tuple[int, str, MosLinear]]] = {}
        for name, layer in tuner.model.named_modules():
            if isinstance(layer, MosLinear) and adapter_name in layer.position:
                member = (layer.position[adapter_name], name, layer)
                members.setdefault(layer.group, []).append(member)
        for group, layers in members.items():
            layers.sort(key=lambda member: member[0])
            for position, name, layer in layers:
                for index in (layer.mos_index_A, layer.mos_index_B):
                    check_index(config, len(layers), position, index[adapter_name], name)
            group.route(
                adapter_name,
                [layer.mos_index_A[adapter_name] for _, _, layer in layers],
                [layer.mos_index_B[adapter_name] for _, _, layer in layers],
                config.shards_per_vector,
            )
