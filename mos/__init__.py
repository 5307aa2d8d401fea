"""MoS, Mixture of Shards (arXiv 2410.00938), as PEFT methods and an instruction-tuning harness.

Importing this package makes its methods known to PEFT, so that `get_peft_model`,
`PeftModel.from_pretrained` and `AutoPeftModel` serve them. PEFT itself, whose import takes seconds,
is left to those who need it, before or after.
"""

import logging
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
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
        methods = import_module("mos.adapters").METHODS.values()
        return next(m.config_cls for m in methods if (m.config or "").endswith(f":{name}"))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class _RegisterAfterPeft(MetaPathFinder):
    """Has PEFT know the methods as soon as it is imported. PEFT's mappings have no entry points."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.startswith("mos.adapters."):
            # Once PEFT is imported it is told of all methods: none may be half imported by then.
            import_module("peft")
        if name != "peft":
            return None
        # Others only look PEFT up, any number of times: each finds it with the wrapped loader.
        finders = (finder for finder in sys.meta_path if finder is not self)
        found = (finder.find_spec(name, path, target) for finder in finders)
        spec = next((spec for spec in found if spec), None)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register()

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


def _register() -> None:
    import_module("mos.adapters").register_all()


if "peft" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterAfterPeft())
