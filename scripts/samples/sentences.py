"""Classifying and rewriting sentences: hand-written pairs, and sentences put together."""

from __future__ import annotations

import random

from samples.files import cells, sections, words
from samples.items import Item, take

VERDICTS = ("correct", "incorrect")
RELATIONS = ("yes", "maybe", "no")


def _pairs(section: str) -> list[tuple[str, str]]:
    return [(left, right) for left, right in map(cells, sections("sentences.txt")[section])]


def _rewriting(rng: random.Random, section: str, n: int, why: str) -> list[Item]:
    """Pairs of the section; the unchanged input is the wrong answer."""
    items = [Item(text, (answer,), why, text) for text, answer in _pairs(section)]
    rng.shuffle(items)
    return take(items, n)


def formal(rng: random.Random, n: int) -> list[Item]:
    why = "The meaning is kept, and slang and short forms are gone."
    return _rewriting(rng, "informal and formal", n, why)


def corrections(rng: random.Random, n: int) -> list[Item]:
    why = "The mistake is corrected and nothing else is changed."
    return _rewriting(rng, "wrong and right", n, why)


def acceptability(rng: random.Random, n: int) -> list[Item]:
    """Is the sentence correct English? One sentence of every pair."""
    items = []
    for bad, good in _pairs("wrong and right"):
        if rng.random() < 0.5:
            items.append(
                Item(good, ("correct",), "There is no mistake in it.", "incorrect", VERDICTS)
            )
        else:
            items.append(Item(bad, ("incorrect",), f"Correct is: {good}", "correct", VERDICTS))
    rng.shuffle(items)
    return take(items, n)


def headlines(rng: random.Random, n: int) -> list[Item]:
    pairs = _pairs("summaries")
    heads = [head for _, head in pairs]
    why = "It names who or what the news is about and what happened."
    items = []
    for text, head in pairs:
        wrong = rng.choice([other for other in heads if other != head])
        items.append(Item(text, (head,), why, wrong))
    rng.shuffle(items)
    return take(items, n)


def topics(rng: random.Random, n: int) -> list[Item]:
    pairs = _pairs("topics")
    names = tuple(sorted({topic for topic, _ in pairs}))
    items = []
    for topic, sentence in pairs:
        wrong = rng.choice([name for name in names if name != topic])
        items.append(Item(sentence, (topic,), f"The sentence is about {topic}.", wrong, names))
    rng.shuffle(items)
    return take(items, n)


def reviews(rng: random.Random, n: int) -> list[Item]:
    """Opening, one or two details and sometimes a verdict."""
    *kinds, verdicts = ([*map(cells, lines)] for lines in sections("reviews.txt").values())
    items = []
    while len({item.text for item in items}) < n:
        openings, names, good, bad = rng.choice(kinds)
        label = rng.choice(("positive", "negative"))
        details = rng.sample(good if label == "positive" else bad, rng.choice((1, 2)))
        parts = [rng.choice(openings).format(rng.choice(names)), *details]
        if rng.random() < 0.5:
            parts.append(rng.choice(verdicts[label == "negative"]))
        other = "negative" if label == "positive" else "positive"
        why = f"The writer is {'pleased' if label == 'positive' else 'disappointed'}: {details[0]}"
        items.append(Item(" ".join(parts), (label,), why, other, ("positive", "negative")))
    return take(items, n)


def passive_voice(rng: random.Random, n: int) -> list[Item]:
    items = []
    for line in sections("sentences.txt")["who did what: past / participle / what / where"]:
        agent, *actions = cells(line)
        for action in actions:
            past, participle, thing, *rest = action.split(" / ")
            be = "were" if thing in words("always plural") else "was"
            where = f" {rest[0]}" if rest else ""
            for time in rng.sample(["", *words("when")], 3):
                tail = f" {time}" if time else ""
                active = f"{agent} {past} {thing}{where}{tail}."
                passive = f"{thing} {be} {participle}{where} by {agent}{tail}."
                text, answer = (s[0].upper() + s[1:] for s in (active, passive))
                why = "What was the object is now the subject, and the doer follows after by."
                items.append(Item(text, (answer,), why, text))
    rng.shuffle(items)
    return take(items, n)


def entailment(rng: random.Random, n: int) -> list[Item]:
    """Does the second sentence follow from the first: yes, maybe, no."""
    reasons = (
        "Whenever the first sentence is true, the second one is too.",
        "The first sentence does not tell whether it is so.",
        "The two sentences cannot both be true.",
    )
    items = []
    for line in sections("sentences.txt")["premise, what follows, what may be, what cannot be"]:
        premise, *hypotheses = cells(line)
        for hypothesis, label, why in zip(hypotheses, RELATIONS, reasons, strict=True):
            wrong = rng.choice([other for other in RELATIONS if other != label])
            text = f"Sentence 1: {premise}\nSentence 2: {hypothesis}"
            items.append(Item(text, (label,), why, wrong, RELATIONS))
    rng.shuffle(items)
    return take(items, n)
