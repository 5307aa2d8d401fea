"""Super-NaturalInstructions: `tasks/<name>.json` and the lists of `splits/`."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from samples import arithmetic, knowledge, languages, mmlu, passages, records, sentences
from samples.files import seeded, write_json, write_text
from samples.items import Item

POSITIVE, NEGATIVE = 3, 2


@dataclass(frozen=True)
class Task:
    """One task: how it is described, and what writes its examples."""

    name: str
    category: str
    domain: str
    definition: str
    items: Callable[[Random, int], list[Item]]
    size: int = 60
    split: str = "train"
    language: str = "English"

    def file(self) -> dict[str, Any]:
        """The task in the keys and the order of the published files."""
        items = self.items(seeded(self.name), self.size + POSITIVE + NEGATIVE)
        positive = items[:POSITIVE]
        negative = items[POSITIVE : POSITIVE + NEGATIVE]
        number = self.name.split("_")[0]
        return {
            "Contributors": ["the authors of this project"],
            "Source": ["written for this project"],
            "URL": [""],
            "Categories": [self.category],
            "Reasoning": [],
            "Definition": [self.definition],
            "Input_language": [self.language],
            "Output_language": [self.language],
            "Instruction_language": ["English"],
            "Domains": [self.domain],
            "Positive Examples": [
                {"input": item.text, "output": item.answers[0], "explanation": item.why}
                for item in positive
            ],
            "Negative Examples": [
                {
                    "input": item.text,
                    "output": item.wrong,
                    "explanation": f"Wrong. {item.why} The output is: {item.answers[0]}",
                }
                for item in negative
            ],
            "Instances": [
                {
                    "id": f"{number}-{hashlib.sha256(item.text.encode()).hexdigest()[:32]}",
                    "input": item.text,
                    "output": list(item.answers),
                }
                for item in items[POSITIVE + NEGATIVE :]
            ],
            "Instance License": ["Apache 2.0"],
        }


def _science(rng: Random, n: int) -> list[Item]:
    return knowledge.multiple_choice(rng, "science", n)


def _humanities(rng: Random, n: int) -> list[Item]:
    return knowledge.multiple_choice(rng, "humanities", n)


def _mmlu_dev(_: Random, n: int) -> list[Item]:
    """As in the published lists, a task made of MMLU itself: what the `_mmmlu_` filter is for."""
    items = []
    for subject, rows in mmlu.questions().items():
        for question, *choices, letter in rows[: mmlu.DEV_ROWS]:
            lines = [f"({x}) {choice}" for x, choice in zip(mmlu.LETTERS, choices, strict=True)]
            wrong = next(x for x in mmlu.LETTERS if x != letter)
            right = choices[mmlu.LETTERS.index(letter)]
            text = "\n".join([f"Subject: {subject}", question, *lines])
            items.append(Item(text, (letter,), f"The answer is: {right}.", wrong))
    return items[:n]


def _passages_in(language: str) -> Callable[[Random, int], list[Item]]:
    return lambda rng, n: languages.passage_questions(rng, language, n)


TASKS = (
    Task(
        "task9001_sample_science_multiple_choice",
        "Question Answering",
        "Natural Science",
        "Here is a question about science or technology with four possible answers. Reply with "
        "the letter of the right answer, A, B, C or D, and nothing else.",
        _science,
        80,
    ),
    Task(
        "task9002_sample_humanities_multiple_choice",
        "Question Answering",
        "History",
        "You get a question on history, the arts, law, economics, psychology or religion, "
        "followed by four choices. Exactly one choice is right. Write its letter.",
        _humanities,
        80,
    ),
    Task(
        "task9003_sample_review_sentiment_classification",
        "Sentiment Analysis",
        "Reviews",
        "Read the review and decide what its writer thinks. The answer is positive or negative.",
        sentences.reviews,
    ),
    Task(
        "task9004_sample_sentence_topic_classification",
        "Text Categorization",
        "News",
        "Decide what the sentence is mainly about. Choose one of these topics: food, health, "
        "money, sport, technology, travel, weather.",
        sentences.topics,
        40,
    ),
    Task(
        "task9005_sample_date_format_conversion",
        "Text to Code",
        "Mathematics",
        "The input is a date, written out or as day/month/year. Convert it to the form YYYY-MM-DD.",
        records.dates,
    ),
    Task(
        "task9006_sample_word_sorting",
        "Program Execution",
        "Code",
        "Sort the given words by the alphabet and return them separated by a comma and a space.",
        records.word_sorting,
    ),
    Task(
        "task9007_sample_sentence_entailment",
        "Textual Entailment",
        "Captions -> Image Captions",
        "Two sentences are given. Say whether the second one is true whenever the first one is. "
        "Answer yes if it must be true, no if it cannot be true, and maybe if one cannot tell.",
        sentences.entailment,
        40,
    ),
    Task(
        "task9008_sample_word_problem_answer_generation",
        "Question Answering",
        "Mathematics",
        "Solve the word problem. Your answer should be only the number, without a unit.",
        arithmetic.word_problems,
        80,
    ),
    Task(
        "task9009_sample_active_to_passive",
        "Text Modification",
        "Miscellaneous",
        "Rewrite the sentence in the passive voice. Keep the tense and mention who did it after "
        "'by'.",
        sentences.passive_voice,
    ),
    Task(
        "task9010_sample_message_field_extraction",
        "Information Extraction",
        "Commonsense -> Business",
        "You are given the message of a customer and a piece of information that is wanted from "
        "it. Copy that piece from the message, with no other words.",
        records.extraction,
    ),
    Task(
        "task9011_sample_notice_answer_generation",
        "Question Answering",
        "News",
        "Answer the question about the passage. Use the words of the passage and be brief.",
        passages.notices,
        80,
    ),
    Task(
        "task9012_sample_informal_to_formal",
        "Style Transfer",
        "Dialogue",
        "The input is written in a casual way. Rewrite it so that it would suit a letter to a "
        "person whom one does not know, without changing what it says.",
        sentences.formal,
        37,
    ),
    Task(
        "task9013_sample_message_to_json",
        "Text to Code",
        "Code",
        "Turn the message into a JSON object with the keys name, order, goods, quantity and "
        "city, in this order. The quantity is a number, all other values are strings.",
        records.to_json,
        40,
    ),
    Task(
        "task9014_sample_country_name_translation",
        "Translation",
        "Countries",
        "You get the English name of a country and a language. Give the name of the country in "
        "that language.",
        languages.name_translation,
    ),
    Task(
        "task9015_sample_fact_question_generation",
        "Question Generation",
        "Knowledge Base",
        "Write a question to which the given answer is correct according to the sentence.",
        knowledge.question_writing,
    ),
    Task(
        "task9016_sample_headline_generation",
        "Title Generation",
        "News",
        "Write a short headline for the news item. It should tell the most important point.",
        sentences.headlines,
        15,
    ),
    Task(
        "task9017_sample_step_ordering",
        "Sentence Ordering",
        "Commonsense -> Concepts and Relations",
        "Four steps of one event are numbered from 1 to 4 but stand in a wrong or random order. "
        "List their numbers in the order in which the steps happen, separated by a comma and a "
        "space.",
        passages.step_order,
    ),
    Task(
        "task9018_sample_fact_verification",
        "Fact Verification",
        "Knowledge Base",
        "Is the statement correct? Answer with True or False.",
        knowledge.claims,
        80,
    ),
    Task(
        "task9019_sample_table_answer_generation",
        "Question Answering",
        "Knowledge Base",
        "The input is a table whose cells are separated by bars, and a question about it. Find "
        "the answer in the table.",
        records.table_lookup,
    ),
    Task(
        "task9020_sample_letter_manipulation",
        "Program Execution",
        "Code",
        "Carry out the instruction about the letters of one or more words and give the result "
        "only.",
        records.letters,
    ),
    Task(
        "task9021_sample_number_sequence_completion",
        "Question Answering",
        "Mathematics",
        "Find the rule of the number sequence and write the next number.",
        arithmetic.sequences,
    ),
    Task(
        "task9022_sample_general_knowledge_answer_generation",
        "Question Answering",
        "Knowledge Base",
        "Answer the question with a single name or term.",
        knowledge.open_questions,
        80,
    ),
    *(
        Task(
            f"task90{30 + i}_sample_{language}_passage_answer_generation",
            "Question Answering",
            "Countries",
            f"A passage and a question in {language.capitalize()} are given. Answer the question "
            "in the language of the passage, with words copied from it.",
            _passages_in(language),
            55,
            language=language.capitalize(),
        )
        for i, language in enumerate(languages.LANGUAGES)
    ),
    Task(
        "task9050_mmmlu_answer_generation_samples",
        "Question Answering",
        "Natural Science",
        "Answer the examination question with the letter of the right choice.",
        _mmlu_dev,
        55,
    ),
    Task(
        "task9101_sample_odd_one_out",
        "Word Analogy",
        "Commonsense -> Concepts and Relations",
        "Three of the four words belong together. Write the one that does not.",
        knowledge.odd_one_out,
        40,
        "test",
    ),
    Task(
        "task9102_sample_grammar_correction",
        "Grammar Error Correction",
        "English Exams",
        "The sentence contains one or more mistakes. Write it correctly and change as little as "
        "possible.",
        sentences.corrections,
        38,
        "test",
    ),
    Task(
        "task9103_sample_number_sorting",
        "Program Execution",
        "Code",
        "Sort the list of whole numbers from the smallest to the largest and return it as a list.",
        records.number_sorting,
        40,
        "test",
    ),
)


def write(root: Path) -> None:
    folder = root / "natural-instructions"
    for task in TASKS:
        write_json(folder / "tasks" / f"{task.name}.json", task.file())
    for track, chosen in (
        ("default", [task for task in TASKS if task.language == "English"]),
        ("xlingual", TASKS),
    ):
        for split in ("train", "test"):
            names = "".join(f"{task.name}\n" for task in chosen if task.split == split)
            write_text(folder / "splits" / track / f"{split}_tasks.txt", names)
