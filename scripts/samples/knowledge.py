"""Questions, claims and choices made from the tables of facts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from samples.files import cells, sections
from samples.items import Item, take

LETTERS = "ABCD"


@dataclass(frozen=True)
class Relation:
    """A table of facts: what may be asked about each `x`, and how the answer `y` is stated."""

    name: str
    field: str
    questions: tuple[str, ...]
    statements: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]

    def others(self, y: str) -> list[str]:
        return sorted({other for _, other in self.rows if other != y})


@cache
def relations(field: str | None = None) -> tuple[Relation, ...]:
    found = []
    for title, lines in sections("facts.txt").items():
        name, its_field = cells(title)
        questions = next(cells(line[2:]) for line in lines if line.startswith("? "))
        statements = next(cells(line[2:]) for line in lines if line.startswith("= "))
        rows = [tuple(cells(line)) for line in lines if line[:2] not in ("? ", "= ")]
        relation = Relation(name, its_field, tuple(questions), tuple(statements), tuple(rows))
        if field in (None, its_field):
            found.append(relation)
    return tuple(found)


def _draws(rng: random.Random, field: str | None) -> Iterator[tuple[Relation, str, str]]:
    """Facts of all relations in turn, so that a short list has every relation in it."""
    tables = [(relation, list(relation.rows)) for relation in relations(field)]
    rng.shuffle(tables)
    for _, rows in tables:
        rng.shuffle(rows)
    while any(rows for _, rows in tables):
        for relation, rows in tables:
            if rows:
                yield relation, *rows.pop()


def capitalised(text: str) -> str:
    return text[0].upper() + text[1:]


def _choices(rng: random.Random, relation: Relation, y: str, letter: str) -> list[str]:
    wrong = rng.sample(relation.others(y), 3)
    wrong.insert(LETTERS.index(letter), y)
    return wrong


def multiple_choice(rng: random.Random, field: str, n: int) -> list[Item]:
    """Question with four choices under letters; the answer is the letter."""
    layouts = ("({}) {}", "{}. {}", "{}) {}")
    letters = [LETTERS[i % 4] for i in range(n)]
    rng.shuffle(letters)
    items = []
    for (relation, x, y), letter in zip(_draws(rng, field), letters, strict=False):
        choices = _choices(rng, relation, y, letter)
        layout = rng.choice(layouts)
        lines = [layout.format(name, choice) for name, choice in zip(LETTERS, choices, strict=True)]
        question = capitalised(rng.choice(relation.questions).format(x=x))
        statement = capitalised(relation.statements[0].format(x=x, y=y))
        wrong = rng.choice([other for other in LETTERS if other != letter])
        items.append(
            Item(
                text="\n".join([question, *lines]),
                answers=(letter,),
                why=f"{statement} So the letter is {letter}.",
                wrong=wrong,
                options=tuple(LETTERS),
            )
        )
    return take(items, n)


def open_questions(rng: random.Random, n: int) -> list[Item]:
    items = []
    for relation, x, y in _draws(rng, None):
        question = capitalised(rng.choice(relation.questions).format(x=x))
        why = capitalised(relation.statements[0].format(x=x, y=y))
        items.append(Item(question, (y,), why, rng.choice(relation.others(y))))
    return take(items, n)


def claims(rng: random.Random, n: int, yes: str = "True", no: str = "False") -> list[Item]:
    """Statements half of which name a wrong answer."""
    items = []
    for i, (relation, x, y) in enumerate(_draws(rng, None)):
        stated = y if i % 2 else rng.choice(relation.others(y))
        truth = capitalised(relation.statements[0].format(x=x, y=y))
        claim = capitalised(rng.choice(relation.statements).format(x=x, y=stated))
        right, wrong = (yes, no) if stated == y else (no, yes)
        items.append(Item(claim, (right,), f"The fact is: {truth}", wrong, (yes, no)))
    rng.shuffle(items)
    return take(items, n)


def question_writing(rng: random.Random, n: int) -> list[Item]:
    """A statement and the answer that the question has to have."""
    items = []
    for relation, x, y in _draws(rng, None):
        statement = capitalised(rng.choice(relation.statements).format(x=x, y=y))
        questions = tuple(capitalised(q.format(x=x)) for q in relation.questions)
        why = "The question can be answered from the sentence, and the answer is the one given."
        items.append(Item(f"Sentence: {statement}\nAnswer: {y}", questions, why, f"Is it {y}?"))
    return take(items, n)


def odd_one_out(rng: random.Random, n: int) -> list[Item]:
    """Four words of which three come from one column of facts and one from another."""
    kinds = {
        "animals": [x.split(" ")[1] for x, _ in _by_name("animal groups").rows],
        "chemical elements": [x for x, _ in _by_name("element symbols").rows],
        "measuring instruments": [y for _, y in _by_name("instruments of measurement").rows],
        "physical units": [y for _, y in _by_name("units").rows],
        "rivers": [y for _, y in _by_name("rivers").rows],
        "religions": [y for _, y in _by_name("religions").rows],
        "sciences": [y for _, y in _by_name("sciences").rows],
        "painters": [y for _, y in _by_name("painters").rows],
        "organs of the body": [y for _, y in _by_name("organs").rows],
    }
    items = []
    for _ in range(n):
        kind, stranger_kind = rng.sample(sorted(kinds), 2)
        stranger = rng.choice(kinds[stranger_kind])
        members = rng.sample(kinds[kind], 3)
        words = [*members, stranger]
        rng.shuffle(words)
        why = f"The other three are {kind}; {stranger} is one of the {stranger_kind}."
        items.append(Item(", ".join(words), (stranger,), why, members[0], tuple(words)))
    return take(items, n)


def _by_name(name: str) -> Relation:
    return next(relation for relation in relations() if relation.name == name)
