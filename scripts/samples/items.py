"""What every writer of examples produces, whatever corpus it ends in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Item:
    """One example without an instruction.

    Attributes:
        text: the input.
        answers: accepted outputs, best first.
        why: why the first one is right.
        wrong: an output that is not right.
        options: all possible outputs, for classification.
    """

    text: str
    answers: tuple[str, ...]
    why: str
    wrong: str
    options: tuple[str, ...] = ()


def take(items: list[Item], n: int) -> list[Item]:
    """The first `n` items with different texts; says so if there are fewer."""
    unique = list({item.text: item for item in items}.values())
    if len(unique) < n:
        raise ValueError(f"{len(unique)} different examples made, {n} wanted")
    return unique[:n]
