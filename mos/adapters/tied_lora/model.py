from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from mos.adapters.linear import features
from mos.adapters.tied_lora.config import TiedLoraConfig
from mos.adapters.tied_lora.layer import Place, TiedLoraLinear, TiedTensors, reset_shared
from mos.adapters.tuner import SAVED_PREFIX, FactoredTuner, Shapes, saved_paths


class TiedLoraModel(FactoredTuner):
    """Owns the tensors that the blocks share.

    The targets of one block (one parent module) that have the same input width are one joint
    projection; blocks whose joint projections have the same names and widths are one group, with
    one A, one B and a row of v for each block.
    """

    uses_shared_state = True
    prefix = "tied_lora_"
    tuner_layer_cls = TiedLoraLinear
    default_targets = ("q_proj", "k_proj", "v_proj")

    @classmethod
    def saved_shapes(cls, file: safe_open) -> Shapes:
        blocks: dict[str, list[str]] = defaultdict(list)  # path of a block -> paths of its targets
        for path in saved_paths(file, ".tied_lora_u"):
            blocks[path.rpartition(".")[0]].append(path)
        prefix = "base_model.tied_lora_A."
        groups = [k.removeprefix(prefix) for k in file.keys() if k.startswith(prefix)]  # noqa: SIM118
        shapes: Shapes = {}
        for block, paths in blocks.items():
            for group in groups:
                # named by `plan`: q_proj+k_proj+v_proj:64+32+32x64
                names, _, sizes = group.rpartition(":")
                outs, _, in_features = sizes.rpartition("x")
                for name, out_features in zip(names.split("+"), outs.split("+"), strict=True):
                    path = f"{block}.{name}" if block else name
                    u = f"{SAVED_PREFIX}{path}.tied_lora_u"
                    if path in paths and file.get_slice(u).get_shape() == [int(out_features)]:
                        shapes.setdefault(path, (int(in_features), int(out_features)))
        return shapes

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, torch.Tensor] | None = None,
    ) -> None:
        if state_dict is not None:
            raise ValueError(
                "Tied LoRA shares tensors between layers and needs its config, not a state dict."
            )
        if not hasattr(self, "_tensors"):
            self._tensors = TiedTensors()
            self.tied_lora_A, self.tied_lora_B, self.tied_lora_v = self._tensors
        trainable = [(p, p.requires_grad) for tensor in self._tensors for p in tensor.parameters()]
        config: Any = self.peft_config[adapter_name]
        targets = self.targeted_linears(config)
        self._places = plan(targets)
        try:
            self._add_shared(adapter_name, config, targets, low_cpu_mem_usage)
            super().inject_adapter(
                model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage=low_cpu_mem_usage
            )
        except Exception:
            self._remove_shared(adapter_name)
            raise
        for parameter, flag in trainable:  # a further adapter leaves the others as they were
            parameter.requires_grad_(flag)

    def _add_shared(
        self,
        adapter_name: str,
        config: TiedLoraConfig,
        targets: dict[str, nn.Module],
        low_cpu_mem_usage: bool,
    ) -> None:
        members: dict[str, list[str]] = defaultdict(list)  # group -> paths
        for path, place in self._places.items():
            members[place.group].append(path)
        for group, paths in members.items():
            first = targets[paths[0]]
            in_features, _ = features(first)
            blocks = 1 + max(self._places[path].block for path in paths)
            in_block_0 = [p for p in paths if self._places[p].block == 0]
            out_features = sum(features(targets[p])[1] for p in in_block_0)
            shapes = (config.r, in_features), (out_features, config.r), (blocks, config.r)
            device = "meta" if low_cpu_mem_usage else None
            A, B, v = (torch.empty(shape, device=device) for shape in shapes)
            reset_shared(A, B, v, zero_update=config.init_weights)
            for owner, tensor in zip(self._tensors, (A, B, v), strict=True):
                owner.add(group, adapter_name, as_base(tensor, first))

    def _remove_shared(self, adapter_name: str) -> None:
        for tensor in self._tensors:
            tensor.remove(adapter_name)

    def _update_layer(
        self, layer: Any, adapter_name: str, config: TiedLoraConfig, path: str
    ) -> None:
        layer.update_layer(adapter_name, config, self._tensors, self._places[path])

    def delete_adapter(self, adapter_name: str) -> None:
        super().delete_adapter(adapter_name)
        self._remove_shared(adapter_name)

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        if not autocast_adapter_dtype:
            return
        for tensor in self._tensors:
            for parameter in tensor.parameters_of(adapter_name):
                if parameter.dtype in (torch.float16, torch.bfloat16):
                    parameter.data = parameter.data.float()

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str) -> None:
        """Called by PEFT after it assigned loaded tensors to an adapter made on the meta device."""
        for module in self.model.modules():
            if isinstance(module, TiedLoraLinear) and adapter_name in module.places:
                group = module.places[adapter_name].group
                for tensor in self._tensors:
                    parameter = tensor.get(group, adapter_name)
                    if not parameter.is_meta:
                        parameter.data = as_base(parameter.data, module.get_base_layer())


def plan(targets: dict[str, nn.Module]) -> dict[str, Place]:
    """Where each target stands in the shared tensors: see `TiedLoraModel`."""
    projections: dict[tuple[str, int], list[str]] = defaultdict(list)  # (block, width) -> paths
    for path, module in targets.items():
        parent = path.rpartition(".")[0]
        projections[parent, features(module)[0]].append(path)

    places: dict[str, Place] = {}
    blocks: dict[str, int] = defaultdict(int)  # group -> blocks so far
    for (_, width), paths in projections.items():
        names = "+".join(path.rpartition(".")[2] for path in paths)
        heights = [features(targets[path])[1] for path in paths]
        group = f"{names}:{'+'.join(map(str, heights))}x{width}"
        for i, path in enumerate(paths):
            places[path] = Place(group, blocks[group], sum(heights[:i]))
        blocks[group] += 1
    return places


def as_base(tensor: torch.Tensor, base: nn.Module) -> torch.Tensor:
    """`tensor` on the device and in the dtype of a base layer, if these are real and floating."""
    weight = getattr(base, "qweight", None)
    weight = base.weight if weight is None else weight
    assert isinstance(weight, torch.Tensor)
    dtype: torch.dtype = getattr(base, "compute_dtype", None) or weight.dtype
    return tensor.to(
        device=None if tensor.is_meta else weight.device,
        dtype=dtype if dtype.is_floating_point else None,
    )
