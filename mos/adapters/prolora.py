"""PRoLoRA: partially rotated low-rank adaptation (arXiv 2402.16902)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from peft.utils import PeftType
from torch import nn

from mos.adapters.config import FactoredConfig
from mos.adapters.linear import FactoredLinear, Weights
from mos.adapters.registration import register
from mos.adapters.tuner import FactoredTuner


@dataclass
class ProloraConfig(FactoredConfig):
    """PRoLoRA (arXiv 2402.16902): each layer shares chunks of its own factors, rotated.

    Args:
        r: rank of the update.
        unshared_rank: u, the ranks that are plain LoRA; the other r - u are shared.
        reduction_a: m, in how many chunks of input features the shared part of A is used.
        reduction_b: n, in how many chunks of output features the shared part of B is used.
        prolora_alpha: the update is scaled by `prolora_alpha / r`.
        prolora_dropout: dropout on the input of A.

    See `FactoredConfig` for the rest. `unshared_rank == r`, or both reductions 1, is LoRA.
    """

    r: int = field(default=8)
    unshared_rank: int = field(default=0)
    reduction_a: int = field(default=2)
    reduction_b: int = field(default=2)
    prolora_alpha: float = field(default=16)
    prolora_dropout: float = field(default=0.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("PROLORA")
        for name in ("r", "reduction_a", "reduction_b"):
            self.check_whole(name, 1)
        self.check_whole("unshared_rank", 0, self.r)
        self.check_dropout("prolora_dropout")


class ProloraLinear(FactoredLinear):
    """Linear layer with a PRoLoRA update (arXiv 2402.16902, section 3).

    Per adapter, with u unshared ranks and reductions m, n:
    `prolora_A_shared (r-u, ceil(in/m))`, `prolora_B_shared (ceil(out/n), r-u)`,
    `prolora_A_unshared (u, in)`, `prolora_B_unshared (out, u)`; a part of rank 0 is absent.
    """

    method_name = "prolora"
    adapter_layer_names = (
        "prolora_A_shared",
        "prolora_B_shared",
        "prolora_A_unshared",
        "prolora_B_unshared",
    )
    other_param_names = (*FactoredLinear.other_param_names, "reductions")

    def __init__(self, base_layer: nn.Module, **quantization_kwargs: Any) -> None:
        super().__init__(base_layer, **quantization_kwargs)
        self.prolora_A_shared = Weights()
        self.prolora_B_shared = Weights()
        self.prolora_A_unshared = Weights()
        self.prolora_B_unshared = Weights()
        self.reductions: dict[str, tuple[int, int]] = {}

    def update_layer(self, adapter_name: str, config: ProloraConfig) -> None:
        m, n = config.reduction_a, config.reduction_b
        u, shared = config.unshared_rank, config.r - config.unshared_rank
        for name, reduction, width in (
            ("reduction_a", m, self.in_features),
            ("reduction_b", n, self.out_features),
        ):
            if reduction > width:
                raise ValueError(
                    f"`{name}` is {reduction}, more chunks than the layer has features ({width})."
                )
        self.add_adapter_state(adapter_name, config.r, config.prolora_alpha, config.prolora_dropout)
        self.reductions[adapter_name] = (m, n)
        if shared:
            A = torch.empty(shared, math.ceil(self.in_features / m))
            B = torch.empty(math.ceil(self.out_features / n), shared)
            self.prolora_A_shared.add(adapter_name, A)
            self.prolora_B_shared.add(adapter_name, B)
        if u:
            self.prolora_A_unshared.add(adapter_name, torch.empty(u, self.in_features))
            self.prolora_B_unshared.add(adapter_name, torch.empty(self.out_features, u))
        self.reset_parameters(adapter_name, zero_update=config.init_weights)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters)

    @torch.no_grad()
    def reset_parameters(self, adapter_name: str, zero_update: bool = True) -> None:
        """Kaiming-uniform A with the fan-in of the whole vector, not of its chunk; B zero."""
        bound_A = 1 / math.sqrt(self.in_features)
        bound_B = 0.0 if zero_update else 1 / math.sqrt(self.r[adapter_name])
        for A in (self.prolora_A_shared, self.prolora_A_unshared):
            if adapter_name in A:
                A.of(adapter_name).uniform_(-bound_A, bound_A)
        for B in (self.prolora_B_shared, self.prolora_B_unshared):
            if adapter_name in B:
                B.of(adapter_name).uniform_(-bound_B, bound_B)

    def factors(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        A, B = [], []
        if adapter_name in self.prolora_A_shared:
            m, n = self.reductions[adapter_name]
            A_shared = self.prolora_A_shared.of(adapter_name)  # (r-u, ceil(in/m))
            B_shared = self.prolora_B_shared.of(adapter_name)  # (ceil(out/n), r-u)
            A.append(_rotated_chunks(A_shared, m)[:, : self.in_features])
            B.append(_rotated_chunks(B_shared.T, n)[:, : self.out_features].T)
        if adapter_name in self.prolora_A_unshared:
            A.append(self.prolora_A_unshared.of(adapter_name))
            B.append(self.prolora_B_unshared.of(adapter_name))
        return torch.cat(A), torch.cat(B, dim=1)  # (r, in), (out, r)


def _rotated_chunks(chunk: torch.Tensor, count: int) -> torch.Tensor:
    """`count` copies of `chunk (rank, width)` side by side, copy c with its rows rotated up by
    `c * max(rank // count, 1)`: (rank, count * width)."""
    stride = max(chunk.shape[0] // count, 1)
    return torch.cat([chunk.roll(-c * stride, dims=0) for c in range(count)], dim=1)


class ProloraModel(FactoredTuner):
    """A model whose linear layers carry PRoLoRA updates; everything is the layer's own."""

    prefix = "prolora_"
    tuner_layer_cls = ProloraLinear


register("prolora", ProloraConfig, ProloraModel)
