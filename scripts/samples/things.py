"""Problems about words and everyday things, with their reasoning."""

from __future__ import annotations

import random

from samples.files import words
from samples.solved import Solved, letter_of, options

ADJECTIVES = (
    ("opinion", ("lovely", "strange", "awful", "pleasant")),
    ("size", ("tiny", "huge", "small", "large")),
    ("age", ("ancient", "new", "old")),
    ("shape", ("round", "square", "flat")),
    ("colour", ("green", "white", "purple", "black")),
    ("origin", ("Turkish", "Mexican", "Polish", "Korean")),
    ("material", ("wooden", "glass", "woollen", "iron")),
)
THINGS = ("box", "lamp", "ring", "bench", "bowl", "doll", "gate")
COUNTED = {
    "fruits": ("apple", "pear", "plum", "lemon", "peach", "banana", "cherry"),
    "tools": ("hammer", "saw", "chisel", "spanner", "drill", "file"),
    "animals": ("goat", "duck", "horse", "rabbit", "donkey", "pig"),
    "pieces of furniture": ("chair", "table", "bed", "sofa", "stool", "bench"),
}
NUMBERS = ("a", "two", "three", "four", "five")
COLOURS = ("red", "blue", "green", "yellow", "black", "white", "orange", "brown")
SMALL = ("button", "pencil", "ribbon", "coin", "cup", "key", "sock", "stamp")


def hyperbaton(rng: random.Random) -> Solved:
    kinds = sorted(rng.sample(range(len(ADJECTIVES)), 3))
    ordered = [rng.choice(ADJECTIVES[kind][1]) for kind in kinds]
    mixed = ordered[:]
    while mixed == ordered:
        rng.shuffle(mixed)
    thing = rng.choice(THINGS)
    right = " ".join([*ordered, thing])
    choices = [right, " ".join([*mixed, thing])]
    rng.shuffle(choices)
    order = ", ".join(
        f"{word} ({ADJECTIVES[k][0]})" for word, k in zip(ordered, kinds, strict=True)
    )
    reasoning = (
        "English puts opinion before size, then age, shape, colour, origin and material. "
        f"Here this gives: {order}. The phrase is {right}."
    )
    question = f"Which phrase has its adjectives in the usual English order?\n{options(choices)}"
    return Solved(question, reasoning, letter_of(choices, right))


def object_counting(rng: random.Random) -> Solved:
    kind, other = rng.sample(list(COUNTED), 2)
    named = rng.sample(COUNTED[kind], 3)
    strange = rng.sample(COUNTED[other], rng.choice((0, 1, 2)))
    counts = {thing: rng.randrange(1, 6) for thing in [*named, *strange]}
    things = list(counts)
    rng.shuffle(things)

    def phrase(thing: str) -> str:
        plural = {"cherry": "cherries", "bench": "benches", "peach": "peaches"}.get(
            thing, thing + "s"
        )
        article = "an" if thing[0] in "aeiou" else "a"
        return (
            f"{article} {thing}" if counts[thing] == 1 else f"{NUMBERS[counts[thing] - 1]} {plural}"
        )

    listed = ", ".join(map(phrase, things[:-1])) + f" and {phrase(things[-1])}"
    total = sum(counts[thing] for thing in named)
    name = rng.choice(words("first names"))
    opening = rng.choice((f"{name} owns", f"In the barn of {name} there are", f"{name} sells"))
    reasoning = (
        f"The {kind} are: {', '.join(f'{thing} ({counts[thing]})' for thing in named)}. "
        f"{' + '.join(str(counts[thing]) for thing in named)} = {total}."
    )
    return Solved(f"{opening} {listed}. How many {kind} are that?", reasoning, str(total))


def reasoning_about_colored_objects(rng: random.Random) -> Solved:
    things, colours = rng.sample(SMALL, 4), rng.sample(COLOURS, 4)
    row = [
        f"a {c} {t}" if c[0] != "o" else f"an {c} {t}" for c, t in zip(colours, things, strict=True)
    ]
    at = rng.randrange(1, 3)
    side, step = rng.choice((("left", -1), ("right", 1)))
    asked, right = rng.choice(
        (
            (f"What colour is the {things[at]}?", colours[at]),
            (
                f"What colour is the thing directly to the {side} of the {things[at]}?",
                colours[at + step],
            ),
        )
    )
    choices = sorted([*colours, rng.choice([c for c in COLOURS if c not in colours])])
    place = rng.choice(("shelf", "window sill", "bench"))
    question = (
        f"On the {place} there are, from left to right, {', '.join(row[:-1])} and {row[-1]}. "
        f"{asked}\n{options(choices)}"
    )
    order = ", ".join(f"({i}) {thing[2:].strip()}" for i, thing in enumerate(row, 1))
    reasoning = f"In order: {order}. The thing in question is {right}."
    return Solved(question, reasoning, letter_of(choices, right))


def tracking_shuffled_objects_three_objects(rng: random.Random) -> Solved:
    people = rng.sample(words("first names"), 3)
    what, things = rng.choice(
        (
            ("hat", ["the straw hat", "the felt hat", "the paper hat"]),
            ("seat", ["the window seat", "the middle seat", "the aisle seat"]),
            ("drink", ["the tea", "the juice", "the water"]),
        )
    )
    rng.shuffle(things)
    held = dict(zip(people, things, strict=True))
    start = ", ".join(f"{person} has {thing}" for person, thing in held.items())
    swaps, trace = [], []
    for _ in range(3):
        a, b = rng.sample(people, 2)
        held[a], held[b] = held[b], held[a]
        swaps.append(f"{a} and {b} swap")
        trace.append(f"{a} and {b} swap: {a} has {held[a]}, {b} has {held[b]}.")
    person = rng.choice(people)
    choices = sorted(things)
    question = (
        f"Three friends each have a {what}: {start}. First {swaps[0]}, then {swaps[1]}, and last "
        f"{swaps[2]}. In the end, {person} has\n{options(choices)}"
    )
    reasoning = f"At the start {start}. {' '.join(trace)} So {person} has {held[person]}."
    return Solved(question, reasoning, letter_of(choices, held[person]))


def word_sorting(rng: random.Random) -> Solved:
    chosen = rng.sample(words("nouns"), rng.choice((3, 4, 5)))
    ordered = " ".join(sorted(chosen))
    firsts = ", ".join(f"{word} ({word[0]})" for word in chosen)
    reasoning = f"The words with their first letters: {firsts}. In alphabetical order: {ordered}."
    return Solved(
        f"Put these words into alphabetical order. List: {' '.join(chosen)}", reasoning, ordered
    )
