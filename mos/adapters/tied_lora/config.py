from __future__ import annotations

from dataclasses import dataclass, field

from peft.utils import PeftType

from mos.adapters.config import FactoredConfig


@dataclass
class TiedLoraConfig(FactoredConfig):
    """Tied LoRA (arXiv 2311.09578): `diag(u) B diag(v) A`, with A and B shared by all blocks.

    Args:
        r: rank of the update.
        tied_lora_alpha: the update is scaled by `tied_lora_alpha / r`.
        tied_lora_dropout: dropout on the input of A.
        target_modules: as in `FactoredConfig`; default q_proj, k_proj, v_proj. The targets of a
            block that read inputs of one width are taken as one projection.
    """

    r: int = field(default=8)
    tied_lora_alpha: float = field(default=16)
    tied_lora_dropout: float = field(default=0.0)

    def file_sizes(self) -> dict[str, tuple[int, int]]:
        return {"tied_lora_A": (0, self.r)}

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = PeftType("TIED_LORA")
        self.check_whole("r", 1)
        self.check_dropout("tied_lora_dropout")
