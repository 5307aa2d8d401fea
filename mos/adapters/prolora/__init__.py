"""PRoLoRA: partially rotated low-rank adaptation (arXiv 2402.16902)."""

from mos.adapters.prolora.config import ProloraConfig
from mos.adapters.prolora.layer import ProloraLinear
from mos.adapters.prolora.model import ProloraModel
from mos.adapters.registration import register

__all__ = ["ProloraConfig", "ProloraLinear", "ProloraModel"]

register("prolora", ProloraConfig, ProloraModel)
