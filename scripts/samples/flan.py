"""The Flan V2 mixture: `{"inputs", "targets", "task"}` rows, zero-shot and few-shot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

from samples import arithmetic, knowledge, languages, passages, records, sentences
from samples.files import cells, sections, seeded, write_jsonl
from samples.items import Item

SOURCES: dict[str, tuple[Callable[[Random, int], list[Item]], int]] = {
    "sentiment": (sentences.reviews, 30),
    "topic": (sentences.topics, 30),
    "entailment": (sentences.entailment, 30),
    "acceptability": (sentences.acceptability, 30),
    "fact check": (knowledge.claims, 40),
    "science choice": (lambda rng, n: knowledge.multiple_choice(rng, "science", n), 40),
    "humanities choice": (lambda rng, n: knowledge.multiple_choice(rng, "humanities", n), 40),
    "odd one out": (knowledge.odd_one_out, 30),
    "passive": (sentences.passive_voice, 30),
    "formal": (sentences.formal, 20),
    "correction": (sentences.corrections, 20),
    "headline": (sentences.headlines, 16),
    "reading": (passages.notices, 40),
    "word problem": (arithmetic.word_problems, 40),
    "calculation": (arithmetic.sums, 30),
    "sequence": (arithmetic.sequences, 30),
    "unit change": (arithmetic.unit_changes, 30),
    "date format": (records.dates, 20),
    "sort words": (records.word_sorting, 30),
    "table": (records.table_lookup, 30),
    "find in message": (records.extraction, 30),
    "message to JSON": (records.to_json, 20),
    "trivia": (knowledge.open_questions, 40),
    "question writing": (knowledge.question_writing, 20),
    "order of steps": (passages.step_order, 30),
    "country names": (languages.name_translation, 30),
}
SHOT_LAYOUTS = (
    "{prompt}\n{answer}",
    "Q: {prompt}\nA: {answer}",
    "Input: {prompt}\nOutput: {answer}",
)
QUERY_LAYOUTS = ("{prompt}", "Q: {prompt}\nA:", "Input: {prompt}\nOutput:")


def few_shot(rng: Random, shots: list[tuple[str, str]], query: str) -> str:
    """Examples with their answers, then the query, all in one layout."""
    layout = rng.randrange(len(SHOT_LAYOUTS))
    parts = [SHOT_LAYOUTS[layout].format(prompt=p, answer=a) for p, a in shots]
    return "\n\n".join([*parts, QUERY_LAYOUTS[layout].format(prompt=query)])


def rows(rng: Random, task: str, choice: str, prompts: list[str]) -> list[dict[str, str]]:
    """Rows of one task; two in five are few-shot, with other examples of the task as shots."""
    source, size = SOURCES[task]
    items = source(rng, size)

    def prompt(item: Item, template: str) -> str:
        options = "\n".join(["OPTIONS:", *(f"- {option}" for option in item.options)])
        return template.replace("\\n", "\n").format(text=item.text, options=options)

    made = []
    for i, item in enumerate(items):
        template = rng.choice(prompts)
        inputs, shots = prompt(item, template), "zs"
        if i % 5 in (1, 3):
            others = rng.sample([other for other in items if other is not item], rng.choice((2, 3)))
            examples = [(prompt(other, template), other.answers[0]) for other in others]
            inputs, shots = few_shot(rng, examples, inputs), "fs"
        kind = choice if "{options}" in template else "noopt"
        name = f"{task.replace(' ', '_')}_{shots}_{kind}"
        made.append({"inputs": inputs, "targets": item.answers[0], "task": name})
    return made


def write(root: Path) -> None:
    mixture = []
    for title, prompts in sections("flan.txt").items():
        task, choice = cells(title)
        mixture += rows(seeded(f"flan {task}"), task, choice, prompts)
    seeded("flan order").shuffle(mixture)
    write_jsonl(root / "flan_v2" / "tulu_v1_resampled_flan_100k.jsonl", mixture)
