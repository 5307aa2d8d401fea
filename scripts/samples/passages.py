"""English passages: notices with questions, and steps out of order."""

from __future__ import annotations

import random

from samples.files import cells, sections, words
from samples.items import Item, take


def notices(rng: random.Random, n: int) -> list[Item]:
    """A notice of four to six sentences, and a question that one of them answers."""
    fields = {name: [*map(cells, lines)] for name, lines in sections("notices.txt").items()}
    items = []
    while len({item.text for item in items}) < n:
        record = {
            "event": rng.choice(words("events")),
            "place": rng.choice(words("places")),
            "day": rng.choice(words("days")),
            "time": rng.choice(words("times")),
            "price": rng.choice(words("prices")),
            "person": rng.choice(words("full names")),
            "forbidden": rng.choice(words("not admitted")),
        }
        others = [name for name in fields if name != "place"]
        about = ["place", *rng.sample(others, rng.choice((3, 4, 5)))]
        parts = [rng.choice(fields[key][0]).format(**record) for key in about]
        notice = " ".join(part[0].upper() + part[1:] for part in parts)
        asked, other = rng.sample(about, 2)
        question = rng.choice(fields[asked][1]).format(**record)
        answers = [record[asked]]
        if answers[0].startswith("the "):
            answers.append(answers[0].removeprefix("the "))
        why = f"The notice says: {parts[about.index(asked)]}"
        text = f"Passage: {notice}\nQuestion: {question}"
        items.append(Item(text, tuple(answers), why, record[other]))
    return take(items, n)


def step_order(rng: random.Random, n: int) -> list[Item]:
    """Four numbered steps out of order; the answer is their numbers in the right order."""
    items = []
    while len({item.text for item in items}) < n:
        for line in sections("steps.txt")["steps"]:
            steps = cells(line)
            order = rng.sample(range(4), 4)
            shown = "\n".join(f"{i}. {steps[step]}" for i, step in enumerate(order, 1))
            answer = ", ".join(str(order.index(step) + 1) for step in range(4))
            wrong = ", ".join(reversed(answer.split(", ")))
            items.append(Item(shown, (answer,), f"First comes: {steps[0]}", wrong))
    return take(items, n)
