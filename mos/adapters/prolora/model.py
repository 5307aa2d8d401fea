from __future__ import annotations

from mos.adapters.prolora.layer import ProloraLinear
from mos.adapters.tuner import FactoredTuner


class ProloraModel(FactoredTuner):
    """A model whose linear layers carry PRoLoRA updates; everything is the layer's own."""

    prefix = "prolora_"
    tuner_layer_cls = ProloraLinear
