"""GSM8K: `{train,test}.jsonl` with calculator marks, and eight worked examples for the prompt."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from samples.arithmetic import Problem, problems
from samples.files import seeded, write_jsonl

TRAIN, TEST, EXEMPLARS = 80, 50, 8


def _row(problem: Problem) -> dict[str, str]:
    steps = "\n".join(problem.annotated)
    return {"question": problem.question, "answer": f"{steps}\n#### {problem.answer:,}"}


def _exemplar(problem: Problem) -> dict[str, str]:
    return {
        "question": problem.question,
        "cot_answer": f"{' '.join(problem.steps)} So the answer is {problem.answer}.",
        "short_answer": str(problem.answer),
    }


def write(root: Path) -> None:
    folder = root / "gsm8k"
    train = problems(seeded("gsm8k train"))
    test = problems(seeded("gsm8k test"), for_benchmark=True)
    write_jsonl(folder / "train.jsonl", map(_row, islice(train, TRAIN)))
    write_jsonl(folder / "test.jsonl", map(_row, islice(test, TEST)))
    write_jsonl(folder / "exemplars.jsonl", map(_exemplar, islice(train, EXEMPLARS)))
