"""RaSA: LoRA with a part of every layer's ranks in one pool for all layers (arXiv 2503.12576)."""

from mos.adapters.rasa.config import RasaConfig
from mos.adapters.rasa.layer import RasaLinear
from mos.adapters.rasa.model import RasaModel
from mos.adapters.registration import register

__all__ = ["RasaConfig", "RasaLinear", "RasaModel"]

register("rasa", RasaConfig, RasaModel)
