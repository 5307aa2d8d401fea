"""GSM8K: grade-school word problems, eight worked examples (protocol section 3)."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import NonNegativeInt

from eval.benchmark import Benchmark, Decoding, Metric, Request, chat_prompt
from eval.files import read_jsonl, read_lm_eval_task, require
from eval.scoring import exact_match
from mos.errors import DataError, UserError

SEED = 42
# \d is any Unicode digit, and only decimals keep their sign.
NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")


@dataclass(frozen=True)
class Problem:
    row: int
    question: str
    answer: str


@dataclass(frozen=True)
class Exemplar:
    question: str
    cot_answer: str
    short_answer: str


@dataclass(eq=False, kw_only=True)
class GSM8K(Benchmark):
    """`test.jsonl`; metric `exact_match` of the last number in the output.

    The exemplars are those of Wei et al. (2022), read from `exemplars.jsonl` in the same folder
    (question, cot_answer, short_answer) or else from the installed lm-eval package.

    Args:
        shots: number of exemplars.
        cot: exemplars with their reasoning, else with the number alone.
    """

    name = "gsm8k"
    metrics = (Metric("exact_match", "GSM8K EM"),)
    setting = "8-shot, CoT"

    shots: NonNegativeInt = 8
    cot: bool = True

    def __post_init__(self) -> None:
        if self.selection.tasks is not None:
            raise UserError("gsm8k has no tasks to choose from: leave tasks out.")
        problems = read_problems(require(self.data_dir / "test.jsonl", "the problems of GSM8K"))
        self.examples, self.partial = self.selection.apply(problems, lambda _: "", self.name)
        exemplars = read_exemplars(self.data_dir) if self.shots else []
        intro = prompt_intro(exemplars, self.shots, self.cot)
        # In chat mode EOS is the only stop.
        decoding = Decoding(max_tokens=512, stop=() if self.chat else ("\n",))
        self.requests = []
        for problem in self.examples:
            prompt = f"{intro}Question: {problem.question.strip()}"
            prompt = chat_prompt(prompt, "Answer:") if self.chat else f"{prompt}\nAnswer:"
            self.requests.append(Request(f"test/{problem.row}", prompt, decoding))

    def judge(self, example: Problem, output: str) -> tuple[str, str, dict[str, float]]:
        """As text without punctuation, not as numbers: 18.00 is 1800, not 18; -5 is 5."""
        parsed = parse_answer(output)
        return parsed, example.answer, {"exact_match": exact_match(parsed, example.answer)}


def parse_answer(output: str) -> str:
    """The last number of an output, or all of it (not stripped) where there is none."""
    output = without_thousands_commas(output)
    numbers = NUMBER.findall(output)
    return numbers[-1] if numbers else output


def parse_target(answer: str) -> str:
    """The number after "####".

    Raises:
        ValueError: no such number, or 0, which the reference refuses too.
    """
    parts = answer.split("####")
    if len(parts) < 2:
        raise ValueError("no '####' in the answer")
    target = without_thousands_commas(parts[1].strip())
    if not float(target):
        raise ValueError("the answer is 0")
    return target


def without_thousands_commas(text: str) -> str:
    # One pass, as in the reference: of "1,2,3" it leaves "12,3".
    return re.sub(r"(\d),(\d)", r"\1\2", text)


def prompt_intro(exemplars: Sequence[Exemplar], shots: int, cot: bool) -> str:
    """Everything before the problem."""
    if not shots:
        return "Answer the following question.\n\n"
    if shots > len(exemplars):
        raise UserError(f"gsm8k.shots={shots}: there are {len(exemplars)} exemplars.")
    if shots < len(exemplars):  # all of them stay in their order, fewer come in the order drawn
        exemplars = random.Random(SEED).sample(exemplars, shots)
    # "Quesion" is the reference's.
    texts = [
        f"Question: {e.question}\nAnswer: {e.cot_answer}"
        if cot
        else f"Quesion: {e.question}\nAnswer: {e.short_answer}"
        for e in exemplars
    ]
    return "Answer the following questions.\n\n" + "\n\n".join(texts) + "\n\n"


def read_problems(path: Path) -> list[Problem]:
    problems: list[Problem] = []
    for line, row in read_jsonl(path, ("question", "answer")):
        try:
            target = parse_target(row["answer"])
        except ValueError as error:
            raise DataError(
                path, line, f"{error}; expected '#### <a number other than 0>'."
            ) from error
        problems.append(Problem(len(problems), row["question"], target))
    if not problems:
        raise DataError(path, None, "no problems in it.")
    return problems


def read_exemplars(data_dir: Path) -> list[Exemplar]:
    path = data_dir / "exemplars.jsonl"
    if path.exists():
        fields = ("question", "cot_answer", "short_answer")
        return [Exemplar(*(row[field] for field in fields)) for _, row in read_jsonl(path, fields)]
    exemplars = []
    for sample in read_lm_eval_task("gsm8k/gsm8k-cot.yaml", path)["fewshot_config"]["samples"]:
        # lm-eval's answers end in "The answer is 6.", the reference's in "So the answer is 6.".
        reasoning, _, answer = sample["target"].rpartition("The answer is ")
        exemplars.append(
            Exemplar(
                sample["question"],
                f"{reasoning}So the answer is {answer}",
                answer.removesuffix("."),
            )
        )
    return exemplars
