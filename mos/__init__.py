"""MoS, Mixture of Shards (arXiv 2410.00938), as PEFT methods and an instruction-tuning harness.

Importing this package registers its methods with PEFT, so that `get_peft_model`,
`PeftModel.from_pretrained` and `AutoPeftModel` know them, whatever else was imported before.

Registering imports torch and PEFT, which takes seconds. The commands of this package
(`mos summarize`, `python -m mos.train`, ...) and the members of their sweeps are the exception:
they start without it, because some of them need neither; there the modules that need a method
register it.
"""

import importlib
import logging
import os
import pkgutil
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mos.adapters.mos import MosConfig
    from mos.adapters.prolora import ProloraConfig
    from mos.adapters.rasa import RasaConfig
    from mos.adapters.tied_lora import TiedLoraConfig

__all__ = ["MosConfig", "ProloraConfig", "RasaConfig", "TiedLoraConfig"]

# On a CPU, bitsandbytes advises at import to install a package that this project has no use for.
logging.getLogger("bitsandbytes.backends.cpu.ops").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name in __all__:
        methods = importlib.import_module("mos.adapters").METHODS.values()
        paths = (method.config or "" for method in methods)
        return pkgutil.resolve_name(next(path for path in paths if path.endswith(f":{name}")))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _command_is_starting() -> bool:
    """Whether Python is about to run `python -m mos[.module]` or the console script `mos`.

    What was asked for stands in `sys.orig_argv` where `sys.argv` begins. While Python looks up the
    module of `python -m`, `sys.argv[0]` is "-m". A process that a command has started (by
    multiprocessing) may have that command's `sys.argv`, but never its `sys.orig_argv`.
    """
    program = sys.argv[0] if sys.argv else ""
    asked_for = "".join(sys.orig_argv[-len(sys.argv) :][:1])
    if program == "-m":
        return asked_for.removeprefix("-m").split(".")[0] == __name__
    script = Path(sysconfig.get_path("scripts"), __name__)
    return program == asked_for and script.resolve() == Path(program).resolve()


# Set by a command for the processes of a sweep's launcher, which go on with that command.
if not (os.environ.pop("MOS_SWEEP_MEMBER", "") or _command_is_starting()):
    importlib.import_module("mos.adapters").register_all()
