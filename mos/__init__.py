"""MoS, Mixture of Shards (arXiv 2410.00938), as PEFT methods and an instruction-tuning harness.

Importing this package registers the methods with PEFT, so that `get_peft_model`,
`PeftModel.from_pretrained` and `AutoPeftModel` know them.
"""

import logging

# On a CPU, bitsandbytes advises at import to install a package that this project has no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").addHandler(logging.NullHandler())

from mos.adapters.mos import MosConfig  # noqa: E402
from mos.adapters.prolora import ProloraConfig  # noqa: E402
from mos.adapters.tied_lora import TiedLoraConfig  # noqa: E402

__all__ = ["MosConfig", "ProloraConfig", "TiedLoraConfig"]
