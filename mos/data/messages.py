"""Data already in conversations: your own files, the hub's data sets, or the Tulu mixtures.

A row is `{"messages": [{"role", "content"}, ...]}`, `{"prompt", "completion"}` (texts, or lists of
messages, of which the completion alone is trained on), `{"instruction", "output"}` as of Alpaca, or
`{"conversations": [{"from", "value"}, ...]}` as of ShareGPT; with optional `dataset` and `id`.
Beside them, `system`, `history` and `input` become part of the conversation, and `train: false`, or
another name of `MASKS`, on a turn or a row keeps it from being trained on. Fields that would be
lost (tools, tool calls, reasoning, images) make a bad row; others are counted by name.

The rows of your own files are checked more strictly than the reference's corpora: an empty
assistant turn and an id that occurred before are bad rows.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mos.data.chat import ROLES
from mos.data.rows import Corpus, Example, Report, kind, read_rows, require_content
from mos.errors import DataError, MissingFileError
from mos.files import files_below

FORMAT = (
    'Expected rows {"messages": [{"role": "user", "content": "..."}, ...]},'
    ' {"prompt": "...", "completion": "..."}, Alpaca\'s or ShareGPT\'s, in *.jsonl, *.json,'
    " *.parquet, *.arrow, *.csv or *.tsv."
)
SUFFIXES = (".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv")
# Of data sets of the hub, and as `datasets` saves and caches them.
NOT_ROWS = re.compile(r"dataset_infos?\.json|dataset_dict\.json|state\.json|cache-.*\.arrow")
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
LOST_IN_A_ROW = ("tools", "functions", "images", "videos", "audios")
LOST_IN_A_TURN = (
    *LOST_IN_A_ROW,
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking"),
)
# How rows and turns say whether they are trained on: name -> the value that says so.
MASKS = {
    **dict.fromkeys(("train", "weight", "loss_mask", "loss", "trainable", "training"), True),
    "masked": False,
}
MASK_LIKE = re.compile("train|loss|mask|supervis|ignore", re.IGNORECASE)
FLAGS = {"0": False, "0.0": False, "false": False, "1": True, "1.0": True, "true": True}
SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


def files(source: Path) -> list[Path]:
    """The file that `source` is, or every data file in it and its sub-folders, by name.

    Of a folder that holds splits, those for training.
    """
    found = _found(source)
    if not found["train"]:
        there = ", ".join(map(str, found["other"][:5])) or "nothing"
        raise MissingFileError(f"messages: no data file in {source} (there: {there}). {FORMAT}")
    for path in found["train"]:
        require_content(path)
    return found["train"]


def validation_files(source: Path) -> list[Path]:
    """The files of a folder whose rows are held out rather than trained on."""
    return _found(source)["validation"]


def _found(source: Path) -> dict[str, list[Path]]:
    """The files of a source by split; "other" hold no rows, as hidden ones (`._x`, `_SUCCESS`)."""
    found: dict[str, list[Path]] = {"train": [], "validation": [], "test": [], "other": []}
    if source.is_file():
        return found | {"train": [source]}
    for path in files_below(source):
        name = path.relative_to(source)
        hidden = any(part.startswith((".", "_")) for part in name.parts)
        is_data = kind(path) in SUFFIXES and not NOT_ROWS.fullmatch(path.name) and not hidden
        found[_split(name) if is_data else "other"].append(path)
    if not found["train"]:  # a name says nothing where there is no other to tell it from
        data = sorted(found["validation"] + found["test"])
        found |= {"train": data, "validation": [], "test": []}
    return found


def _split(name: Path) -> str:
    """The split that the name of a file says, or else that of its folder."""
    for part in (name.name.split(".")[0], *reversed(name.parts[:-1])):
        for word in re.findall("[a-z]+", part.lower()):
            if word in SPLITS:
                return SPLITS[word]
    return "train"


def rows(source: Path, rng: random.Random, report: Report) -> Iterator[Example]:
    """Rows of the files for training in order; ids default to `<file>_<line>`."""
    found = {
        split: ", ".join(str(path.relative_to(source)) for path in paths[:5])
        + (", ..." if len(paths) > 5 else "")
        for split, paths in _found(source).items()
        if paths and source.is_dir()
    }
    if {"validation", "test"} & found.keys():
        report.note(
            f"messages: trained on {found['train']}; held out: {found.get('validation', 'none')};"
            f" not used: {found.get('test', 'none')}."
        )
    if "other" in found:
        report.note(f"messages: no data files in {source}: {found['other']}.")
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
            item = {k: v for k, v in item.items() if v is not None and v == v}
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
    known = {"dataset", "id", "system", *LOST_IN_A_ROW}
    listed = next((name for name in ("messages", "conversations") if name in item), None)
    pair = next((pair for pair in PAIRS if set(pair) <= item.keys()), None)
    if listed:
        known |= {listed}
        turns = item[listed]
        if clash := [name for name in ("history", "input") if item.get(name)]:
            raise bad(f"'{clash[0]}' beside '{listed}': put it into the messages.")
    elif pair:
        known |= {*pair, "history", "input"}
        prompt, completion = (item[name] for name in pair)
        if isinstance(prompt, list) and isinstance(completion, list):
            turns = [{**t, "train": False} if isinstance(t, dict) else t for t in prompt]
            turns += completion
        else:
            if extra := item.get("input"):
                if not isinstance(prompt, str) or not isinstance(extra, str):
                    raise bad(f"'{pair[0]}' and 'input' must be strings.")
                prompt = f"{prompt}\n\n{extra}"
            turns = [{"role": "user", "content": prompt}]
            turns += [{"role": "assistant", "content": completion}]
        turns = _history(item.get("history") or [], bad) + turns
    else:
        found = ", ".join(item) or "no fields"
        raise bad(f"neither 'messages' nor 'prompt' and 'completion' (found {found}).", FORMAT)
    if not isinstance(turns, list) or not turns:
        raise bad(f"'{listed}' must be a list of at least one message.", FORMAT)
    if system := item.get("system"):
        if isinstance(turns[0], dict) and turns[0].get("role") == "system":
            raise bad("'system' beside a system message: leave one of them out.")
        turns = [{"role": "system", "content": system}, *turns]
    label = str(item.get("label")).lower() if pair else ""
    known |= {"label"} if label in ("true", "false") else set()  # KTO's, of a good or bad answer
    row_is_trained = _is_trained(item, known, unused, "", bad) is not False and label != "false"
    clean = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, dict):
            raise bad(f"message {i} must be an object.", FORMAT)
        if "from" in turn:
            speaker = turn["from"]
            turn = {**turn, "role": SPEAKERS.get(speaker, speaker), "content": turn.get("value")}
        role, content = turn.get("role"), turn.get("content")
        if role not in ROLES:
            raise bad(f"message {i}: unknown role {role!r}; expected {', '.join(ROLES)}.")
        if lost := [name for name in LOST_IN_A_TURN if turn.get(name)]:
            raise bad(f"message {i}: '{lost[0]}' would be lost.", REMOVE)
        if not isinstance(content, str):
            raise bad(f"message {i}: content must be a string, found {content!r:.60}.")
        message: dict[str, Any] = {"role": role, "content": content}
        trained = _is_trained(turn, _TURN_FIELDS, unused, f"message {i}: ", bad)
        if role == "assistant" and not (row_is_trained and trained is not False):
            message["train"] = False
        elif role != "assistant" and trained:
            raise bad(f"message {i}: a {role} turn cannot be trained on; only assistant turns are.")
        clean.append(message)
    return clean


REMOVE = "Remove the field, or write what it says into the content."
PAIRS = (("prompt", "completion"), ("instruction", "output"))
_TURN_FIELDS = {"role", "content", "from", "value", *LOST_IN_A_TURN}


def _history(pairs: Any, bad: Callable[[str], DataError]) -> list[Any]:
    """Earlier turns, as pairs of a prompt and an answer."""
    turns = []
    for pair in pairs if isinstance(pairs, list) else [None]:
        if not isinstance(pair, list) or len(pair) != 2:
            raise bad("'history' must be a list of [prompt, answer] pairs.")
        turns += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return turns


def _is_trained(
    holder: Mapping[str, Any],
    known: Iterable[str],
    unused: Counter[str],
    where: str,
    bad: Callable[..., DataError],
) -> bool | None:
    """What a row or a turn says of whether it is trained on; its unknown fields are counted."""
    trained = None
    for name, value in holder.items():
        if name in known or value is None or value != value:  # NaN, as pandas fills a column
            continue
        flag = FLAGS.get(str(value).lower())
        if name in MASKS and flag is not None:
            trained = trained is not False and flag is MASKS[name]
        elif name in ("train", "weight"):
            allowed = "0 or 1" if name == "weight" else "true or false"
            raise bad(f"{where}{name} must be {allowed}, found {value!r:.60}.")
        elif MASK_LIKE.search(name) and (flag is not None or isinstance(value, list)):
            raise bad(
                f"{where}'{name}' may say what is trained on, in a way that is not known.",
                "Remove it, or write 'train': false where nothing is to be learnt.",
            )
        else:
            unused[f"messages.{name}" if where else name] += 1
    return trained


CORPUS = Corpus(files, rows, FORMAT, folder="messages")
