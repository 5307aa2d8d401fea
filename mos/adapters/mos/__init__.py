"""MoS, Mixture of Shards (arXiv 2410.00938), as a PEFT method.

Importing this package registers it; a file saved with it can only be loaded after `import mos`.
"""

from mos.adapters.mos.config import MosConfig
from mos.adapters.mos.layer import MosLinear
from mos.adapters.mos.model import MosModel
from mos.adapters.registration import register

register("mos", MosConfig, MosModel)

__all__ = ["MosConfig", "MosLinear", "MosModel"]
