"""Settings of each method that come nearest to a number of trainable parameters on a model."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from rich.table import Table

from mos.config import Adapter, TrainConfig, compose_config, resolved
from mos.console import console, note, say
from mos.errors import UserError
from mos.methods import METHODS, row_label
from mos.sizes import Layers

# Of a method whose settings are in several rows, the first that comes as near as this is taken.
NEAR = 0.01
UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
# Options that say which layers are adapted. They mean the same to all methods.
TARGETING = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


def parameters(budget: str | int) -> int:
    """`0.6M`, `600k` and `600000` as a number.

    Raises:
        ValueError: it is none, or no whole number of at least 1.
    """
    text = str(budget)
    unit = UNITS.get(text[-1:], 1)
    try:
        number = float(text[:-1] if unit > 1 else text) * unit
    except ValueError:
        number = 0
    if number < 1 or abs(number - round(number)) > 1e-6:
        raise ValueError(f"expected a number of parameters such as 600000, 600k or 0.6M: '{text}'.")
    return round(number)


def sized(
    config: TrainConfig, budget: int, names: Sequence[str] = (), fixed: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """The settings nearest to a budget, method by method.

    Args:
        config: a validated job; its model, and its other settings, adapter aside.
        budget: trainable parameters.
        names: files of configs/adapter; none stands for all methods.
        fixed: overrides of adapter keys that hold for each of them.

    Yields:
        `name`, `label`, and `overrides`, `trainable_parameters`, `percent_off` and `unreachable`:
        `floor` or `ceiling` where the method has only more or only fewer parameters, else null. A
        method that cannot be put on the model has a `problem` in place of the latter four.

    Raises:
        UserError: a file that is not there or has no adapter; unknown shapes of the model.
    """
    from mos.estimate import count, trainable_parameters

    @cache
    def layers_of(targeting: str) -> Layers:
        lora = {"method": "lora", "r": 1, **json.loads(targeting)}
        anatomy = count(config.but(adapter=Adapter(**lora)))
        return Layers(anatomy.names, anatomy.adapted)

    for name in names or [name for name, method in METHODS.items() if method.config]:
        options = resolved(compose_config([f"adapter={name}", *fixed]))["adapter"]
        method = METHODS[options["method"]]
        if method.config is None:
            raise UserError(f"methods=[{name}]: method '{options['method']}' has no adapter.")
        note(f"searching {name} on {config['model']['name']}")
        found: dict[str, Any] = {"name": name, "label": row_label(options)}
        targeting = {key: options[key] for key in TARGETING if key in options}

        def count_with(settings: Mapping[str, Any], options: Mapping[str, Any] = options) -> int:
            return trainable_parameters(config.but(adapter=Adapter(**{**options, **settings})))

        try:
            layers = layers_of(json.dumps(targeting))
            settings, total, unreachable = _search(
                count_with, method.sizes(options, layers), budget
            )
        except UserError as error:
            yield {**found, "problem": str(error)}
            continue
        changes = [f"adapter.{key}={value}" for key, value in settings.items()]
        yield {
            **found,
            "overrides": [f"adapter={name}", *fixed, *changes],
            "trainable_parameters": total,
            "percent_off": 100 * (total - budget) / budget,
            "unreachable": unreachable,
        }


def _search(
    count_with: Callable[[Mapping[str, Any]], int], rows: Sequence[Any], budget: int
) -> tuple[dict[str, Any], int, str | None]:
    """Of rows of settings (`Sizes`) the nearest ones, their count, and the bound that they are."""
    found = []
    for sizes in rows:
        count = cache(lambda size, sizes=sizes: count_with(sizes.settings(size)))
        size = nearest(count, sizes.least, sizes.most, budget)
        found.append((sizes, size, count(size)))
        if abs(count(size) - budget) <= NEAR * budget:
            break
    bound = None
    if all(size == sizes.least and total > budget for sizes, size, total in found):
        bound = "floor"
    if all(size == sizes.most and total < budget for sizes, size, total in found):
        bound = "ceiling"
    sizes, size, total = min(found, key=lambda one: abs(one[2] - budget))
    return sizes.settings(size), total, bound


def nearest(count: Callable[[int], int], least: int, most: int, budget: int) -> int:
    """The size in least ... most whose count is nearest to the budget; of two, the smaller.

    Args:
        count: does not fall as the size grows. Called few times: it is taken for a straight line,
            and after some calls that did not settle it the bounds are halved.
    """
    known = {least: count(least)}
    low, high = least, most + 1  # count(low) <= budget < count(high), as far as there are such
    last = None
    while high - low > 1 and known[low] < budget:
        if high in known and len(known) > 6:
            guess = (low + high) // 2
        else:
            other = high if high in known else last
            rise = 0 if other is None else known[other] - known[low]
            if other is None:
                guess = low + 1
            elif rise == 0:
                guess = most
            else:
                guess = low + (budget - known[low]) * (other - low) // rise
            guess = min(max(guess, low + 1), high - 1)
        known[guess] = count(guess)
        if known[guess] <= budget:
            low, last = guess, low
        else:
            high = guess
    return min(known, key=lambda size: (abs(known[size] - budget), size))


def show(budget: int, model: str, methods: Sequence[Mapping[str, Any]]) -> None:
    """Print what `sized` found: how near each method comes, then the overrides, a line each."""
    table = Table(title=f"{budget:,} parameters on {model}", box=None, padding=(0, 1, 0, 0))
    table.title_justify = "left"
    for title in ("method", "parameters", "off", ""):
        table.add_column(title, justify="right" if title in ("parameters", "off") else "left")
    for one in methods:
        if "problem" in one:
            table.add_row(one["label"], "–", "–", one["problem"])
            continue
        table.add_row(
            one["label"],
            f"{one['trainable_parameters']:,}",
            f"{one['percent_off']:+.2f}%",
            f"unreachable: its {one['unreachable']}" if one["unreachable"] else "",
        )
    console.print(table)
    for one in methods:
        if "overrides" in one:
            say(shlex.join(one["overrides"]))
