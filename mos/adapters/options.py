"""Checking the values of a config file against the fields of a dataclass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from mos.errors import UserError, unknown


def check_options(options: Mapping[str, Any], config_cls: type | None, method: str) -> None:
    """Check that each option is a field of the dataclass and has its type.

    Raises:
        UserError: naming the key, what was found and what is expected.
    """
    known = {f.name for f in fields(config_cls)} if config_cls else set()
    hints = get_type_hints(config_cls) if config_cls else {}
    for key, value in options.items():
        if key not in known:
            raise unknown(f"option of method '{method}':", f"adapter.{key}", known)
        if not _has_type(value, hints[key]):
            raise UserError(
                f"adapter.{key}: {value!r} is a {type(value).__name__}; method '{method}' expects "
                f"{_type_name(hints[key])}."
            )


def check_file_keys(config_cls: type, keys: Iterable[str]) -> None:
    """Check that a saved config has only known fields, where PEFT drops others with a warning.

    Raises:
        UserError: naming the keys. They may change what the adapter computes.
    """
    unknown = sorted(set(keys) - {f.name for f in fields(config_cls)})
    if unknown:
        raise UserError(
            f"The adapter's config has keys that this version of {config_cls.__name__} does not "
            f"know: {', '.join(unknown)}. It was saved by a newer version of mos or PEFT, or "
            "edited: upgrade, or remove the keys."
        )


def _has_type(value: Any, hint: Any) -> bool:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_has_type(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict)
    if hint in (int, float):
        numbers = int if hint is int else (int, float)
        return isinstance(value, numbers) and not isinstance(value, bool)
    return not isinstance(hint, type) or isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_type_name, get_args(hint))))
    if get_origin(hint) is Literal:
        return ", ".join(map(repr, get_args(hint)))
    if get_origin(hint) is not None:
        return str(hint)
    return "null" if hint is NoneType else hint.__name__
