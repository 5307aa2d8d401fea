from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from mos.adapters.config import FactoredConfig


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

    def file_sizes(self) -> dict[str, tuple[int, int]]:
        shared = self.r - self.unshared_rank
        return {"prolora_A_shared": (0, shared), "prolora_B_shared": (1, shared)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("PROLORA")
        for name in ("r", "reduction_a", "reduction_b"):
            self.check_whole(name, 1)
        self.check_whole("unshared_rank", 0, self.r)
        self.check_dropout("prolora_dropout")
