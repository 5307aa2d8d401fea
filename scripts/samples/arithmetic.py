"""Word problems with their steps, sums, sequences and changes of units."""

from __future__ import annotations

import operator
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from samples.files import cells, held_out, sections, words
from samples.items import Item, take

NAMES = words("first names")
OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}


@dataclass(frozen=True)
class Problem:
    """A question, its solution and its answer.

    `steps` are sentences with the calculation written out (`4 * 3 = 12`); `annotated` are the same
    with GSM8K's calculator marks (`4 * 3 = <<4*3=12>>12`).
    """

    question: str
    steps: tuple[str, ...]
    annotated: tuple[str, ...]
    answer: int


@dataclass(frozen=True)
class _Template:
    ranges: dict[str, range]
    questions: tuple[str, ...]
    steps: tuple[tuple[str, str, str], ...]


@cache
def _templates() -> tuple[_Template, ...]:
    found = []
    for lines in sections("problems.txt").values():
        ranges = {}
        for part in lines[0].removeprefix("vars ").split(", "):
            name, low, high, step = re.fullmatch(r"(\w) (\d+)-(\d+)(?:/(\d+))?", part).groups("1")
            ranges[name] = range(int(low), int(high) + 1, int(step))
        questions = tuple(line[2:] for line in lines if line.startswith("? "))
        steps = []
        for line in lines[1 + len(questions) :]:
            calculation, sentence = cells(line)
            result, expression = calculation.split(" = ")
            steps.append((result, expression, sentence))
        found.append(_Template(ranges, questions, tuple(steps)))
    return tuple(found)


def _evaluate(tokens: list[str], values: dict[str, float]) -> float:
    """A chain of `*` and `/`, or a single `+` or `-`, from left to right."""
    total, *rest = (values.get(t, t) for t in tokens)
    total = float(total)
    for sign, right in zip(rest[::2], rest[1::2], strict=True):
        total = OPERATORS[str(sign)](total, float(right))
    return total


def _draw(rng: random.Random, template: _Template) -> Problem | None:
    """A problem with fresh numbers, or None if a result is not whole and positive."""
    values: dict[str, Any] = {name: rng.choice(r) for name, r in template.ranges.items()}
    values["name"] = rng.choice(NAMES)
    question = rng.choice(template.questions).format(**values)
    steps, annotated = [], []
    for result, expression, sentence in template.steps:
        tokens = re.findall(r"\w+|[-+*/]", expression)
        value = _evaluate(tokens, values)
        if value <= 0 or value != int(value):
            return None
        value = int(value)
        sum_ = " ".join(str(values.get(token, token)) for token in tokens)
        marks = f"<<{sum_.replace(' ', '')}={value}>>"
        steps.append(sentence.format(**values | {result: f"{sum_} = {value}"}))
        annotated.append(sentence.format(**values | {result: f"{sum_} = {marks}{value}"}))
        values[result] = value
    return Problem(question, tuple(steps), tuple(annotated), value)


def problems(rng: random.Random, for_benchmark: bool = False) -> Iterator[Problem]:
    """Endless different problems, all templates in turn; training and benchmarks share none."""
    seen = set()
    while True:
        for template in rng.sample(_templates(), len(_templates())):
            problem = None
            while (
                problem is None
                or problem.question in seen
                or held_out(problem.question) != for_benchmark
            ):
                problem = _draw(rng, template)
            seen.add(problem.question)
            yield problem


def word_problems(rng: random.Random, n: int) -> list[Item]:
    """The answer is the bare number."""
    items = []
    for _, problem in zip(range(n), problems(rng), strict=False):
        wrong = str(problem.answer + rng.choice((-2, -1, 1, 2, 10)))
        items.append(Item(problem.question, (str(problem.answer),), " ".join(problem.steps), wrong))
    return take(items, n)


def sums(rng: random.Random, n: int) -> list[Item]:
    """Short calculations in figures or in words."""
    spoken = {"+": "plus", "-": "minus", "*": "times"}
    items = []
    while len({item.text for item in items}) < n:
        a, b = rng.randrange(2, 60), rng.randrange(2, 20)
        sign = rng.choice("+-*")
        value = OPERATORS[sign](a, b)
        in_words = f"{a} {spoken[sign]} {b}"
        text = rng.choice((f"{a} {sign} {b}", f"What is {in_words}?", f"Work out {in_words}."))
        items.append(Item(text, (str(value),), f"{a} {sign} {b} = {value}", str(value + 1)))
    return take(items, n)


def sequences(rng: random.Random, n: int) -> list[Item]:
    """Five numbers made by one rule, the sixth wanted."""
    items = []
    while len({item.text for item in items}) < n:
        start, step = rng.randrange(1, 40), rng.randrange(2, 13)
        kind = rng.choice(("add", "subtract", "double", "squares", "growing"))
        numbers, why = {
            "add": ([start + step * i for i in range(6)], f"Each number is {step} larger."),
            "subtract": ([90 - step * i for i in range(6)], f"Each number is {step} smaller."),
            "double": ([step * 2**i for i in range(6)], "Each number is twice the one before."),
            "squares": ([(step + i) ** 2 for i in range(6)], "They are the squares in a row."),
            "growing": (
                [start + step * i + i * (i - 1) // 2 for i in range(6)],
                "The gap grows by one each time.",
            ),
        }[kind]
        *shown, answer = numbers
        items.append(Item(", ".join(map(str, shown)), (str(answer),), why, str(shown[-1])))
    return take(items, n)


UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("kilograms", "grams", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("days", "hours", 24),
    ("weeks", "days", 7),
    ("litres", "millilitres", 1000),
    ("dozens", "pieces", 12),
)


def unit_changes(rng: random.Random, n: int) -> list[Item]:
    items = []
    while len({item.text for item in items}) < n:
        large, small, factor = rng.choice(UNITS)
        count = rng.randrange(2, 50)
        if rng.random() < 0.5:
            text = f"{count} {large} in {small}"
            answer, wrong = f"{count * factor} {small}", f"{count} {small}"
        else:
            text = f"{count * factor} {small} in {large}"
            answer, wrong = f"{count} {large}", f"{count * factor} {large}"
        why = f"There are {factor} {small} to every one of the {large}."
        items.append(Item(text, (answer,), why, wrong))
    return take(items, n)
