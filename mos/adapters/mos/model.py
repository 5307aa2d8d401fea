"""The tuner: plans the groups of layers, owns their pools, and prepares each forward pass."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from peft.import_utils import is_bnb_4bit_available
from peft.tuners.tuners_utils import (
    BaseTuner,
    BaseTunerLayer,
    _find_minimal_target_modules,
    _get_in_out_features,
    _maybe_include_all_linear_layers,
)
from peft.utils import AuxiliaryTrainingWrapper, get_quantization_kwargs
from peft.utils.constants import DUMMY_MODEL_CONFIG, DUMMY_TARGET_MODULES
from peft.utils.integrations import init_empty_weights
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import nn
from transformers.pytorch_utils import Conv1D

from mos.adapters.mos import checkpoint
from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import Linear, MosLayer
from mos.adapters.mos.pools import SharedPools
from mos.adapters.mos.routing import GroupKey, Routing, check_bounds, check_index, draw


class _Groups(nn.Module):
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
class _Place:
    """Where a target module belongs and what it reads."""

    group: SharedPools
    position: int
    routing: Routing


@dataclass
class _Injection:
    """The adapter that is being injected."""

    adapter_name: str
    low_cpu_mem_usage: bool
    state_dict: dict[str, torch.Tensor] | None
    places: dict[str, _Place]
    replaced: list[tuple[nn.Module, str, nn.Module]]


class MosModel(BaseTuner):
    """Mixture of Shards: low-rank updates built from shards that all blocks share.

    Made by `get_peft_model(model, MosConfig(...))`; arguments and attributes are those of PEFT's
    tuners.
    """

    prefix: str = "mos_"
    tuner_layer_cls = MosLayer
    uses_shared_state: bool = True
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    mos_groups: _Groups

    def _pre_injection_hook(self, model: nn.Module, config: MosConfig, adapter_name: str) -> None:
        self.mos_groups = _Groups()
        self._injection: _Injection | None = None
        self._mixed_adapter_names: list[str] | None = None

    def _post_injection_hook(self, model: nn.Module, config: MosConfig, adapter_name: str) -> None:
        model.register_forward_pre_hook(self._before_forward)
        model.register_forward_hook(self._after_forward)
        self.register_load_state_dict_post_hook(_reroute)

    def _prepare_adapter_config(self, peft_config: MosConfig, model_config: dict) -> MosConfig:
        if peft_config.target_modules is None:
            if model_config["model_type"] == DUMMY_MODEL_CONFIG["model_type"]:
                raise ValueError("Please specify `target_modules` in `peft_config`")
            peft_config.target_modules = "all-linear"
        return peft_config

    # ---- injection: plan everything, then replace modules ----

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        trainable = [(pool, pool.requires_grad) for pool in self.mos_groups.parameters()]
        self._injection = _Injection(adapter_name, low_cpu_mem_usage, state_dict, {}, [])
        try:
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                state_dict=state_dict,
            )
        except BaseException:
            self._roll_back(self._injection)
            raise
        finally:
            self._injection = None
        # PEFT restores these for what lies below the model, which the pools do not.
        for pool, requires_grad in trainable:
            pool.requires_grad_(requires_grad)

    def _prepare_model(self, peft_config: MosConfig, model: nn.Module) -> None:
        """Check and plan the adapter: called by PEFT when the config is complete and no module has
        been touched."""
        injection = self._injection
        assert injection is not None
        if peft_config.target_modules == DUMMY_TARGET_MODULES:
            return
        _resolve_all_linear(peft_config, model)
        members: dict[GroupKey, list[str]] = {}
        for name, module in self._find_targets(peft_config, model, injection.state_dict):
            in_features, out_features = _get_in_out_features(module)
            key = GroupKey(name.rpartition(".")[2], in_features, out_features)
            members.setdefault(key, []).append(name)
        for key, names in members.items():
            check_bounds(peft_config, key, len(names))

        generator = torch.Generator("cpu").manual_seed(peft_config.routing_seed)
        for key, names in members.items():
            group = self.mos_groups.get(key)
            base = _base_layer(model.get_submodule(names[0]))
            with init_empty_weights() if injection.low_cpu_mem_usage else nullcontext():
                _create_pools(group, injection.adapter_name, peft_config, len(names), base)
            routings = list(draw(peft_config, len(names), generator))
            group.route(
                injection.adapter_name,
                [routing.index_A for routing in routings],
                [routing.index_B for routing in routings],
                peft_config.shards_per_vector,
            )
            for position, (name, routing) in enumerate(zip(names, routings, strict=True)):
                injection.places[name] = _Place(group, position, routing)

    def _find_targets(
        self, config: MosConfig, model: nn.Module, state_dict: dict[str, torch.Tensor] | None
    ) -> Iterator[tuple[str, nn.Module]]:
        """The modules that PEFT is about to target, with their base layers."""
        stored = None
        if state_dict is not None:
            stored = {
                key.rsplit("." + self.prefix, 1)[0].removeprefix("_orig_mod.") for key in state_dict
            }
        elif isinstance(config.target_modules, set):
            _check_target_names(config.target_modules, [name for name, _ in model.named_modules()])
        inside: tuple[str, ...] = ()
        for name, module in model.named_modules():
            if not name or name.startswith(inside or "\0"):
                continue
            if isinstance(module, BaseTunerLayer):
                inside += (name + ".",)
            if stored is None:
                targeted = self._check_target_module_exists(config, name)
            else:
                targeted = name.removeprefix("_orig_mod.") in stored
            if not targeted:
                continue
            base = _base_layer(module)
            if not _is_supported(base):
                raise ValueError(
                    f"Target module {name} ({type(base).__name__}) is not supported. MoS adapts "
                    "linear layers (torch.nn.Linear, also quantised, and transformers' Conv1D). "
                    "Choose other target_modules, or list it in exclude_modules."
                )
            yield name, base

    def _create_and_replace(
        self,
        peft_config: MosConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **optional_kwargs: Any,
    ) -> None:
        assert self._injection is not None
        place = self._injection.places[current_key]
        if isinstance(target, MosLayer):
            target.update_layer(adapter_name, peft_config, place.position, place.routing)
            return
        _keep_4bit_weights_unpacked(_base_layer(target))
        new_module = Linear(
            target,
            place.group,
            adapter_name,
            peft_config,
            place.position,
            place.routing,
            **get_quantization_kwargs(self),
        )
        if adapter_name not in self.active_adapters:
            new_module.requires_grad_(False)
        self._injection.replaced.append((parent, target_name, target))
        self._replace_module(parent, target_name, new_module, target)

    def _roll_back(self, injection: _Injection) -> None:
        for parent, name, original in injection.replaced:
            setattr(parent, name, original)
        for module in self.model.modules():
            if isinstance(module, MosLayer) and injection.adapter_name in module.position:
                module.delete_adapter(injection.adapter_name)
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
            # Nothing that was traced may be left behind. Otherwise the gradients, or the next
            # forward pass in evaluation, still need it.
            for group in self.mos_groups:
                group.release()

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Mixed batches: hand `adapter_names` (one per example) down to the layers."""
        adapter_names = kwargs.pop("adapter_names", None)
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        unknown = sorted(set(adapter_names) - self.peft_config.keys() - {"__base__"})
        if unknown:
            raise ValueError(f"Trying to infer with non-existing adapter(s): {', '.join(unknown)}")
        num_beams = kwargs.get("num_beams") or 1
        expanded = [name for name in adapter_names for _ in range(num_beams)]
        # Beams repeat the examples, but not in the encoder of an encoder-decoder model.
        encoder = (
            self.model.get_encoder()
            if getattr(self.model.config, "is_encoder_decoder", False)
            else None
        )
        in_encoder = set() if encoder is None else set(encoder.modules())
        handles = [
            module.register_forward_pre_hook(
                partial(
                    _pass_adapter_names,
                    adapter_names=list(adapter_names) if module in in_encoder else expanded,
                ),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, MosLayer | AuxiliaryTrainingWrapper)
        ]
        self._mixed_adapter_names = sorted(set(adapter_names))
        try:
            yield
        finally:
            self._mixed_adapter_names = None
            for handle in handles:
                handle.remove()

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

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> nn.Module:
        model = super()._unload_and_optionally_merge(*args, **kwargs)
        for hooks in (model._forward_pre_hooks, model._forward_hooks):
            for handle_id, hook in list(hooks.items()):
                if getattr(hook, "__self__", None) is self:
                    del hooks[handle_id]
        return model

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: MosConfig,
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
        config: MosConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
    ) -> dict[str, torch.Tensor]:
        entries = super()._remap_adapter_state_dict_for_load(
            model, config, adapter_name, state_dict
        )
        return checkpoint.check(entries, model, config, adapter_name)


def _layers(model: nn.Module) -> Iterator[Linear]:
    return (module for module in model.modules() if isinstance(module, Linear))


def _base_layer(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def _is_supported(module: nn.Module) -> bool:
    if isinstance(module, nn.Linear | Conv1D):
        return True
    backend = resolve_quantization_backend(module)
    return backend is not None and backend.layer_type == "linear"


def _resolve_all_linear(config: MosConfig, model: nn.Module) -> None:
    """Replace "all-linear" by the names of the types. PEFT's list of full names would defeat
    `layers_to_transform`."""
    if config.target_modules == "all-linear":
        _maybe_include_all_linear_layers(config, model)
        full_names = config.target_modules
        others = [name for name, _ in model.named_modules() if name and name not in full_names]
        config.target_modules = _find_minimal_target_modules(full_names, others)


def _check_target_names(target_modules: set[str], module_names: Sequence[str]) -> None:
    unknown = sorted(
        target
        for target in target_modules
        if not any(name == target or name.endswith("." + target) for name in module_names)
    )
    if unknown and len(unknown) < len(target_modules):  # PEFT reports it if none is found
        known = sorted({name.rpartition(".")[2] for name in module_names if name})
        hints = [
            f"{name!r}" + "".join(f" (did you mean {close!r}?)" for close in _closest(name, known))
            for name in unknown
        ]
        raise ValueError(f"target_modules not found in the base model: {', '.join(hints)}.")


def _closest(name: str, known: list[str]) -> list[str]:
    return difflib.get_close_matches(name, known, n=1)


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


def _keep_4bit_weights_unpacked(base: nn.Module) -> None:
    """On CPUs with AVX512-BF16, bitsandbytes repacks the weight at the first evaluation, and from
    then on multiplies in a way that autograd does not see: gradients are wrong and merging reads
    packed data."""
    if not is_bnb_4bit_available():
        return
    import bitsandbytes as bnb

    if isinstance(base, bnb.nn.Linear4bit) and hasattr(base, "support_avx512bf16_for_cpu"):
        base.support_avx512bf16_for_cpu = False
        quant_state = getattr(base.weight, "quant_state", None)
        if getattr(quant_state, "packing_format_for_cpu", False):
            from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse

            base.weight.data, base.weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                base.weight.data, quant_state
            )


def _pass_adapter_names(
    module: nn.Module, args: tuple, kwargs: dict[str, Any], adapter_names: list[str]
) -> tuple[tuple, dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def _reroute(tuner: MosModel, incompatible_keys: Any) -> None:
    """After `load_state_dict`: the pools are read by the indices that were loaded."""
    for adapter_name, config in tuner.peft_config.items():
        members: dict[SharedPools, list[tuple[int, str, Linear]]] = {}
        for name, layer in tuner.model.named_modules():
            if isinstance(layer, Linear) and adapter_name in layer.position:
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
