"""Super-NaturalInstructions: a checkout of natural-instructions, whole or partial.

Layout: `splits/<split>/train_tasks.txt` and `tasks/<task>.json`. The reference takes the xlingual
split; where there is none, the default one is taken and noted. Tasks of the list that are not in
`tasks/` are passed over and noted; a `train_tasks_available.txt` beside the list names those that
a partial copy must have.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mos.data.fetch import Original, fetch, github
from mos.data.rows import Corpus, Example, Report, conversation, read_json
from mos.errors import DataError, MissingFileError

ZERO_SHOT, FEW_SHOT, SHOTS = 60, 20, 2  # instances a task, and examples in a few-shot prompt
SPLITS = ("xlingual", "default")
REPOSITORY = ("allenai/natural-instructions", "55a365637381ce7f3748fa2eac7aef1a113bbb82")
LISTS = ("train_tasks.txt", "train_tasks_available.txt")
WHERE = (
    "Run scripts/prepare_train_data.py super_ni, or clone github.com/allenai/natural-instructions."
)


# What super_ni and code_alpaca draw from (protocol section 7): prompt -> weight, in the order and
# with the weights, and spelling, of the reference: the draw depends on all three.
WITH_INPUT = {
    "{instruction}\n\n{input}\n\n": 0.2,
    "{instruction}\n{input}\n\n": 0.1,
    "{instruction}\n{input}\n": 0.1,
    "{instruction}\n\nInput: {input}\n\nOutput:": 0.05,
    "{instruction}\nInput: {input}\nOutput:": 0.05,
    "{instruction}\n{input}\n\nResponse:": 0.05,
    "{instruction}\n\nAdditional Context:\n{input}\n\nAnswer:": 0.05,
    "Task: {instruction}\nInput: {input}\nOutput:": 0.05,
    "Task: {instruction}\n\n{input}\n\n": 0.05,
    "Task: {instruction}\n\n{input}\n\nAnswer:": 0.05,
    "You need to complete the following task:\n\n{instruction}\n\n{input}\n\nAnswer:": 0.05,
    "{instruction}\n\nNow complete the following instance -\nInput: {input}\nOutput:": 0.05,
    "Instruction:{instruction}\n\nInput: {input}\n\n": 0.05,
    (
        "Below is an instruction that describes a task, paired with an input that"
        " provides further context. Write a response that appropriately completes the"
        " request.\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
    ): 0.1,
}

WITHOUT_INPUT = {
    "{instruction}\n\n": 0.2,
    "{instruction}\n": 0.1,
    "{instruction}": 0.1,
    "{instruction} Output:": 0.05,
    "{instruction}\nResponse:": 0.05,
    "{instruction}\n\nAnswer:": 0.05,
    "Task: {instruction}\n\n": 0.05,
    "Instruction: {instruction}\n": 0.05,
    "Instruction: {instruction}\nOutput:": 0.05,
    "You need to complete the following task:\n\n{instruction}\n\n": 0.05,
    "Can you help with this?\n\n{instruction}\n": 0.05,
    "Plase answer the following request: {instruction}\nAnswer:": 0.05,
    "Tell me how would you respond to the following request.\n{instruction}\n": 0.05,
    (
        "Write a response that appropriately completes the request.\n\n### Instruction:"
        "\n{instruction}\n\n### Response:"
    ): 0.1,
}


def files(source: Path) -> list[Path]:
    """The split list and the task files in its order.

    Raises:
        MissingFileError: no split list, no task of it, or a task of the available list missing.
    """
    task_list, tasks = _tasks(source)
    present = [_task_file(source, t) for t in tasks if _task_file(source, t).is_file()]
    if not present:
        raise MissingFileError(
            f"super_ni: none of the {len(tasks)} tasks of {task_list} is in {source / 'tasks'}."
            f" {WHERE}"
        )
    available = task_list.with_name(LISTS[1])
    if available.is_file():
        promised = [_task_file(source, t) for t in _read_list(available)]
        missing = [path.name for path in promised if not path.is_file()]
        if missing:
            raise MissingFileError(
                f"super_ni: {available} names {len(missing)} tasks that are not in"
                f" {source / 'tasks'} (first: {missing[0]}): is the copy incomplete? {WHERE}"
            )
    return [task_list, *present]


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows of every task in the order of the split list (protocol section 7)."""
    task_list, *present = files(source)
    if task_list.parent.name != SPLITS[0]:
        report.note(
            f"super_ni: {source} has no splits/{SPLITS[0]}, which the reference takes:"
            f" used {task_list.relative_to(source)}."
        )
    wanted = _tasks(source)[1]
    if len(present) < len(wanted):
        there = {path.stem for path in present}
        first = next(task for task in wanted if task not in there)
        report.note(
            f"super_ni: {len(wanted) - len(present)} of {len(wanted)} training tasks are not in"
            f" {source / 'tasks'} (first: {first}): converted the {len(present)} that are."
        )
    for path in present:
        try:
            definition, positive, instances = _task(path)
        except DataError as error:
            report.bad(error)
            continue
        chosen: Sequence[int] = range(len(instances))
        if len(instances) > ZERO_SHOT + FEW_SHOT:
            chosen = rng.sample(chosen, k=ZERO_SHOT + FEW_SHOT)
        for place, index in enumerate(chosen):
            try:
                question, answer = _pair(path, "instance", instances, index)
                if place < ZERO_SHOT:
                    prompt, completion = fill(definition, question, answer, rng)
                else:
                    picked: Sequence[int] = range(len(positive))
                    if len(positive) > SHOTS:
                        picked = rng.sample(picked, k=SHOTS)
                    shots = [_pair(path, "positive example", positive, i) for i in picked]
                    prompt, completion = few_shot(definition, shots, question), answer.strip()
            except DataError as error:
                report.bad(error)
                continue
            name = f"super_ni_{instances[index].get('id')}"
            yield Example(conversation("super_ni", name, prompt, completion), path, None)


def fill(
    instruction: str, instance_input: str | None, output: str, rng: random.Random
) -> tuple[str, str]:
    """Draw a template (one `rng.choices`) and fill it: (prompt, completion).

    The completion is the output, behind a line feed where the prompt is the bare instruction.
    """
    stripped = (instance_input or "").strip()
    templates = WITH_INPUT if stripped else WITHOUT_INPUT
    template = rng.choices(list(templates), weights=list(templates.values()))[0]
    prompt = template.format(instruction=instruction.strip(), input=stripped)
    return prompt, "\n" * (template == "{instruction}") + output.strip()


def few_shot(definition: str, shots: Sequence[tuple[str, str]], question: str) -> str:
    """The prompt of a few-shot row, from (input, output) examples."""
    prompt = definition.strip() + "\n\n"
    for shown, answer in shots:
        prompt += f"Input:\n{shown.strip()}\nOutput:\n{answer.strip()}\n\n"
    return prompt + f"Input:\n{question.strip()}\nOutput:\n"


def _tasks(source: Path) -> tuple[Path, list[str]]:
    for split in SPLITS:
        for name in LISTS:
            path = source / "splits" / split / name
            if path.is_file():
                # the reference leaves out everything made from MMLU, which it is evaluated on
                return path, [task for task in _read_list(path) if "_mmmlu_" not in task]
    raise MissingFileError(
        f"super_ni: no {' or '.join(f'splits/{s}/{LISTS[0]}' for s in SPLITS)} in {source}. {WHERE}"
    )


def _read_list(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text("utf-8").splitlines() if line.strip()]


def _task_file(source: Path, task: str) -> Path:
    return source / "tasks" / f"{task}.json"


def _task(path: Path) -> tuple[str, list[Any], list[Any]]:
    """Definition, positive examples and instances of a task."""
    match read_json(path):
        case {
            "Definition": [str(definition), *_],
            "Positive Examples": [*positive],
            "Instances": [*instances],
        }:
            return definition, positive, instances
    reason = "expected lists 'Definition' (of strings), 'Positive Examples' and 'Instances'."
    raise DataError(path, None, reason)


def _pair(path: Path, what: str, items: Sequence[Any], index: int) -> tuple[str, str]:
    """Input of an example or instance, and its output or the first of them."""
    match items[index]:
        case {"input": str(shown), "output": str(answer) | [str(answer), *_]}:
            return shown, answer
    raise DataError(path, None, f"{what} {index} must have an input and an output (strings).")


def originals(folder: Path) -> list[Original]:
    """The reference's split list, which is fetched at once, and the training tasks in it."""
    name = f"splits/{SPLITS[0]}/{LISTS[0]}"
    task_list = Original(name, github(*REPOSITORY, name))
    fetch([task_list], folder)
    names = [f"tasks/{task}.json" for task in _tasks(folder)[1]]
    return [task_list, *(Original(name, github(*REPOSITORY, name)) for name in names)]


CORPUS = Corpus(files, rows, WHERE, folder="natural-instructions", originals=originals)
