"""MMLU: 57 subjects, four choices, answered by the logits of one position (protocol section 1)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import NonNegativeInt

from eval.benchmark import Benchmark, Decoding, Metric, Request, chat_prompt, may_exceed
from eval.files import require
from eval.scoring import Score, breakdown, by_group
from mos.errors import DataError, UserError

LETTERS = ("A", "B", "C", "D")
MAX_PROMPT_TOKENS = 2048

# The MoS authors' patch dropped the colon and left a space at the end, after which the candidates
# (" A", ...) bring a space of their own.
ANSWER_CUES = {"authors": "The answer is ", "open_instruct": "The answer is:"}

# As published with MMLU: subcategory -> subjects, category -> subcategories.
_GROUPS = json.loads(Path(__file__).with_suffix(".json").read_text())
SUBCATEGORY_OF = {name: sub for sub, names in _GROUPS["subcategories"].items() for name in names}
CATEGORY_OF = {sub: name for name, subs in _GROUPS["categories"].items() for sub in subs}


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
            prompt = intro + "".join(shots[:k]) + question.text
            if self.chat:
                prompt = chat_prompt(prompt, ANSWER_CUES[self.answer_cue])
            if self._fits(prompt, droppable=bool(shots)):
                return prompt
        raise UserError(
            f"mmlu {question.subject}/{question.row} has more than {MAX_PROMPT_TOKENS} tokens even"
            " without shots. Leave the subject out with tasks=[...]."
        )

    def _fits(self, prompt: str, droppable: bool) -> bool:
        if not may_exceed(prompt, MAX_PROMPT_TOKENS):
            return True
        if self.tokenizer is not None:
            ids = self.tokenizer(prompt, truncation=False, add_special_tokens=False).input_ids
            return len(ids) <= MAX_PROMPT_TOKENS
        if not droppable:  # the engine refuses a prompt that is too long for the model
            return True
        raise UserError(
            f"mmlu with shots drops those that do not fit into {MAX_PROMPT_TOKENS} tokens:"
            " pass the model's tokenizer."
        )

    def judge(self, example: Question, output: str) -> tuple[str, str, dict[str, float]]:
        letter = output.strip()
        if letter not in LETTERS:
            raise UserError(
                f"Output of {example.subject}/{example.row}: expected A, B, C or D, found"
                f" {output!r}."
            )
        return letter, example.answer, {"exact_match": float(letter == example.answer)}

    def score(self, outputs: Sequence[str]) -> Score:
        """Score the chosen letters ("A"); breakdown per subject, subcategory and category."""
        score = super().score(outputs)
        groups: dict[str, Score] = {}
        for group_of in (_subject, _subcategory, _category):
            groups |= by_group(score.records, group_of)
        return replace(score, breakdown=breakdown(groups))


def _subject(record_id: str) -> str:
    return record_id.rpartition("/")[0]


def _subcategory(record_id: str) -> str:
    name = SUBCATEGORY_OF.get(_subject(record_id))
    return f"subcategory/{name}" if name else ""


def _category(record_id: str) -> str:
    name = CATEGORY_OF.get(SUBCATEGORY_OF.get(_subject(record_id)))
    return f"category/{name}" if name else ""


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
