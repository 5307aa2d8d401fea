"""Problems of calculating and deducing, with their reasoning."""

from __future__ import annotations

import random
from datetime import date, timedelta
from itertools import pairwise

from samples.files import words
from samples.solved import Solved, letter_of, options


def boolean_expressions(rng: random.Random) -> Solved:
    """Two brackets joined; every value may be negated."""
    brackets = []
    for _ in range(2):
        left, right = (rng.choice(("True", "False", "not True", "not False")) for _ in range(2))
        brackets.append(f"{left} {rng.choice(('and', 'or'))} {right}")
    first, second = brackets
    values = eval(first), eval(second)
    joint = rng.choice(("and", "or"))
    joined = f"{values[0]} {joint} {values[1]}"
    target = str(eval(joined))
    reasoning = (
        f"First the brackets: {first} is {values[0]}, and {second} is {values[1]}. "
        f"What remains is {joined}, which is {target}."
    )
    return Solved(f"( {first} ) {joint} ( {second} ) is", reasoning, target)


def date_understanding(rng: random.Random) -> Solved:
    today = date(1950, 1, 1) + timedelta(days=rng.randrange(27_000))
    name = rng.choice(words("first names"))
    span, days = rng.choice((("in three days", 3), ("a week from now", 7), ("in ten days", 10)))
    if rng.random() < 0.5:
        span, days = {3: "three days ago", 7: "a week ago", 10: "ten days ago"}[days], -days
    wanted = today + timedelta(days=days)
    wrong = rng.sample((-11, -7, -4, -1, 1, 2, 5, 8, 14), 3)
    choices = [f"{wanted + timedelta(days=d):%m/%d/%Y}" for d in [0, *wrong]]
    right = choices[0]
    rng.shuffle(choices)
    opening = rng.choice(
        (
            f"{name} tears {today:%B} {today.day}, {today.year} off the calendar today.",
            f"The paper in front of {name} is of today, {today:%B} {today.day}, {today.year}.",
            f"It is {today:%m/%d/%Y}, and {name} writes a letter.",
        )
    )
    asked = f"Which date {'will it be' if days > 0 else 'was it'} {span}, as month/day/year?"
    reasoning = (
        f"Today is {today:%m/%d/%Y}. We have to go {abs(days)} days "
        f"{'forward' if days > 0 else 'back'}, which gives {right}."
    )
    return Solved(f"{opening} {asked}\n{options(choices)}", reasoning, letter_of(choices, right))


def dyck_languages(rng: random.Random) -> Solved:
    pairs = {"(": ")", "[": "]", "{": "}", "<": ">"}
    length = rng.randrange(5, 12)
    signs: list[str] = []
    waiting: list[str] = []
    while len(signs) < length or not waiting:
        if waiting and rng.random() < 0.4:
            signs.append(pairs[waiting.pop()])
        else:
            waiting.append(rng.choice(list(pairs)))
            signs.append(waiting[-1])
    target = " ".join(pairs[sign] for sign in reversed(waiting))
    reasoning = (
        f"From left to right, every closed pair drops out. Still open are: {' '.join(waiting)}. "
        f"They are closed from the last to the first: {target}."
    )
    return Solved(
        f"Close all open brackets in the right order. Input: {' '.join(signs)}", reasoning, target
    )


def logical_deduction_three_objects(rng: random.Random) -> Solved:
    things, more, most, least = rng.choice(
        (
            (("red mug", "blue mug", "white mug"), "heavier", "the heaviest", "the lightest"),
            (("pine", "oak", "birch"), "taller", "the tallest", "the shortest"),
            (("tractor", "van", "scooter"), "faster", "the fastest", "the slowest"),
            (("novel", "atlas", "cookbook"), "thicker", "the thickest", "the thinnest"),
        )
    )
    top, middle, low = rng.sample(things, 3)
    facts = [
        f"The {top} is {more} than the {middle}.",
        f"The {low} is not {more} than the {middle}.",
    ]
    rng.shuffle(facts)
    wanted, place = rng.choice(((top, most), (low, least), (middle, "in the middle")))
    choices = [f"The {thing} is {place}" for thing in things]
    right = f"The {wanted} is {place}"
    opening = (
        f"A {things[0]}, {'an' if things[1][0] in 'ao' else 'a'} {things[1]} and a {things[2]}"
    )
    question = f"{opening} are compared; no two are equal. {' '.join(facts)}\n{options(choices)}"
    reasoning = (
        f"The {top} comes before the {middle}, and the {low} comes after it. So the order, from "
        f"{most} on, is {top}, {middle}, {low}. {right}."
    )
    return Solved(question, reasoning, letter_of(choices, right))


def multistep_arithmetic_two(rng: random.Random) -> Solved:
    a, b, c, d = (rng.randrange(-9, 10) for _ in range(4))
    first, second = f"{a} * {b}", f"{c} - {d}"
    sign = rng.choice("+-")
    left, right = a * b, c - d
    value = left + right if sign == "+" else left - right
    reasoning = (
        f"The first bracket is {left}. The second bracket is {right}. "
        f"{'Their sum' if sign == '+' else 'The first less the second'} is {value}."
    )
    return Solved(f"(({first}) {sign} ({second})) =", reasoning, str(value))


def navigate(rng: random.Random) -> Solved:
    moves = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
    steps = [(rng.choice(list(moves)), rng.randrange(1, 6)) for _ in range(rng.choice((2, 3)))]
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}
    steps += [(back[way], count) for way, count in steps]
    if rng.random() < 0.5:
        steps[-1] = (steps[-1][0], steps[-1][1] + rng.choice((1, 2)))
    rng.shuffle(steps)
    x = y = 0
    trace = []
    for way, count in steps:
        x, y = x + moves[way][0] * count, y + moves[way][1] * count
        trace.append(f"{count} {way}: ({x}, {y}).")
    target = "No" if x or y else "Yes"
    plan = ", ".join(f"{count} {'metre' if count == 1 else 'metres'} {way}" for way, count in steps)
    where = rng.choice(("the lamp post", "the well", "the old oak", "the gate"))
    asked = f"Is it back at {where} then?\nOptions:\n- Yes\n- No"
    question = f"A robot starts at {where} and goes {plan}. {asked}"
    end = "the start" if target == "Yes" else "not the start"
    return Solved(question, f"It starts at (0, 0). {' '.join(trace)} That is {end}.", target)


def web_of_lies(rng: random.Random) -> Solved:
    people = rng.sample(words("first names"), 4)
    honest = rng.random() < 0.5
    sentences = [f"{people[0]} {'tells the truth' if honest else 'lies'}."]
    trace = [sentences[0]]
    for before, person in pairwise(people):
        claims_truth = rng.random() < 0.5
        claim = f"{before} {'tells the truth' if claims_truth else 'lies'}"
        sentences.append(f"{person} says that {claim}.")
        correct = claims_truth == honest
        honest = correct
        trace.append(
            f"{person} says that {claim}, which is {'right' if correct else 'wrong'}, so {person} "
            f"{'tells the truth' if honest else 'lies'}."
        )
    question = f"{' '.join(sentences)} Does {people[-1]} tell the truth?"
    return Solved(question, " ".join(trace), "Yes" if honest else "No")
