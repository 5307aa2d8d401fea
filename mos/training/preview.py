"""What a dry run of a sweep shows: each member with its run and how far that is.

Hydra composes each member of a sweep twice, which takes hundreds of members minutes. Members that
differ in values alone share a composition here, and those that differ in the seed a validation.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator

from hydra import compose
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from rich.table import Column, Table

from mos.config import validate
from mos.console import console, say
from mos.errors import UserError
from mos.identity import open_run
from mos.preflight import check_shapes, missing
from mos.run import Run


def preview(hydra: DictConfig) -> int:
    """Print a line a member, and what is missing for them; returns how many cannot run.

    Args:
        hydra: Hydra's own config of the sweep.
    """
    table = Table("member", "state", Column("run", no_wrap=True))
    states: Counter[str] = Counter()
    problems: dict[str, None] = {}
    for member, found in members(hydra):
        state, name = ("cannot run", "") if isinstance(found, str) else (found.status, found.name)
        states[state] += 1
        if isinstance(found, str):
            problems[found] = None
        table.add_row(" ".join(member), state, name)
    console.print(table)
    for problem in problems:
        say(f"missing: {problem}")
    counts = ", ".join(f"{count} {state}" for state, count in states.items())
    say(f"{states.total()} members: {counts}; dry run: nothing was done")
    return states["cannot run"]


def members(hydra: DictConfig) -> Iterator[tuple[list[str], Run | str]]:
    """The overrides of each member, with its run, or with why it cannot run."""
    loader = GlobalHydra.instance().config_loader()
    parser = OverridesParser.create(config_loader=loader)
    given = parser.parse_overrides(list(hydra.overrides.task))
    swept = [one for one in given if one.is_sweep_override()]
    fixed = [str(one.input_line) for one in given if not one.is_sweep_override()]

    def composes(one: Override) -> bool:
        return str(one.input_line)[0] in "+~" or bool(loader.get_group_options(one.key_or_group))

    groups, values = [o for o in swept if composes(o)], [o for o in swept if not composes(o)]
    for choice in itertools.product(*map(_alternatives, groups)):
        cfg = compose(hydra.job.config_name, overrides=[*fixed, *choice])
        seed0: dict[tuple[str, ...], Run | str] = {}  # the run of one seed, or what is wrong
        for value in itertools.product(*map(_alternatives, values)):
            for text in value:
                change = parser.parse_override(text)
                OmegaConf.update(cfg, change.key_or_group, change.value())
            without_seed = tuple(text for text in value if not text.startswith("seed="))
            if without_seed not in seed0:
                seed0[without_seed] = _run(cfg)
            run = seed0[without_seed]
            if isinstance(run, Run):
                run = Run(run.path.with_name(f"seed{cfg.seed}"))
            yield [*choice, *value], run


def _alternatives(swept: Override) -> list[str]:
    return [f"{swept.get_key_element()}={value}" for value in swept.sweep_string_iterator()]


def _run(cfg: DictConfig) -> Run | str:
    try:
        config = validate(cfg)
        check_shapes(config)
    except UserError as error:
        return str(error)
    return "\n".join(missing(config)) or open_run(config)
