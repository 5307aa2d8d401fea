"""Super-NaturalInstructions: a checkout of natural-instructions, whole or partial.

Layout: `splits/<split>/train_tasks.txt` and `tasks/<task>.json`. The reference takes the xlingual
split; where there is none, the default one is taken and noted. Tasks of the list that are not in
`tasks/` are passed over and noted; a `train_tasks_available.txt` beside the list names those that
a partial copy must have.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mos.data.corpus import Corpus
from mos.data.fetch import Original, fetch, github
from mos.data.readers import read_json
from mos.data.rows import Example, Report, conversation
from mos.data.templates import fill
from mos.errors import DataError, MissingFileError

ZERO_SHOT, FEW_SHOT, SHOTS = 60, 20, 2  # instances a task, and examples in a few-shot prompt
SPLITS = ("xlingual", "default")
REPOSITORY = ("allenai/natural-instructions", "55a365637381ce7f3748fa2eac7aef1a113bbb82")
LISTS = ("train_tasks.txt", "train_tasks_available.txt")
WHERE = (
    "Run scripts/prepare_train_data.py super_ni, or clone github.com/allenai/natural-instructions."
)


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
            task, text = read_json(path)
            definition, positive, instances = _fields(path, task, text)
        except DataError as error:
            report.bad(error)
            continue
        if len(instances) > ZERO_SHOT + FEW_SHOT:
            chosen = rng.sample(range(len(instances)), k=ZERO_SHOT + FEW_SHOT)
        else:
            chosen = list(range(len(instances)))
        for place, index in enumerate(chosen):
            try:
                instance_id, question, answer = _instance(path, instances, index, text)
                if place < ZERO_SHOT:
                    prompt, completion = fill(definition, question, answer, rng)
                else:
                    picked: Sequence[int] = range(len(positive))
                    if len(positive) > SHOTS:
                        picked = rng.sample(picked, k=SHOTS)
                    shots = [_shot(path, positive, i, text) for i in picked]
                    prompt, completion = few_shot(definition, shots, question), answer.strip()
            except DataError as error:
                report.bad(error)
                continue
            row = conversation("super_ni", f"super_ni_{instance_id}", prompt, completion)
            yield Example(row, path, None)


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


def _fields(path: Path, task: Any, text: str) -> tuple[str, list[Any], list[Any]]:
    if not isinstance(task, dict):
        raise DataError(path, 1, "expected an object with Definition and Instances.")
    for name in ("Definition", "Positive Examples", "Instances"):
        if not isinstance(task.get(name), list):
            raise DataError(path, 1, f"field {name!r} must be there and be a list.")
    definition = task["Definition"]
    if not definition or not isinstance(definition[0], str):
        line = _line_of(text, "Definition")
        raise DataError(path, line, "field 'Definition' must hold a string.")
    return definition[0], task["Positive Examples"], task["Instances"]


def _shot(path: Path, positive: list[Any], index: int, text: str) -> tuple[str, str]:
    shot = positive[index]
    if isinstance(shot, dict):
        shown, answer = shot.get("input"), shot.get("output")
        if isinstance(shown, str) and isinstance(answer, str):
            return shown, answer
    raise DataError(
        path,
        _line_of(text, "Positive Examples", index),
        f"positive example {index} must have an input and an output (strings).",
    )


def _instance(path: Path, instances: list[Any], index: int, text: str) -> tuple[Any, str, str]:
    instance = instances[index]
    if isinstance(instance, dict) and "id" in instance and isinstance(instance.get("input"), str):
        output = instance.get("output")
        if isinstance(output, list) and output and isinstance(output[0], str):
            return instance["id"], instance["input"], output[0]
    raise DataError(
        path,
        _line_of(text, "Instances", index),
        f"instance {index} must have an id, an input (string) and an output (list of strings).",
    )


def _line_of(text: str, *keys: str | int) -> int:
    """1-based line where the value under `keys` starts in valid JSON, for error messages."""
    decoder = json.JSONDecoder()

    def skip(i: int, characters: str) -> int:
        while text[i] in characters:
            i += 1
        return i

    blank = " \t\r\n"
    i = skip(0, blank)
    for wanted in keys:
        i = skip(i + 1, blank)  # past the opening bracket
        index = 0
        while True:
            if isinstance(wanted, str):
                key, i = decoder.raw_decode(text, i)
                i = skip(i, blank + ":")
            else:
                key, index = index, index + 1
            if key == wanted:
                break
            _, i = decoder.raw_decode(text, i)
            i = skip(i, blank + ",")
    return text.count("\n", 0, i) + 1


def originals(folder: Path) -> list[Original]:
    """The reference's split list, which is fetched at once, and the training tasks in it."""
    name = f"splits/{SPLITS[0]}/{LISTS[0]}"
    task_list = Original(name, github(*REPOSITORY, name))
    fetch([task_list], folder)
    names = [f"tasks/{task}.json" for task in _tasks(folder)[1]]
    return [task_list, *(Original(name, github(*REPOSITORY, name)) for name in names)]


CORPUS = Corpus(files, rows, WHERE, folder="natural-instructions", originals=originals)
