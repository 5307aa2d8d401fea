"""Making a method known to PEFT from outside of its tree.

PEFT (0.18 to 0.21) has no entry points for external methods. Its mappings are keyed by the members
of the `PeftType` enum, so a method gets a member of its own first and is then registered through
the public `register_peft_method`.
"""

from __future__ import annotations

from aenum import extend_enum
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from mos.adapters import peft_hooks
from mos.adapters.config import FactoredConfig


def register(name: str, config_cls: type[PeftConfig], model_cls: type[BaseTuner]) -> None:
    """Register a PEFT method, so that `get_peft_model`, `PeftModel.from_pretrained` and
    `AutoPeftModel` serve it as they serve PEFT's own.

    Registering the same classes again (a module reloaded in a notebook) replaces them.

    Args:
        name: lower case. The method's `PeftType` is its upper case and its parameters' prefix is
            `name + "_"`, which transformers hard-codes.
        config_cls: its config; sets `peft_type = PeftType(name.upper())`.
        model_cls: its tuner, with `prefix = name + "_"`.

    Raises:
        RuntimeError: PEFT, or another package, already has a method of this name.
    """
    value = name.upper()
    if value not in PeftType.__members__:
        extend_enum(PeftType, value, value)
    peft_type = PeftType(value)
    present = PEFT_TYPE_TO_CONFIG_MAPPING.get(peft_type)
    peft_hooks.install()
    if issubclass(config_cls, FactoredConfig):
        peft_hooks.allow_hotswap(config_cls, peft_type)
    if present is None:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    elif (present.__module__, present.__qualname__) == (
        config_cls.__module__,
        config_cls.__qualname__,
    ):
        PEFT_TYPE_TO_CONFIG_MAPPING[peft_type] = config_cls
        PEFT_TYPE_TO_TUNER_MAPPING[peft_type] = model_cls
    else:
        raise RuntimeError(
            f"PEFT already has a method named '{name}' "
            f"({present.__module__}.{present.__qualname__}), so "
            f"{config_cls.__module__}.{config_cls.__qualname__} cannot be registered. "
            "Use a PEFT version without it."
        )
