"""Chain of thought: FLAN's zero-shot and few-shot rows, and raw tables of rationales."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from random import Random

from samples import arithmetic, bbh, knowledge, passages, sentences
from samples.files import held_out, sections, seeded, write_jsonl, write_text
from samples.flan import few_shot

Reasoned = tuple[str, str, str]  # question, answer, reasoning


def problems(rng: Random, n: int) -> list[Reasoned]:
    return [
        (problem.question, str(problem.answer), " ".join(problem.steps))
        for problem in islice(arithmetic.problems(rng), n)
    ]


def facts(rng: Random, n: int) -> list[Reasoned]:
    items = knowledge.claims(rng, n, "yes", "no")
    return [(f"Is this true? {item.text}", item.answers[0], item.why) for item in items]


def deductions(rng: Random, n: int) -> list[Reasoned]:
    """Problems of the kinds of BBH, none of which is in its samples."""
    solved = (solve(rng) for _ in range(n) for solve in bbh.TASKS)
    fresh = (s for s in solved if not held_out(s.question))
    return [(s.question, s.target, s.reasoning) for s in islice(fresh, n)]


def others(rng: Random, n: int) -> list[Reasoned]:
    sources = (
        lambda k: knowledge.multiple_choice(rng, "science", k),
        lambda k: knowledge.multiple_choice(rng, "humanities", k),
        lambda k: knowledge.odd_one_out(rng, k),
        lambda k: sentences.entailment(rng, k),
        lambda k: arithmetic.sequences(rng, k),
        lambda k: arithmetic.unit_changes(rng, k),
        lambda k: passages.notices(rng, k),
    )
    asked = ("", "", "Which does not fit? ", "", "What is the next number? ", "How much is ", "")
    each = n // len(sources)
    return [
        (f"{lead}{item.text}", item.answers[0], item.why)
        for lead, source in zip(asked, sources, strict=True)
        for item in source(each)
    ]


def mixed(rng: Random) -> list[tuple[str, list[Reasoned]]]:
    """Groups of one kind each, about 240 in all."""
    groups = {"problems": (problems, 80), "facts": (facts, 40), "deductions": (deductions, 60)}
    return [(name, make(rng, n)) for name, (make, n) in (groups | {"others": (others, 63)}).items()]


def rows(rng: Random, shots: bool) -> list[dict[str, str]]:
    texts = {name: [t.replace("\\n", "\n") for t in ts] for name, ts in sections("cot.txt").items()}

    def answer(reasoned: Reasoned, layout: str) -> str:
        return layout.format(why=reasoned[2], answer=reasoned[1])

    made = []
    for name, group in mixed(rng):
        for reasoned in group:
            template = rng.choice(texts["few-shot" if shots else "zero-shot"])
            layout = rng.choice(texts["answers"])
            inputs = template.format(text=reasoned[0])
            if shots:
                examples = rng.sample([other for other in group if other is not reasoned], 2)
                parts = [(template.format(text=e[0]), answer(e, layout)) for e in examples]
                inputs = few_shot(rng, parts, inputs)
            made.append({"inputs": inputs, "targets": answer(reasoned, layout), "task": name})
    rng.shuffle(made)
    return made


def table(reasoned: list[Reasoned]) -> str:
    """Question, answer and rationale in columns, line breaks as a backslash and an n."""
    return "".join("\t".join(c.replace("\n", "\\n") for c in row) + "\n" for row in reasoned)


def write(root: Path) -> None:
    folder = root / "cot"
    write_jsonl(folder / "cot_zsopt.jsonl", rows(seeded("cot zero-shot"), shots=False))
    write_jsonl(folder / "cot_fsopt.jsonl", rows(seeded("cot few-shot"), shots=True))
    calculations = [
        (problem.question, str(problem.answer), "\n".join(problem.steps))
        for problem in islice(arithmetic.problems(seeded("cot table")), 60)
    ]
    write_text(folder / "word_problems_train.tsv", table(calculations))
    write_text(folder / "facts_train.tsv", table(facts(seeded("cot facts"), 60)))
