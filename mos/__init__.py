"""MoS, Mixture of Shards (arXiv 2410.00938), as PEFT methods and an instruction-tuning harness.

Importing this package registers the methods with PEFT, so that `get_peft_model`,
`PeftModel.from_pretrained` and `AutoPeftModel` know them. PEFT takes seconds to import, which those
who only read results need not pay: if it is not there yet, it is told as soon as it is imported.
"""

import importlib
import importlib.abc
import importlib.util
import logging
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mos.adapters.mos import MosConfig
    from mos.adapters.prolora import ProloraConfig
    from mos.adapters.tied_lora import TiedLoraConfig

__all__ = ["MosConfig", "ProloraConfig", "TiedLoraConfig"]

# On a CPU, bitsandbytes advises at import to install a package that this project has no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in __all__:
        methods = importlib.import_module("mos.adapters").METHODS.values()
        paths = (method.config or "" for method in methods)
        return pkgutil.resolve_name(next(path for path in paths if path.endswith(f":{name}")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _AfterPeft(importlib.abc.MetaPathFinder):
    """Register the methods of `mos.adapters` right after whoever imports PEFT."""

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:
        if fullname != "peft":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec("peft")
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: Any) -> None:
                execute(module)
                importlib.import_module("mos.adapters").register_all()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


if "peft" in sys.modules:
    importlib.import_module("mos.adapters").register_all()
else:
    sys.meta_path.insert(0, _AfterPeft())
