"""A problem with its solution, as every BBH task gives it."""

from __future__ import annotations

from typing import NamedTuple


class Solved(NamedTuple):
    """A problem, the reasoning that solves it, and the target."""

    question: str
    reasoning: str
    target: str


def options(choices: list[str]) -> str:
    lines = [f"({letter}) {choice}" for letter, choice in zip("ABCDEF", choices, strict=False)]
    return "\n".join(["Options:", *lines])


def letter_of(choices: list[str], right: str) -> str:
    return f"({'ABCDEF'[choices.index(right)]})"
