"""Data already in conversations: your own files, or the Tulu mixtures.

A row is `{"messages": [{"role", "content"}, ...]}` or `{"prompt", "completion"}`, with optional
`dataset` and `id`. Beside them, `system`, `history` and `input` become part of the conversation,
and `weight: 0` or `train: false` on a turn or a row keeps it from being trained on. Fields that
would be lost (tools, tool calls, reasoning, images) make a bad row; others are counted by name.

The rows of your own files are checked more strictly than the reference's corpora: an empty
assistant turn and an id that occurred before are bad rows.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mos.data.chat import ROLES
from mos.data.rows import Corpus, Example, Report, read_rows, require_content
from mos.errors import DataError, MissingFileError

FORMAT = (
    'Expected rows {"messages": [{"role": "user", "content": "..."}, ...]} or'
    ' {"prompt": "...", "completion": "..."} in *.jsonl, *.json or *.parquet.'
)
SUFFIXES = (".jsonl", ".json", ".parquet")
PACKED = (".gz", ".zst", ".bz2", ".xz")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json")  # of the hub's data sets
LOST_IN_A_ROW = ("tools", "functions", "images", "videos", "audios")
LOST_IN_A_TURN = (
    *LOST_IN_A_ROW,
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
)


def files(source: Path) -> list[Path]:
    """The file that `source` is, or every data file in it and its sub-folders, by name."""
    paths = _found(source)[0]
    if not paths:
        raise MissingFileError(f"messages: no data file in {source}. {FORMAT}")
    for path in paths:
        require_content(path)
    return paths


def _found(source: Path) -> tuple[list[Path], list[str]]:
    """Data files, and the names of the others. Hidden ones (`._x`, `_SUCCESS`) hold no data."""
    if source.is_file():
        return [source], []
    found: list[Path] = []
    others = []
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        name = path.relative_to(source)
        suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
        if (
            suffixes[-1:]
            and suffixes[-1] in SUFFIXES
            and path.name not in NOT_ROWS
            and not any(part.startswith((".", "_")) for part in name.parts)
        ):
            found.append(path)
        else:
            others.append(str(name))
    return found, others


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows of all files in order; ids default to `<file>_<line>`."""
    if others := _found(source)[1]:
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        report.note(f"messages: {len(others)} files in {source} are no data files: {shown}.")
    seen: set[int] = set()
    for example in mixture_rows(files(source), report, root=source):
        row = example.row
        try:
            for i, message in enumerate(row["messages"]):
                if message["role"] == "assistant" and not message["content"].strip():
                    raise DataError(
                        example.path, example.line, f"message {i}: the assistant turn is empty."
                    )
            if row.pop("given_id"):
                if (digest := hash(row["id"])) in seen:
                    raise DataError(
                        example.path, example.line, f"the id {row['id']!r} occurred before."
                    )
                seen.add(digest)
        except DataError as error:
            report.bad(error)
            continue
        yield example


def mixture_rows(
    paths: Iterable[Path], report: Report, dataset: str | None = None, root: Path | None = None
) -> Iterator[Example]:
    """Rows in messages form; with `dataset`, only those of that name in a mixture.

    With `root`, rows say by `given_id` whether their id is their own, and the ids that are made
    for them name the file below it.
    """
    unused: Counter[str] = Counter()
    row: dict[str, Any]
    for path in paths:
        below = path.relative_to(root) if root and root != path else Path(path.name)
        stem = str(below.parent / below.name.split(".")[0])
        for line, item in read_rows(path, report):
            if dataset is not None and item.get("dataset") != dataset:
                continue
            item = {key: value for key, value in item.items() if value is not None}
            try:
                row = {
                    "dataset": str(item.get("dataset", path.name.split(".")[0])),
                    "id": str(item.get("id", f"{stem}_{line}")),
                    "messages": _messages(item, unused, path, line),
                }
            except DataError as error:
                report.bad(error)
                continue
            if root is not None:
                row["given_id"] = "id" in item
            yield Example(row, path, line)
    if unused:
        fields = ", ".join(f"{name} ({count:,} times)" for name, count in unused.most_common())
        report.note(f"messages: fields that are not used: {fields}.")


def _messages(
    item: Mapping[str, Any], unused: Counter[str], path: Path, line: int
) -> list[dict[str, Any]]:
    """The conversation of a row; its fields that are None are left out."""

    def bad(reason: str, hint: str = "") -> DataError:
        return DataError(path, line, reason, hint)

    if lost := [name for name in LOST_IN_A_ROW if item.get(name)]:
        raise bad(f"field '{lost[0]}' cannot be trained on: its content would be lost.", REMOVE)
    known = {"dataset", "id", "system", "weight", "train", *LOST_IN_A_ROW}
    if "messages" in item:
        known |= {"messages"}
        turns = item["messages"]
        if clash := [name for name in ("history", "input") if item.get(name)]:
            raise bad(f"'{clash[0]}' beside 'messages': put it into the messages.")
    elif "prompt" in item and "completion" in item:
        known |= {"prompt", "completion", "history", "input"}
        prompt, completion = item["prompt"], item["completion"]
        if isinstance(prompt, list) and isinstance(completion, list):
            turns = prompt + completion
        else:
            if extra := item.get("input"):
                if not isinstance(prompt, str) or not isinstance(extra, str):
                    raise bad("'prompt' and 'input' must be strings.")
                prompt = f"{prompt}\n\n{extra}"
            turns = [{"role": "user", "content": prompt}]
            turns += [{"role": "assistant", "content": completion}]
        turns = _history(item.get("history") or [], bad) + turns
    else:
        found = ", ".join(item) or "no fields"
        raise bad(f"neither 'messages' nor 'prompt' and 'completion' (found {found}).", FORMAT)
    if not isinstance(turns, list) or not turns:
        raise bad("'messages' must be a list of at least one message.", FORMAT)
    if system := item.get("system"):
        if isinstance(turns[0], dict) and turns[0].get("role") == "system":
            raise bad("'system' beside a system message: leave one of them out.")
        turns = [{"role": "system", "content": system}, *turns]
    unused.update(name for name in item if name not in known)
    row_is_trained = _is_trained(item, "the row", bad)
    clean = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise bad(f"message {i} must be an object.", FORMAT)
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise bad(f"message {i}: unknown role {role!r}; expected {', '.join(ROLES)}.")
        if lost := [name for name in LOST_IN_A_TURN if turn.get(name)]:
            raise bad(f"message {i}: '{lost[0]}' would be lost.", REMOVE)
        if not isinstance(content, str):
            raise bad(f"message {i}: content must be a string, found {content!r:.60}.")
        message: dict[str, Any] = {"role": role, "content": content}
        trained = _is_trained(turn, f"message {i}", bad)
        if role == "assistant" and not (trained and row_is_trained):
            message["train"] = False
        elif role != "assistant" and (turn.get("weight") or turn.get("train")):
            raise bad(f"message {i}: a {role} turn cannot be trained on; only assistant turns are.")
        unused.update(
            f"messages.{name}"
            for name in turn
            if name not in _TURN_FIELDS and turn[name] is not None
        )
        clean.append(message)
    return clean


REMOVE = "Remove the field, or write what it says into the content."
_TURN_FIELDS = {"role", "content", "weight", "train", *LOST_IN_A_TURN}


def _history(pairs: Any, bad: Callable[[str], DataError]) -> list[Any]:
    """Earlier turns, as pairs of a prompt and an answer."""
    turns = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise bad("'history' must be a list of [prompt, answer] pairs.")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _is_trained(holder: Mapping[str, Any], what: str, bad: Callable[[str], DataError]) -> bool:
    weight, train = holder.get("weight"), holder.get("train")
    if weight not in (None, 0, 1):
        raise bad(f"{what}: weight must be 0 or 1, found {weight!r:.60}.")
    if train not in (None, False, True):
        raise bad(f"{what}: train must be true or false, found {train!r:.60}.")
    return weight != 0 and train is not False


CORPUS = Corpus(files, rows, FORMAT, folder="messages")
