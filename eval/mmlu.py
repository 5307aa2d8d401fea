"""MMLU: 57 subjects, four choices, answered by the logits of one position (protocol section 1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic import NonNegativeInt

from eval.benchmark import Benchmark, Decoding, Metric, Request, Score
from eval.files import require
from eval.prompts import chat_prompt, may_exceed
from eval.scoring import check_outputs, group_records, mean_score, micro, record
from mos.errors import DataError, UserError

LETTERS = ("A", "B", "C", "D")
MAX_PROMPT_TOKENS = 2048
SEAM_TOKENS = 16

# The MoS authors' patch dropped the colon and left a space at the end, after which the candidates
# (" A", ...) bring a space of their own.
ANSWER_CUES = {"authors": "The answer is ", "open_instruct": "The answer is:"}

# Subcategory -> subjects, as published with MMLU.
SUBCATEGORIES = {
    "biology": "college_biology high_school_biology",
    "business": "business_ethics management marketing",
    "chemistry": "college_chemistry high_school_chemistry",
    "computer science": "college_computer_science computer_security high_school_computer_science"
    " machine_learning",
    "culture": "human_sexuality sociology",
    "economics": "econometrics high_school_macroeconomics high_school_microeconomics",
    "engineering": "electrical_engineering",
    "geography": "high_school_geography",
    "health": "anatomy clinical_knowledge college_medicine human_aging medical_genetics nutrition"
    " professional_medicine virology",
    "history": "high_school_european_history high_school_us_history high_school_world_history"
    " prehistory",
    "law": "international_law jurisprudence professional_law",
    "math": "abstract_algebra college_mathematics elementary_mathematics high_school_mathematics"
    " high_school_statistics",
    "other": "global_facts miscellaneous professional_accounting",
    "philosophy": "formal_logic logical_fallacies moral_disputes moral_scenarios philosophy"
    " world_religions",
    "physics": "astronomy college_physics conceptual_physics high_school_physics",
    "politics": "high_school_government_and_politics public_relations security_studies"
    " us_foreign_policy",
    "psychology": "high_school_psychology professional_psychology",
}
CATEGORIES = {
    "STEM": ("physics", "chemistry", "biology", "computer science", "math", "engineering"),
    "humanities": ("history", "philosophy", "law"),
    "social sciences": ("politics", "culture", "economics", "geography", "psychology"),
    "other (business, health, misc.)": ("other", "business", "health"),
}
SUBCATEGORY_OF = {
    subject: subcategory
    for subcategory, subjects in SUBCATEGORIES.items()
    for subject in subjects.split()
}
CATEGORY_OF = {sub: category for category, subs in CATEGORIES.items() for sub in subs}


@dataclass(frozen=True)
class Question:
    subject: str
    row: int
    text: str  # question and choices, up to and with "Answer:"
    answer: str  # A, B, C or D


@dataclass(eq=False, kw_only=True)
class MMLU(Benchmark):
    """`{dev,test}/{subject}_{dev,test}.csv`; metric `exact_match`, the mean over all questions.

    Args:
        shots: examples from the first rows of dev.
        answer_cue: how the assistant's turn starts (chat only).
    """

    name = "mmlu"
    metrics = (Metric("exact_match", "MMLU EM"),)
    setting = "0-shot"

    shots: NonNegativeInt = 0
    answer_cue: Literal["authors", "open_instruct"] = "authors"

    def __post_init__(self) -> None:
        self._count_tokens = lru_cache(
            lambda text: len(
                self.tokenizer(text, truncation=False, add_special_tokens=False).input_ids
            )
        )
        questions = read_test(self.data_dir)
        self.examples, self.partial = self.selection.apply(
            questions, lambda q: q.subject, self.name
        )
        subjects = dict.fromkeys(q.subject for q in self.examples)
        shots = {subject: read_shots(self.data_dir, subject, self.shots) for subject in subjects}
        decoding = Decoding(max_tokens=1, choices=tuple(f" {letter}" for letter in LETTERS))
        self.requests = [
            Request(f"{q.subject}/{q.row}", self._prompt(q, shots[q.subject]), decoding)
            for q in self.examples
        ]

    def _prompt(self, question: Question, shots: Sequence[str]) -> str:
        # The subject starts with a space of its own: two spaces after "about".
        subject = " " + question.subject.replace("_", " ")
        intro = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
        # The reference drops one shot at a time; without any left it would loop for ever.
        for k in range(len(shots), -1, -1):
            prefix = intro + "".join(shots[:k])
            prompt = prefix + question.text
            if self.chat:
                prompt = chat_prompt(prompt, ANSWER_CUES[self.answer_cue])
            if self._fits(prompt, prefix, droppable=bool(shots)):
                return prompt
        raise UserError(
            f"mmlu {question.subject}/{question.row} has more than {MAX_PROMPT_TOKENS} tokens even"
            " without shots. Leave the subject out with tasks=[...]."
        )

    def _fits(self, prompt: str, prefix: str, droppable: bool) -> bool:
        if not may_exceed(prompt, MAX_PROMPT_TOKENS):
            return True
        if self.tokenizer is None:
            if not droppable:  # the engine refuses a prompt that is too long for the model
                return True
            raise UserError(
                f"mmlu with shots drops those that do not fit into {MAX_PROMPT_TOKENS} tokens:"
                " pass the model's tokenizer."
            )
        # Prefixes recur, so few prompts need an encoding of their own: their parts are counted
        # apart, and a seam moves the sum by less than SEAM_TOKENS.
        rest = prompt.replace(prefix, "", 1)
        room = MAX_PROMPT_TOKENS - self._count_tokens(prefix)
        if not may_exceed(rest, room - SEAM_TOKENS):
            return True
        if abs(room - self._count_tokens(rest)) > SEAM_TOKENS:
            return self._count_tokens(rest) < room
        return self._count_tokens(prompt) <= MAX_PROMPT_TOKENS

    def score(self, outputs: Sequence[str]) -> Score:
        """Score the chosen letters ("A"); breakdown per subject, subcategory and category."""
        check_outputs(self.requests, outputs)
        records = []
        for request, question, output in zip(self.requests, self.examples, outputs, strict=True):
            letter = output.strip()
            if letter not in LETTERS:
                raise UserError(f"Output of {request.id}: expected A, B, C or D, found {output!r}.")
            scores = {"exact_match": float(letter == question.answer)}
            records.append(record(request, output, letter, question.answer, scores))
        return micro(records, self._breakdown(records))

    def _breakdown(self, records: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
        """Subjects under their own name; only categories of which there are questions."""
        subjects = group_records(records, [q.subject for q in self.examples])
        breakdown = {subject: mean_score(members) for subject, members in subjects.items()}
        wider: dict[str, list[dict[str, Any]]] = {}
        for subject, members in subjects.items():
            if subcategory := SUBCATEGORY_OF.get(subject):
                wider.setdefault(f"subcategory/{subcategory}", []).extend(members)
                wider.setdefault(f"category/{CATEGORY_OF[subcategory]}", []).extend(members)
        return breakdown | {name: mean_score(members) for name, members in sorted(wider.items())}


def read_test(data_dir: Path) -> list[Question]:
    """All questions, the subjects sorted."""
    folder = require(data_dir / "test", "{subject}_test.csv files")
    subjects = sorted(path.name.removesuffix("_test.csv") for path in folder.glob("*_test.csv"))
    if not subjects:
        raise DataError(folder, None, "no {subject}_test.csv in it.")
    return [
        Question(subject, row, text, answer)
        for subject in subjects
        for row, (text, answer) in enumerate(read_csv(folder / f"{subject}_test.csv"))
    ]


def read_shots(data_dir: Path, subject: str, shots: int) -> list[str]:
    """The first rows of a subject's dev file as few-shot text."""
    if shots == 0:
        return []
    path = require(data_dir / "dev" / f"{subject}_dev.csv", f"the few-shot examples of {subject}")
    rows = read_csv(path)
    if len(rows) < shots:
        raise DataError(path, None, f"{len(rows)} rows for mmlu.shots={shots}.")
    return [f"{text} {answer}\n\n" for text, answer in rows[:shots]]


def read_csv(path: Path) -> list[tuple[str, str]]:
    """Rows as (question and choices up to "Answer:", letter).

    pandas' inference with all defaults is part of the prompt: the choice "None" reads as nan, a
    column of numbers is reformatted (05 -> 5, 3.50 -> 3.5).
    """
    import pandas as pd

    try:
        table = pd.read_csv(path, header=None)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise DataError(path, None, f"not a CSV file: {error}.") from error
    if table.shape[1] != len(LETTERS) + 2:
        raise DataError(
            path, None, f"{table.shape[1]} columns; expected question, A, B, C, D, letter."
        )
    rows = []
    for number, (question, *choices, answer) in enumerate(
        table.itertuples(index=False, name=None), start=1
    ):
        if not isinstance(question, str):
            raise DataError(path, number, f"the question reads as {question!r}, not as text.")
        if answer not in LETTERS:
            raise DataError(path, number, f"the answer is {answer!r}; expected A, B, C or D.")
        lines = [f"\n{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
        rows.append((f"{question}{''.join(lines)}\nAnswer:", answer))
    return rows
