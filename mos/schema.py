"""Holding configs against pydantic models, and making such models of others' dataclasses."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import json
import re
import sys
import typing
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

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
        return f"{key or 'the config'}: no value for {first['loc'][-1]}."
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
def dataclass_model(path: str, base: type[BaseModel]) -> type[BaseModel]:
    """A pydantic model of the fields of a dataclass, read from its source.

    The config classes of PEFT and transformers say which keys exist and of which types, but
    importing them takes many seconds, and a mistyped key should be named at once.

    Args:
        path: "module:Class"; the module may import the class from elsewhere.
        base: has the model's settings, and fields that replace those of the same name.
    """
    fields: Any = {
        name: field
        for name, field in declared_fields(path).items()
        if name not in base.model_fields
    }
    return create_model(path.partition(":")[2], __base__=base, **fields)


def declared_fields(path: str) -> dict[str, tuple[Any, Any]]:
    """The fields of the dataclass "module:Class", those of its bases first: (type, default).

    A type that is not built in or from `typing` counts as `Any`, an enum as its values, and a
    default that is not written out as None.
    """
    module, _, name = path.partition(":")
    found = _find_class(module, name)
    if found is None:  # made in a notebook, or nothing that has fields
        cls = getattr(sys.modules.get(module), name, object)
        hints = get_type_hints(cls) if is_dataclass(cls) else {}
        return {name: (hint, getattr(cls, name, None)) for name, hint in hints.items()}
    module, node = found
    fields: dict[str, tuple[Any, Any]] = {}
    for base in node.bases:
        fields |= declared_fields(f"{module}:{ast.unparse(base)}")
    for line in node.body:
        if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation):
            hint = _evaluate(line.annotation, module)
            fields[ast.unparse(line.target)] = hint, _default(line.value)
    return fields


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):  # field(default=...)
        value = next((word.value for word in value.keywords if word.arg == "default"), None)
    return value.value if isinstance(value, ast.Constant) else None


def _evaluate(annotation: ast.expr, module: str) -> Any:
    hint = eval(ast.unparse(annotation), {}, _Names(module))
    # "SchedulerType | str" means the values of the enum.
    literals = [kind for kind in get_args(hint) if get_origin(kind) is Literal]
    if any(isinstance(get_args(kind)[0], str) for kind in literals):
        return Union[tuple(kind for kind in get_args(hint) if kind is not str)]  # noqa: UP007
    return hint


class _Names(dict):
    """What the names in an annotation mean."""

    def __init__(self, module: str) -> None:
        self.module = module

    def __missing__(self, name: str) -> Any:
        for scope in (builtins, typing):
            if hasattr(scope, name):
                return getattr(scope, name)
        found = _find_class(self.module, name)
        if found and any("Enum" in ast.unparse(base) for base in found[1].bases):
            values = [
                line.value.value
                for line in found[1].body
                if isinstance(line, ast.Assign) and isinstance(line.value, ast.Constant)
            ]
            return Literal[tuple(values)]
        return Any


def _find_class(module: str, name: str) -> tuple[str, ast.ClassDef] | None:
    """The module that defines a class, and its definition, following imports by name."""
    spec = _spec(module)
    if spec is None or not spec.origin or not spec.origin.endswith(".py"):
        return None
    package = module if spec.submodule_search_locations else module.rpartition(".")[0]
    for node in ast.walk(_parse(spec.origin)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    source = "." * node.level + (node.module or "")
                    return _find_class(importlib.util.resolve_name(source, package), alias.name)
    return None


@cache
def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages above it."""
    parent = module.rpartition(".")[0]
    above = _spec(parent) if parent else None
    if parent and above is None:
        return None
    path = above.submodule_search_locations if above else None
    found = (finder.find_spec(module, path) for finder in sys.meta_path)
    return next((spec for spec in found if spec), None)


@cache
def _parse(file: str) -> ast.Module:
    return ast.parse(Path(file).read_text("utf-8"))
