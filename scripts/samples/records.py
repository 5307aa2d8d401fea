"""Finding, sorting and reformatting: dates, lists, orders, small tables."""

from __future__ import annotations

import json
import random
from datetime import date, timedelta

from samples.files import words
from samples.items import Item, take

PEOPLE = words("full names")
CITIES = words("cities")
GOODS = words("goods")
WORDS = words("nouns")


def dates(rng: random.Random, n: int) -> list[Item]:
    """A date in words or with slashes, to be written as year-month-day."""
    layouts = (
        "{0:%B} {0.day}, {0.year}",
        "{0.day} {0:%B} {0.year}",
        "{0.day:02}/{0.month:02}/{0.year}",
    )
    items = []
    while len({item.text for item in items}) < n:
        day = date(1900, 1, 1) + timedelta(days=rng.randrange(45_000))
        text = rng.choice(layouts).format(day)
        wrong = f"{day.year}-{day.day:02}-{day.month:02}" if day.day != day.month else str(day.year)
        items.append(Item(text, (day.isoformat(),), "Year, month and day, in this order.", wrong))
    return take(items, n)


def word_sorting(rng: random.Random, n: int) -> list[Item]:
    items = []
    for _ in range(n):
        chosen = rng.sample(WORDS, rng.choice((3, 4, 5, 6)))
        backwards = ", ".join(sorted(chosen, reverse=True))
        why = "The words stand in the order of the alphabet."
        items.append(Item(", ".join(chosen), (", ".join(sorted(chosen)),), why, backwards))
    return take(items, n)


def number_sorting(rng: random.Random, n: int) -> list[Item]:
    items = []
    for _ in range(n):
        numbers = rng.sample(range(-20, 100), rng.choice((4, 5, 6)))
        low, high = (sorted(numbers, reverse=r) for r in (False, True))
        why = "From the smallest to the largest; negative numbers come first."
        items.append(Item(str(numbers), (str(low),), why, str(high)))
    return take(items, n)


def _message(rng: random.Random) -> tuple[str, dict[str, str | int]]:
    record: dict[str, str | int] = {
        "name": rng.choice(PEOPLE),
        "order": f"{rng.choice('ABCDEFG')}{rng.randrange(100, 1000)}-{rng.randrange(10, 100)}",
        "goods": rng.choice(GOODS),
        "quantity": rng.randrange(2, 60),
        "city": rng.choice(CITIES),
    }
    layout = rng.choice(
        (
            "This is {name}. My order {order} of {quantity} {goods} has not reached {city} yet.",
            "Order {order}: please send {quantity} {goods} to {city}. Regards, {name}",
            "Hello, I ordered {quantity} {goods} under {order}. Deliver them to {city}. {name}",
            "{name} from {city} asks about {quantity} {goods}; the order number is {order}.",
            "Hello! {quantity} {goods} came to {city} broken ({order}). Please help! {name}",
        )
    )
    return layout.format(**record), record


def extraction(rng: random.Random, n: int) -> list[Item]:
    """One field of a customer's message."""
    asked = {
        "name": "the name of the customer",
        "order": "the order number",
        "city": "the city",
        "quantity": "how many pieces",
    }
    items = []
    for _ in range(n):
        message, record = _message(rng)
        field = rng.choice(list(asked))
        wrong = record[rng.choice([other for other in asked if other != field])]
        text = f"Message: {message}\nWanted: {asked[field]}"
        answer = str(record[field])
        items.append(
            Item(text, (answer,), f"The message names {asked[field]}: {answer}.", str(wrong))
        )
    return take(items, n)


def to_json(rng: random.Random, n: int) -> list[Item]:
    """Message to a JSON object with fixed keys."""
    items = []
    for _ in range(n):
        message, record = _message(rng)
        why = "All five values are there, under their keys, and the quantity is a number."
        items.append(Item(message, (json.dumps(record),), why, json.dumps(list(record.values()))))
    return take(items, n)


def table_lookup(rng: random.Random, n: int) -> list[Item]:
    """A small table with bars, and one cell or the largest row asked for."""
    items = []
    for _ in range(n):
        names = rng.sample([person.split()[0] for person in PEOPLE], 4)
        ages = rng.sample(range(18, 70), 4)
        cities = rng.sample(CITIES, 4)
        rows = list(zip(names, map(str, ages), cities, strict=True))
        table = "\n".join(" | ".join(row) for row in [("name", "age", "city"), *rows])
        name, age, city = rng.choice(rows)
        oldest = names[ages.index(max(ages))]
        youngest = names[ages.index(min(ages))]
        question, answer = rng.choice(
            (
                (f"How old is {name}?", age),
                (f"Where does {name} live?", city),
                (f"Who lives in {city}?", name),
                ("Who is the oldest?", oldest),
                ("Who is the youngest?", youngest),
                (f"Which person is {age} years old?", name),
            )
        )
        wrong = rng.choice([cell for row in rows for cell in row if cell != answer])
        why = "The row in question holds it."
        items.append(Item(f"{table}\nQuestion: {question}", (answer,), why, wrong))
    return take(items, n)


def letters(rng: random.Random, n: int) -> list[Item]:
    """Small operations on the letters of a word or a list of words."""
    items = []
    while len({item.text for item in items}) < n:
        word, *others = rng.sample(WORDS, 3)
        letter = rng.choice(word)
        listed, initials = ", ".join([word, *others]), "".join(w[0] for w in [word, *others])
        text, answer, wrong = rng.choice(
            (
                (
                    f"How many times does the letter {letter} occur in {word}?",
                    word.count(letter),
                    0,
                ),
                (f"Write {word} backwards.", word[::-1], word),
                (f"What is the last letter of {word}?", word[-1], word[0]),
                (f"Join the first letters of: {listed}", initials, word),
                (f"How many letters does {word} have?", len(word), len(word) + 1),
                (f"Write {word} in capital letters.", word.upper(), word),
            )
        )
        items.append(Item(text, (str(answer),), "Counted and copied letter by letter.", str(wrong)))
    return take(items, n)
