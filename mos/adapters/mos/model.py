"""The tuner: groups the layers, makes their pools, and checks what is loaded."""

from __future__ import annotations

import math
import re
import warnings
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mos.adapters import WEIGHTS
from mos.adapters.linear import features
from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.pools import MosTensors, SharedPools
from mos.adapters.mos.routing import GroupKey, check_index, draw, grouped, storage_dtype
from mos.adapters.saved import Shapes, adapter_config, keys_of, unwrapped
from mos.adapters.tuner import SharedTuner
from mos.errors import UserError


class MosModel(SharedTuner):
    """Mixture of Shards: low-rank updates built from shards that all blocks share.

    Made by `get_peft_model(model, MosConfig(...))`; arguments and attributes are those of PEFT's
    tuners.
    """

    prefix = "mos_"
    tuner_layer_cls = MosLinear
    tensors_cls = MosTensors

    @classmethod
    def saved_shapes(cls, file: safe_open | Mapping[str, torch.Tensor]) -> Shapes:
        """Path -> (in_features, out_features) of each layer that an adapter file is for, blocks in
        the order of their numbers: it can be read without its base model.

        Args:
            file: an open `adapter_model.safetensors`, or its tensors.

        Raises:
            UserError: layers of one name differ in shape.
        """
        keys, end = keys_of(file), ".mos_index_A"
        groups: dict[str, list[tuple[int, int]]] = defaultdict(list)  # type of layer -> shapes
        for key in keys:
            if match := re.fullmatch(r"mos\.(.+)_(\d+)x(\d+)\.lora_A\.mos_pool_A\.weight", key):
                groups[match[1]].append((int(match[2]), int(match[3])))
        paths = [key.removesuffix(end) for key in keys if key.endswith(end)]
        paths.sort(key=lambda p: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", p)])
        shapes = {}
        for path in paths:
            kind = path.rpartition(".")[2]
            if len(groups[kind]) != 1:
                raise UserError(
                    f"{path}: layers named '{kind}' differ in shape ({groups[kind]}), and the file "
                    "does not say which this is. Export from the loaded model."
                )
            shapes[path] = groups[kind][0]
        return shapes

    def share(
        self, adapter_name: str, config: Any, targets: dict[str, nn.Module], device: torch.device
    ) -> dict[str, tuple]:
        groups = grouped(config, {name: features(base) for name, base in targets.items()})
        _say_what_was_fitted(config, {key: fitted for key, (fitted, _) in groups.items()})
        others = {name: other for name, other in self.peft_config.items() if name != adapter_name}
        twin = next((name for name, other in others.items() if other == config), None)
        routes: dict[str, tuple] = {}
        generator = torch.Generator("cpu").manual_seed(config.routing_seed)
        for key, (fitted, names) in groups.items():
            group = self.tensors.group(key.name, lambda key=key: SharedPools(key))
            group.add(adapter_name, fitted, *_new_pools(fitted, key, len(names), device))
            drawn = draw(fitted, len(names), generator)
            if twin in group.layers:
                # One config is one routing, which may have been loaded: TRL copies the parameters
                # of an adapter into one of the same config, to compare with later.
                drawn = (layer.route(twin) for layer in group.layers[twin])
            for name, route in zip(names, drawn, strict=True):
                routes[name] = (group, route)
        return routes

    def inject_adapter(
        self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any
    ) -> None:
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        if not any(
            getattr(hook, "__self__", None) is self.tensors
            for hook in model._forward_pre_hooks.values()
        ):
            model.register_forward_pre_hook(self.tensors.before_forward)
            model.register_forward_hook(self.tensors.after_forward)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        names = kwargs.get("adapter_names")
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            self.tensors.mixed_adapter_names = sorted(set(names)) if names else None
            try:
                yield
            finally:
                self.tensors.mixed_adapter_names = None

    @classmethod
    def _get_adapter_state_dict(
        cls, model: nn.Module, config: Any, adapter_name: str, *args: Any, **kwargs: Any
    ) -> dict[str, torch.Tensor]:
        """Indices are stored in the smallest integer type, pools in `config.save_dtype`."""
        entries = super()._get_adapter_state_dict(model, config, adapter_name, *args, **kwargs)
        for keys, layer in _layers(model, adapter_name):
            dtype = storage_dtype(len(layer.groups[adapter_name].pool("A", adapter_name)))
            entries.update({key: entries[key].to(dtype) for key in keys if key in entries})
        if config.storage_dtype is not None:
            pools = [key for key in entries if ".mos_pool_" in key]
            entries.update({key: entries[key].to(config.storage_dtype) for key in pools})
        return entries

    @staticmethod
    def check_loaded(
        entries: dict[str, torch.Tensor], model: nn.Module, config: MosConfig, adapter_name: str
    ) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: an entry is of the wrong type, or an index that MoS could not have drawn.
        """
        loaded = dict(entries)
        for keys, layer in _layers(model, adapter_name):
            for key in keys:
                if entries[key].dtype not in _INTEGERS:
                    raise ValueError(
                        f"{key} is stored as {entries[key].dtype}, expected an integer type."
                    )
                group = layer.groups[adapter_name]
                fitted, n_layers = group.configs[adapter_name], len(group.layers[adapter_name])
                check_index(fitted, n_layers, layer.position[adapter_name], entries[key], key)
                loaded[key] = entries[key].to(torch.int32)
            index_A, index_B = (loaded[key] for key in keys)
            if not config.pair_dissociation and not torch.equal(index_A, index_B):
                raise ValueError(
                    f"{keys[1]} differs from the index of A, although pair_dissociation is off."
                )
        for key, tensor in entries.items():
            if ".mos_pool_" in key and not tensor.is_floating_point():
                raise ValueError(
                    f"{key} is stored as {tensor.dtype}, expected a floating point type."
                )
        return loaded


def saved_ranks(adapter_dir: Path) -> set[int]:
    """The ranks of a saved adapter's layers: more than one where some groups hold less than r."""
    config: Any = adapter_config(adapter_dir)
    with safe_open(adapter_dir / WEIGHTS, framework="pt") as file:
        shapes = MosModel.saved_shapes(file)
    return {fitted.rank(len(paths)) for fitted, paths in grouped(config, shapes).values()}


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _say_what_was_fitted(config: MosConfig, configs: Mapping[GroupKey, MosConfig]) -> None:
    said = []
    for key, fitted in configs.items():
        values = [
            f"{name}={getattr(fitted, name)}"
            for name in ("r", "shards_per_vector")
            if getattr(fitted, name) != getattr(config, name)
        ]
        if values:
            said.append(f"{key.name} {', '.join(values)}")
    if said:
        warnings.warn(
            f"r={config.r}, shards_per_vector={config.shards_per_vector} do not fit all groups of "
            f"layers, by their number or widths: {'; '.join(said)}.",
            stacklevel=2,
        )


def _new_pools(
    config: MosConfig, key: GroupKey, n_layers: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """pool_A as LoRA's A: Kaiming-uniform with a = sqrt(5) and the fan-in of the whole vector.
    pool_B zero."""
    n_shards, shards = config.n_shards(n_layers), config.shards_per_vector
    pool_A = torch.empty(n_shards, key.in_features // shards, device=device)
    pool_B = torch.zeros(n_shards, key.out_features // shards, device=device)
    bound = 1 / math.sqrt(key.in_features)
    nn.init.uniform_(pool_A, -bound, bound)
    if not config.init_weights:
        bound = 1 / math.sqrt(config.rank(n_layers))
        nn.init.uniform_(pool_B, -bound, bound)
    return pool_A, pool_B


def _layers(model: nn.Module, adapter_name: str) -> Iterator[tuple[list[str], MosLinear]]:
    """The keys of each layer's indices, and the layer."""
    for name, layer in model.named_modules():
        if isinstance(layer, MosLinear) and adapter_name in layer.position:
            prefix = unwrapped(name)
            yield [f"{prefix}.mos_index_{side}.{adapter_name}" for side in "AB"], layer
