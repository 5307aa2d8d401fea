"""Holding configs against pydantic models, and making such models of others' dataclasses."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mos.errors import UserError, did_you_mean, unknown

M = TypeVar("M", bound=BaseModel)
# A number that stays as it was written: 1 is not 1.0 where it is hashed.
Number = float | int


class Strict(BaseModel):
    """Values have the type of their field, and no other keys are known."""

    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


def check(values: Mapping[str, Any], model: type[M], prefix: str = "", context: Any = None) -> M:
    """The values of a config as a pydantic model.

    Args:
        values: as YAML gives them: mappings, lists, numbers, texts, null.
        model: its fields are the known keys, with their types and ranges.
        prefix: what stands before the keys in messages, such as "adapter.".
        context: pydantic's, for the model's validators.

    Raises:
        UserError: a line for each wrong key: what was found, and what was expected.
    """
    try:
        # As JSON: types are strict, and yet a list serves where a tuple is expected.
        return model.model_validate_json(json.dumps(values, default=str), context=context)
    except ValidationError as error:
        problems = defaultdict(list)  # a union has one for each of its types
        for problem in error.errors():
            problems[_key(problem["loc"], values)].append(problem)
        lines = [_message(prefix + key, of_key, model) for key, of_key in problems.items()]
        raise UserError("\n".join(lines)) from None


def _key(location: Iterable[str | int], values: Any) -> str:
    """The dotted key at fault: of pydantic's location, what is in the values."""
    parts = []
    for part in location:
        in_mapping = isinstance(values, Mapping) and part in values
        if not in_mapping and not (isinstance(values, list) and isinstance(part, int)):
            continue
        values = values[part]
        parts.append(str(part))
    return ".".join(parts)


def _message(key: str, problems: list[Any], model: type[BaseModel]) -> str:
    first = problems[0]
    if first["type"] == "extra_forbidden":
        for part in first["loc"][:-1]:
            model = model.model_fields[part].annotation  # type: ignore[assignment]
        return str(unknown("key", key, model.model_fields))
    if first["type"] == "missing":
        begin = "" if key else " A file of one's own begins with `defaults: [train, _self_]`."
        return f"{key or 'the config'}: no value for {first['loc'][-1]}.{begin}"
    if first["type"] == "value_error":
        error = first["ctx"]["error"]
        named = isinstance(error, UserError) or not key or key.endswith(".")
        return str(error) if named else f"{key}: {error}"
    expected = [re.sub(r"^\w+ should (be )?", "", problem["msg"]) for problem in problems]
    text = " or ".join(dict.fromkeys(expected)).replace("None", "null")
    found = first["input"]
    hint = did_you_mean(found, re.findall(r"'([^']*)'", text))
    return f"{key}={json.dumps(found)}: expected {text}.{hint}"


@cache
def dataclass_model(cls: type, base: type[BaseModel]) -> type[BaseModel]:
    """A pydantic model of the fields of a dataclass, such as a config class of PEFT's.

    Args:
        base: has the model's settings, and fields that replace those of the same name.
    """
    hints = get_type_hints(cls)
    names = (field.name for field in fields(cls) if field.name not in base.model_fields)
    options: Any = {name: (_of_values(hints[name]), None) for name in names}
    return create_model(cls.__name__, __base__=base, **options)


def _of_values(hint: Any) -> Any:
    """An enum's values for "Enum | str", which would take any text."""
    kinds = get_args(hint)
    if any(isinstance(kind, type) and issubclass(kind, Enum) for kind in kinds):
        return Union[tuple(kind for kind in kinds if kind is not str)]  # noqa: UP007
    return hint
