"""Checkpoints that are whole, by their seal, or not taken."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.functional import get_paged
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from mos.console import say
from mos.errors import UserError
from mos.files import damage, discard
from mos.models.memory import PAGED_FROM

NAMED = re.compile(rf"{PREFIX_CHECKPOINT_DIR}-\d+")


def newest_valid(folder: Path) -> Path | None:
    """The newest checkpoint that is whole; those past it are named, and make room.

    The run will write checkpoints of the same names again.
    """
    for checkpoint in reversed(_by_step(folder)):
        reason = damage(checkpoint, trust_times=False)
        if not reason:
            return checkpoint
        say(f"{checkpoint.name} is not used: {reason}")
        discard(checkpoint)
    return None


def rotate(folder: Path, limit: int | None, best: int | None = None) -> None:
    """Remove the oldest checkpoints beyond `limit`; the newest, and that of step `best`, stay.

    Called once the newest is sealed: transformers' own rotation removes the older ones before, and
    a kill in between would leave none.
    """
    checkpoints = _by_step(folder)
    old = [path for path in checkpoints[:-1] if step_of(path) != best]
    for checkpoint in old[: max(0, len(checkpoints) - (limit or len(checkpoints)))]:
        discard(checkpoint)


def _by_step(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the oldest first; what has another name is not looked at."""
    return sorted((p for p in folder.glob("*") if NAMED.fullmatch(p.name)), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of optimizer steps after which a checkpoint was taken."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def leaves(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in dicts and lists within one another, with the keys that lead to it."""
    if isinstance(tree, Mapping | list | tuple):
        items = tree.items() if isinstance(tree, Mapping) else enumerate(tree)
        for key, value in items:
            yield from leaves(value, f"{place}.{key}" if place else str(key))
    else:
        yield place, tree


def check_same_state(saved: Mapping[str, Any], loaded: Mapping[str, Any], optim: str) -> None:
    """Compare an optimizer's `state_dict` after loading with the one that was saved.

    bitsandbytes' paged and 8-bit optimizers have lost state on resume in several versions; a run
    that goes on with another state is worse than one that stops.

    Raises:
        UserError: the state did not survive, and what to set instead.
    """
    found = dict(leaves(loaded))
    for place, value in leaves(saved):
        other = found.get(place)
        if isinstance(value, torch.Tensor):
            same = (
                isinstance(other, torch.Tensor)
                and other.dtype == value.dtype
                and torch.equal(other.cpu(), value)
            )
        else:
            same = other == value
        if not same:
            raise UserError(
                f"trainer.optim={optim} did not get its state back from the checkpoint ({place}):"
                " this run cannot be continued exactly. Start it anew with overwrite=true, and use"
                " trainer.optim=adamw_torch where runs get interrupted."
            )


def page_state(optimizer: Any) -> None:
    """Put loaded state where a paged optimizer of bitsandbytes puts what it makes itself.

    It leaves it in the GPU's memory, where a run that fitted before it was stopped may not fit.
    """
    if not getattr(optimizer, "is_paged", False):
        return
    for parameter, state in optimizer.state.items():
        if parameter.device.type == "cpu" or parameter.numel() < PAGED_FROM:
            continue
        for name in {"state1", "state2"} & state.keys():
            loaded = state[name]
            paged = get_paged(*loaded.shape, dtype=loaded.dtype, device=parameter.device)
            state[name] = paged.copy_(loaded)
            optimizer.page_mng.paged_tensors.append(paged)
