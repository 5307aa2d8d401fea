"""BIG-Bench Hard: 27 tasks, three worked examples each (protocol section 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from eval.benchmark import Benchmark, Decoding, Metric, Request, chat_prompt
from eval.files import check_fields, read_lm_eval_task, require
from eval.scoring import exact_match
from mos.errors import DataError
from mos.files import read_json, read_text

ANSWER_MARKER = "So the answer is"
# "|" is part of the class, and the group ends at the first period: "3.14." gives "3".
ANSWER = re.compile(r"[t|T]he answer is (.*?)\.")


@dataclass(frozen=True)
class Question:
    task: str
    row: int
    input: str
    target: str


@dataclass(eq=False, kw_only=True)
class BBH(Benchmark):
    """`bbh/{task}.json`, `cot-prompts/{task}.txt`; metric `exact_match`, the mean over tasks.

    Without cot-prompts, the demonstrations come from the installed lm-eval package.

    Args:
        cot: demonstrations with their reasoning, else with the answer alone.
    """

    name = "bbh"
    metrics = (Metric("exact_match", "BBH EM"),)
    setting = "3-shot"

    cot: bool = False

    def __post_init__(self) -> None:
        questions = read_questions(self.data_dir)
        self.examples, self.partial = self.selection.apply(questions, lambda q: q.task, self.name)
        demonstrations = {}
        for task in dict.fromkeys(q.task for q in self.examples):
            text = read_demonstrations(self.data_dir, task)
            demonstrations[task] = (text if self.cot else without_reasoning(text, task)).strip()
        # In chat mode EOS is the only stop, so an answer that runs on scores 0.
        decoding = Decoding(max_tokens=512, stop=() if self.chat else ("\n\n",))
        self.requests = []
        for question in self.examples:
            prompt = f"{demonstrations[question.task]}\n\nQ: {question.input}"
            prompt = chat_prompt(prompt, "A:") if self.chat else f"{prompt}\nA:"
            self.requests.append(Request(f"{question.task}/{question.row}", prompt, decoding))

    @staticmethod
    def group_of(record_id: str) -> str:
        """The task."""
        return record_id.rpartition("/")[0]

    def judge(self, example: Question, output: str) -> tuple[str, str, dict[str, float]]:
        """Punctuation does not count, so of a dyck_languages answer only the number of brackets
        does, and -50 equals 50."""
        parsed = parse_answer(output)
        return parsed, example.target, {"exact_match": exact_match(parsed, example.target)}


def parse_answer(output: str) -> str:
    """What follows the first "the answer is" up to a period on the same line, else all of it."""
    match = ANSWER.search(output)
    return (match.group(1) if match else output).strip()


def read_questions(data_dir: Path) -> list[Question]:
    """All questions, the tasks sorted (the reference's glob order shapes no prompt)."""
    folder = require(data_dir / "bbh", "{task}.json files")
    questions = []
    for path in sorted(folder.glob("*.json")):
        table = read_json(path)
        examples = table.get("examples") if isinstance(table, dict) else None
        if not isinstance(examples, list) or not examples:
            raise DataError(path, None, "expected an object with a list 'examples'.")
        for row, example in enumerate(examples):
            check_fields(example, ("input", "target"), path, row + 1)
            questions.append(Question(path.stem, row, example["input"], example["target"]))
    if not questions:
        raise DataError(folder, None, "no {task}.json in it.")
    return questions


def read_demonstrations(data_dir: Path, task: str) -> str:
    """A task's demonstrations with their reasoning."""
    path = data_dir / "cot-prompts" / f"{task}.txt"
    if path.exists():
        # The first two lines are a canary and a row of dashes.
        lines = read_text(path).split("\n", 2)
        if len(lines) < 3 or not lines[2].strip():
            raise DataError(path, None, "no text after the first two lines (canary, dashes).")
        return lines[2]
    config = read_lm_eval_task(f"bbh/cot_fewshot/{task}.yaml", instead=path)
    cue = config["doc_to_text"]
    if task == "sports_understanding":  # as published; lm-eval gives it the others' line break
        cue = cue.removesuffix("\n") + " "
    shots = [
        cue.replace("{{input}}", sample["input"]) + sample["target"]
        for sample in config["fewshot_config"]["samples"]
    ]
    return config["description"] + "\n\n".join(shots)


def without_reasoning(demonstrations: str, task: str) -> str:
    """Cut every answer down to what follows its last "So the answer is", final period included."""
    blocks = []
    for block in demonstrations.split("\n\n"):
        if block.startswith("Q:"):
            question, cue, _ = block.partition("\nA:")
            _, marker, answer = block.rpartition(ANSWER_MARKER)
            if not cue or not marker:
                raise DataError(
                    f"cot-prompts/{task}.txt",
                    None,
                    f"a block without an 'A:' line or {ANSWER_MARKER!r}: {block!r:.120}.",
                )
            block = f"{question.strip()}\nA: {answer.strip()}"
        blocks.append(block)
    return "\n\n".join(blocks)
