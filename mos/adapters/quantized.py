"""What quantised base layers need so that gradients are right."""

from __future__ import annotations

from typing import Any

from peft.import_utils import is_bnb_4bit_available
from torch import nn


def keep_4bit_weights_unpacked(model: nn.Module) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights at evaluations on AVX512-BF16 CPUs,
    and undo it where it happened. It then multiplies in a way that autograd does not see, so that
    gradients are wrong, whether or not the layer is adapted, and merging reads packed data.
    """
    if not is_bnb_4bit_available():
        return
    from bitsandbytes.functional import _convert_weight_packed_for_cpu_inverse
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
            weight: Any = module.weight
            if getattr(weight.quant_state, "packing_format_for_cpu", False):
                weight.data, weight.quant_state = _convert_weight_packed_for_cpu_inverse(
                    weight.data, weight.quant_state
                )
