"""Tied LoRA: one pair of factors for all blocks, two vectors per block (arXiv 2311.09578)."""

from mos.adapters.registration import register
from mos.adapters.tied_lora.config import TiedLoraConfig
from mos.adapters.tied_lora.layer import TiedLoraLinear
from mos.adapters.tied_lora.model import TiedLoraModel

__all__ = ["TiedLoraConfig", "TiedLoraLinear", "TiedLoraModel"]

register("tied_lora", TiedLoraConfig, TiedLoraModel)
