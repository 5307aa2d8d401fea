"""Passages with questions in nine languages, and names in two of them side by side."""

from __future__ import annotations

import random
from functools import cache

from samples.files import TEXT, cells, sections
from samples.items import Item, take

LANGUAGES = tuple(sorted(path.stem for path in (TEXT / "languages").glob("*.txt")))

Row = dict[str, str]
Relations = dict[str, tuple[list[str], list[str]]]


@cache
def tables(language: str) -> list[tuple[list[Row], Relations]]:
    """Rows of every table of a language, with (statements, questions) per relation."""
    found = []
    for lines in sections(f"languages/{language}.txt").values():
        marks = [i for i, line in enumerate(lines) if line.startswith("+ ")]
        header, *rows = [cells(line) for line in lines[: marks[0]]]
        relations = {lines[i][2:]: (cells(lines[i + 1]), cells(lines[i + 2])) for i in marks}
        found.append(([dict(zip(header, row, strict=True)) for row in rows], relations))
    return found


def passage_questions(rng: random.Random, language: str, n: int) -> list[Item]:
    """Two or three statements about one thing in any order, and a question about one of them."""
    items = []
    for rows, relations in tables(language):
        for row in rows:
            for asked in relations:
                about = [
                    asked,
                    *rng.sample([r for r in relations if r != asked], rng.choice((1, 2))),
                ]
                rng.shuffle(about)
                passage = " ".join(rng.choice(relations[r][0]).format(**row) for r in about)
                question = rng.choice(relations[asked][1]).format(**row)
                wrong = row[next(r for r in about if r != asked)]
                items.append(
                    Item(
                        text=f"Passage: {passage}\nQuestion: {question}",
                        answers=(row[asked],),
                        why=f"The passage says it: {row[asked]}.",
                        wrong=wrong,
                    )
                )
    rng.shuffle(items)
    return take(items, n)


def name_translation(rng: random.Random, n: int) -> list[Item]:
    """English names of countries into the eight other languages."""
    english = [row["name"] for row in tables("english")[0][0]]
    pairs = []
    for language in LANGUAGES:
        if language == "english":
            continue
        names = [row["name"] for row in tables(language)[0][0]]
        for source, target in zip(english, names, strict=True):
            wrong = rng.choice([name for name in names if name != target])
            text = f"Name: {source}\nLanguage: {language.capitalize()}"
            why = f"In {language.capitalize()}, {source} is called {target}."
            pairs.append(Item(text, (target,), why, wrong))
    rng.shuffle(pairs)
    return take(pairs, n)
