"""The configuration of MoS: every switch of the paper is one field."""

from __future__ import annotations

import math
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass
from typing import Literal

import torch
from peft.utils import PeftType

from mos.adapters.config import FactoredConfig

SAVE_DTYPES = ("float32", "bfloat16", "float16")


@dataclass
class MosConfig(FactoredConfig):
    """Configuration of [`MosModel`], Mixture of Shards (arXiv 2410.00938, section 3).

    A model of L blocks keeps, per linear type, two pools of `equivalent_rank * L *
    shards_per_vector` shards. Every block builds its A and B of rank `r` from shards that a frozen
    routing picks, so that the method has the parameters of LoRA of rank `equivalent_rank`.

    The paper's ablations: `-pd` is `pair_dissociation=False`, `-vs` is `shards_per_vector=1`, `-sp`
    is `private_rank=0`. All three with `r="all"` are Pure Sharing, with `random_scaling` besides
    + Random Scaling, and with a smaller `r` + Subset Selection.

    The defaults fit a model of any depth. The paper raises the rank above the equivalent one:
    `r=32, equivalent_rank=8`.

    The paper adapts all seven linear types of a LLaMA. Which layers are adapted, and what is
    trained besides, is said as for every method, see [`FactoredConfig`]; L counts the adapted ones.

    Args:
        r: working rank of every block, at least `equivalent_rank`; or "all" for the whole pool,
            `equivalent_rank * L` (needs the three ablations above), which is read in its own order.
            Layers whose pools hold fewer vectors for one of them, `(e - p) L + p`, have that rank.
        equivalent_rank: e, the rank of the LoRA that has as many trainable parameters.
        shards_per_vector: l, the shards that make one row of A or one column of B. Layers with a
            width that it does not divide take its largest divisor that does.
        private_rank: p, how many of the `r` ranks are built from shards that no other block reads.
            `p = e` needs `r = e`: nothing is shared then, and MoS is LoRA of rank e.
        mos_alpha: the update is scaled by `mos_alpha / r`.
        mos_dropout: dropout on the input of A while training.
        pair_dissociation: pick the shards of A and of B independently.
        random_scaling: None, or `{"mean": m, "std": s}`: a frozen factor ~ N(m, s) for each of the
            `r` ranks of every layer, stored in the adapter file.
        routing_seed: seed of the routing (and of random scaling). They are drawn on the CPU by a
            generator of their own: the same on every device and after any other random draw.
        save_dtype: None, "float32", "bfloat16" or "float16": the pools are stored in this dtype.
            None stores them as they are.

    Raises:
        ValueError: a value is out of its bounds; the message names it.
    """

    r: int | Literal["all"] = 8
    equivalent_rank: int = 8
    shards_per_vector: int = 4
    private_rank: int = 1
    mos_alpha: float = 16
    mos_dropout: float = 0.0
    pair_dissociation: bool = True
    random_scaling: dict[str, float] | None = None
    routing_seed: int = 0
    save_dtype: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("MOS")
        for name, least in (("equivalent_rank", 1), ("shards_per_vector", 1), ("private_rank", 0)):
            self.check_whole(name, least)
        self._check_rank()
        self.check_dropout("mos_dropout")
        if not self.mos_alpha > 0:
            raise ValueError(f"mos_alpha={self.mos_alpha} must be positive.")
        if self.save_dtype is not None and self.save_dtype not in SAVE_DTYPES:
            raise ValueError(
                f"save_dtype={self.save_dtype!r} must be None or one of {', '.join(SAVE_DTYPES)}."
            )
        if self.random_scaling is not None:
            scaling = self.random_scaling
            if set(scaling) != {"mean", "std"} or not scaling["std"] >= 0:
                raise ValueError(
                    "random_scaling must be None or {'mean': number, 'std': number >= 0}, got "
                    f"{scaling!r}."
                )
            self.random_scaling = {key: float(scaling[key]) for key in ("mean", "std")}

    def _check_rank(self) -> None:
        r, e, p = self.r, self.equivalent_rank, self.private_rank
        if p > e:
            raise ValueError(f"private_rank={p} must not exceed equivalent_rank={e}.")
        if r == "all":
            of_pure_sharing = {
                "pair_dissociation": False,
                "shards_per_vector": 1,
                "private_rank": 0,
            }
            given = {name: getattr(self, name) for name in of_pure_sharing}
            if wrong := [f"{k}={v!r}" for k, v in given.items() if v != of_pure_sharing[k]]:
                raise ValueError(
                    "r='all' (pure sharing) needs pair_dissociation=False, shards_per_vector=1 and "
                    f"private_rank=0, got {', '.join(wrong)}."
                )
            return
        self.check_whole("r", 1)
        if e > r:
            raise ValueError(
                f"equivalent_rank={e} must not exceed r={r}: some shards would never be read."
            )
        if p == e and r != e:
            raise ValueError(
                f"private_rank={p} equals equivalent_rank, which leaves no shards to share: r must "
                f"be {e} then (LoRA of rank {e}), got r={r}."
            )

    def check_file(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        n_layers, e = sum("mos_index_A" in key for key in shapes), self.equivalent_rank
        for key, shape in shapes.items():
            if "pool_" in key and (shape[0] % e or shape[0] > self.n_shards(n_layers)):
                raise ValueError(
                    f"shape {shape}, but by adapter_config.json a layer has {self.n_shards(1)} "
                    f"shards or fewer: {key}. The config is not the one that was saved beside this "
                    "file."
                )

    def fitted(self, n_layers: int, in_features: int, out_features: int) -> MosConfig:
        """This config as a group of so many layers of such widths can hold it: r is at most
        `(e - p) L + p`, and l the largest divisor of it that divides both widths."""
        config, (e, p) = copy(self), (self.equivalent_rank, self.private_rank)
        if self.r != "all":
            config.r = min(self.r, (e - p) * n_layers + p)
        config.shards_per_vector = math.gcd(self.shards_per_vector, in_features, out_features)
        return config

    def rank(self, n_layers: int) -> int:
        """The working rank of a layer whose pools serve `n_layers` layers."""
        return self.equivalent_rank * n_layers if self.r == "all" else int(self.r)

    def n_shards(self, n_layers: int) -> int:
        """Shards in each pool that serves `n_layers` layers: `e * L * l`."""
        return self.equivalent_rank * n_layers * self.shards_per_vector

    def n_public(self, n_layers: int) -> int:
        """Shards of a pool that any of its layers may read: `(e - p) * L * l`, its first ones."""
        return (self.equivalent_rank - self.private_rank) * n_layers * self.shards_per_vector

    @property
    def storage_dtype(self) -> torch.dtype | None:
        return None if self.save_dtype is None else getattr(torch, self.save_dtype)
