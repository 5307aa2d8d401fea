from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from mos.adapters.config import FactoredConfig


@dataclass
class RasaConfig(FactoredConfig):
    """RaSA (arXiv 2503.12576): `B_own A_own + B_shared diag(s) A_shared`.

    Layers of one name and shape share a pool: L layers give `shared_rank` ranks each to it, and
    each layer uses all `L * shared_rank` of them, scaled by its own vector s.

    Args:
        r: ranks of parameters for every layer, those given to the pool included.
        shared_rank: how many of them are given to the pool. 0 is LoRA.
        rasa_alpha: the update is scaled by `rasa_alpha / r`.
        rasa_dropout: dropout on the input of A.
    """

    r: int = field(default=8)
    shared_rank: int = field(default=1)
    rasa_alpha: float = field(default=16)
    rasa_dropout: float = field(default=0.0)

    def file_sizes(self) -> dict[str, tuple[int, int]]:
        return {"rasa_lora_A": (0, self.r - self.shared_rank)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("RASA")
        self.check_whole("r", 1)
        self.check_whole("shared_rank", 0, self.r)
        self.check_dropout("rasa_dropout")
