"""Errors that a user can correct: what was found and where, what was expected, what to do.

`check` holds values against pydantic models, and raises them.
"""

from __future__ import annotations

import difflib
import errno
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import fields
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

# More names than this are not listed.
LISTED = 40


class UserError(ValueError):
    """Something the user asked for or supplied is wrong. Commands print only its message.

    Attributes:
        exit_status: of the command that it ends.
    """

    exit_status = 2


class LeftOutError(UserError):
    """Some of several members could not be used; the others were.

    Args:
        failures: the members that were left out, each with the reason.
        of: how many there were.
    """

    exit_status = 1

    def __init__(self, failures: Mapping[str, str], of: int) -> None:
        self.failures, self.of = dict(failures), of
        reasons: dict[str, list[str]] = {}
        for name, reason in failures.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"{', '.join(names)}: {reason}" for reason, names in reasons.items()]
        super().__init__("\n".join([f"{len(failures)} of {of} were left out:", *lines]))

    def __reduce__(self):
        return type(self), (self.failures, self.of)


class DataError(UserError):
    """A row of a data file, or the file, cannot be used.

    Args:
        path: the file.
        line: 1-based line (or row) number; None if it concerns the whole file.
        reason: what is wrong and what was expected.
        hint: what to do about it.
    """

    def __init__(self, path: str | Path, line: int | None, reason: str, hint: str = "") -> None:
        self.path, self.line, self.reason, self.hint = Path(path), line, reason, hint
        place = f"{path}:{line}" if line is not None else f"{path}"
        super().__init__(f"{place}: {reason}" + (f" {hint}" if hint else ""))

    def __reduce__(self):
        return type(self), (self.path, self.line, self.reason, self.hint)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the job needs does not exist."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


def write_fault(error: BaseException) -> str | None:
    """What kept a file from being written ("No space left on device"); None for other errors.

    safetensors and torch say it in exceptions of their own, torch without the reason.
    """
    number = error.errno if isinstance(error, OSError) else None
    if said := re.search(r"\(os error (\d+)\)", str(error)):
        number = int(said[1])
    if number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
        return os.strerror(number)
    of_torch = re.search(r"inline_container.*unexpected pos|PytorchStreamWriter", str(error))
    return "is the disk full?" if of_torch else None


def did_you_mean(name: Any, known: Iterable[Any]) -> str:
    """ " Did you mean 'x'?" with the closest of the known names; "" if none is close."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.5)
    return f" Did you mean '{close[0]}'?" if close else ""


def unknown(what: str, name: Any, known: Iterable[str]) -> UserError:
    """The error for a name, or a dotted key that ends in one, which is not among the known ones."""
    known = sorted(known)
    among = f"Known: {', '.join(known)}." if known else "There are none."
    if len(known) > LISTED:
        among = ""
    hint = did_you_mean(str(name).rpartition(".")[2], known)
    return UserError(f"Unknown {what} '{name}'.{hint} {among}".rstrip())


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
